import unittest

from app import hello


class Greeting(unittest.TestCase):
    def test_names_the_caller(self) -> None:
        self.assertEqual(hello("ada"), {"greeting": "hello, ada"})

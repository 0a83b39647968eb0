"""A plugin of pytest: writes how each test ended to the file OUTCOMES, a line each: its name, a tab, its outcome and why."""

import os

ended = {}
# Some tests leave an empty environment.
kept = os.environ["OUTCOMES"]


def pytest_runtest_logreport(report):
    worst = ended.get(report.nodeid, ("passed", ""))
    if report.skipped:
        worst = ("skipped", "")
    if report.failed:
        # What the server said is in the last line.
        said = str(report.longrepr).strip().splitlines()
        worst = ("failed", said[-1] if said else "")
    ended[report.nodeid] = worst


def pytest_sessionfinish():
    with open(kept, "w", encoding="utf-8") as file:
        for name, (outcome, why) in sorted(ended.items()):
            file.write(f"{name}\t{outcome}\t{why[:300]}\n")

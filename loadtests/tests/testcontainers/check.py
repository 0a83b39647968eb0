"""Testcontainers, unmodified, against the gateway: build, run, logs, exec, files both ways, a network.

Without its reaper (`TESTCONTAINERS_RYUK_DISABLED=true`), which is spoken to at a published port: those are the builder's.
"""

import pathlib
import tempfile

from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "Dockerfile").write_text(
        "FROM busybox\nARG WORD\nRUN echo $WORD >/built\nCOPY file /file\n"
    )
    (folder / "file").write_text("from the context\n")
    with DockerImage(path=folder, tag="tc:1", buildargs={"WORD": "hello"}) as image:
        store = (
            DockerContainer(str(image))
            .with_env("SOME", "value")
            .with_exposed_ports(8000)
            .with_command("sh -c 'echo begins; exec httpd -f -p 8000 -h /'")
            .waiting_for(LogMessageWaitStrategy("begins"))
        )
        with Network() as network, store.with_network(network).with_network_aliases(
            "store"
        ):
            assert store.get_logs()[0] == b"begins\n", store.get_logs()
            said = store.exec(["sh", "-c", "cat /built /file; echo $SOME; exit 3"])
            assert said.exit_code == 3, said
            assert said.output == b"hello\nfrom the context\nvalue\n", said
            assert int(store.get_exposed_port(8000)) > 0
            store.copy_into_container(b"copied in\n", "/copied")
            store.copy_from_container("/copied", folder / "back")
            assert (folder / "back").read_text() == "copied in\n"
            other = (
                DockerContainer("busybox")
                .with_network(network)
                .with_command("wget -qO- http://store:8000/copied")
            )
            with other:
                assert other.wait() == 0, other.get_logs()
                assert other.get_logs()[0] == b"copied in\n", other.get_logs()
print("ok")

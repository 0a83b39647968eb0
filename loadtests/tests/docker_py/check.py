"""docker-py, unmodified, against the gateway: build, run, exec with a tty-less stream, logs, archive, push."""

import io
import os
import sys
import tarfile

import docker

certificates = os.environ["DOCKER_CERT_PATH"]
tls = docker.tls.TLSConfig(
    client_cert=(f"{certificates}/cert.pem", f"{certificates}/key.pem"),
    ca_cert=f"{certificates}/ca.pem",
    verify=True,
)
client = docker.DockerClient(base_url=os.environ["DOCKER_URL"], tls=tls, timeout=60)
assert client.ping()

context = io.BytesIO()
with tarfile.open(fileobj=context, mode="w") as tar:
    text = b"FROM debian:trixie\nRUN echo py > /py\n"
    entry = tarfile.TarInfo("Dockerfile")
    entry.size = len(text)
    tar.addfile(entry, io.BytesIO(text))
context.seek(0)
image, _ = client.images.build(fileobj=context, custom_context=True, tag="py", rm=True)
assert client.containers.run("py", ["cat", "/py"], remove=True) == b"py\n"

box = client.containers.run("py", ["sleep", "300"], detach=True)
try:
    code, out = box.exec_run(["sh", "-c", "echo out; exit 3"])
    assert (code, out) == (3, b"out\n"), (code, out)
    socket = client.api.exec_start(
        client.api.exec_create(box.id, ["cat"], stdin=True)["Id"], socket=True
    )
    raw = getattr(socket, "_sock", socket)
    raw.sendall(b"through stdin\n")
    got = b""
    while b"through stdin\n" not in got:
        part = raw.recv(4096)
        assert part, "stream ended early"
        got += part
    raw.close()
    stream, _ = box.get_archive("/py")
    assert b"py\n" in b"".join(stream)
finally:
    box.remove(force=True)

# As a client's test suite tidies up: codes and texts are those of a dockerd that is in no swarm and has no plugins.
assert client.swarm.leave(force=True) is True
assert client.plugins.list() == []
for listing in (client.services, client.nodes, client.secrets, client.configs):
    try:
        listing.list()
    except docker.errors.APIError as error:
        assert error.status_code == 503, error
        assert "not a swarm manager" in error.explanation, error
    else:
        raise AssertionError("a builder is in a swarm")
try:
    client.api.remove_plugin("some/plugin:latest", force=True)
except docker.errors.NotFound:
    pass
try:
    client.swarm.init()
except docker.errors.APIError as error:
    assert error.status_code == 403, error
else:
    raise AssertionError("a swarm was begun")
try:
    client.api.inspect_image("a%b")
except docker.errors.APIError as error:
    assert "ambiguous" not in error.explanation, error

target = os.environ["PUSH_TARGET"]
image.tag(target)
lines = list(client.images.push(target, stream=True, decode=True))
errors = [line["error"] for line in lines if "error" in line]
assert not errors, errors
assert any("aux" in line for line in lines), lines
print("ok")
sys.exit(0)

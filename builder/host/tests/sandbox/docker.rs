//! A real dockerd inside.

use crate::harness::{Guest, Host, WAIT, http};
use slipway_core::host_api::EndpointPort;
use std::process::Command;
use std::time::Instant;

#[test]
fn dockerd_answers_builds_and_ends_well() {
    let Some(host) = Host::start(Guest::Docker) else {
        return;
    };
    let mut client = host.client();
    let began = Instant::now();
    let spec = host.machine(&mut client, 1);
    println!("ensured in {:?}", began.elapsed());
    let stream = client.open(&spec.machine, 1, EndpointPort::Docker).unwrap();
    let (status, reply) = http(stream, "GET /_ping", b"");
    println!("/_ping after {:?}", began.elapsed());
    assert_eq!(status, 200, "{reply}");
    let mut build = |dockerfile: &str| {
        let stream = client.open(&spec.machine, 1, EndpointPort::Docker).unwrap();
        http(stream, "POST /v1.45/build?t=test", &context(dockerfile))
    };
    let (status, reply) = build(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo sum $((6*7))\"]\n",
    );
    assert!(
        status == 200 && reply.contains("sum 42") && reply.contains("Successfully tagged"),
        "{reply}"
    );
    let (_, reply) = build(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"wget\", \"-qO/dev/null\", \"http://deb.debian.org/debian/dists/trixie/InRelease\"]\nRUN [\"/bin/busybox\", \"echo\", \"fetched\"]\n",
    );
    assert!(
        reply.contains("fetched") && reply.contains("Successfully tagged"),
        "{reply}"
    );
    let began = Instant::now();
    client.stop(&spec.machine, 1, WAIT).unwrap();
    assert!(client.wait_exit(&spec.machine, WAIT), "a clean end");
    println!("ended in {:?}", began.elapsed());
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

/// A tar with a Dockerfile and a static busybox.
fn context(dockerfile: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    std::fs::copy("/bin/busybox", dir.path().join("busybox")).expect("busybox-static is installed");
    let tar = Command::new("tar")
        .args(["-c", "-C"])
        .arg(dir.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(tar.status.success());
    tar.stdout
}

//! The client of the host API against daemons that do not keep to the protocol.

use slipway_core::fence::{Fence, VolumeFence};
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, Epoch, HostError, HostErrorCode, HostReply, HostRequest, HostRequestFrame,
    VersionRange, VolumeReport,
};
use slipway_core::id::{MachineId, VolumeId};
use slipway_scheduler::host_client::{HostClient, HostClientError};
use slipway_scheduler::limits::{ENDPOINT_BUSY_PAUSE, HOST_ENDPOINTS_MAX, HOST_PORT_ENDPOINTS_MAX};
use slipway_scheduler::machine_stream::MachineStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// A daemon that answers every request with `answer`, once per connection if it is to hang up then.
fn daemon(answer: Vec<u8>, hang_up: bool) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("host.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u32().await {
                    let mut body = vec![0; length as usize];
                    stream.read_exact(&mut body).await.expect("a body");
                    stream.write_all(&answer).await.expect("written");
                    if hang_up {
                        return;
                    }
                }
            });
        }
    });
    (dir, socket)
}

fn frame(reply: &HostReply) -> Vec<u8> {
    let body = serde_json::to_vec(reply).expect("json");
    let length = u32::try_from(body.len()).expect("small");
    [&length.to_be_bytes()[..], &body].concat()
}

fn no_machines() -> HostReply {
    HostReply::Machines {
        epoch: Some(Epoch(1)),
        revision: 7,
        machines: vec![],
        more: false,
    }
}

async fn open(client: &HostClient) -> Result<MachineStream, HostClientError> {
    let machine = MachineId::from_entropy([1; 10]);
    client
        .open_endpoint(machine, Generation(1), EndpointPort::Docker)
        .await
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_unreachable() {
    let dir = tempfile::tempdir().expect("a directory");
    let client = HostClient::new(&dir.path().join("nobody.sock"));
    match client.info().await {
        Err(HostClientError::Unreachable { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn answers_that_are_none_are_refused() {
    let endpoint_without_descriptor = frame(&HostReply::Endpoint);
    let another_answer = frame(&HostReply::Done);
    let no_json = [&3u32.to_be_bytes()[..], b"no!"].concat();
    for answer in [endpoint_without_descriptor, another_answer, no_json] {
        let (_dir, socket) = daemon(answer, false);
        match open(&HostClient::new(&socket)).await {
            Err(HostClientError::Protocol(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let too_large = u32::MAX.to_be_bytes().to_vec();
    let cut_short = 5u32.to_be_bytes().to_vec();
    for (answer, hang_up) in [(too_large, false), (cut_short, true)] {
        let (_dir, socket) = daemon(answer, hang_up);
        match open(&HostClient::new(&socket)).await {
            Err(HostClientError::Unreachable { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_keeps_its_code() {
    let (code, message) = (HostErrorCode::NotFound, "gone");
    let (_dir, socket) = daemon(
        frame(&HostReply::Error(HostError::new(code, message))),
        false,
    );
    let client = HostClient::new(&socket);
    for _ in 0..3 {
        let refused = open(&client).await.expect_err("refused");
        assert_eq!(refused.code(), Some(HostErrorCode::NotFound));
    }
}

#[tokio::test]
async fn a_kept_connection_that_has_died_is_replaced() {
    let (_dir, socket) = daemon(frame(&no_machines()), true);
    let client = HostClient::new(&socket);
    for _ in 0..5 {
        assert_eq!(client.machines().await.expect("an answer").at.revision, 7);
    }
}

/// A daemon that never answers to an endpoint of one machine, and to all else at once. Gives the most endpoints that it was asked
/// for at once.
fn daemon_of_a_deaf_machine(deaf: MachineId) -> (tempfile::TempDir, PathBuf, Arc<AtomicUsize>) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("host.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let machines = frame(&no_machines());
    let (code, message) = (HostErrorCode::NotFound, "gone");
    let gone = frame(&HostReply::Error(HostError::new(code, message)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (deaf, count) = (deaf.clone(), Arc::clone(&count));
            let (machines, gone) = (machines.clone(), gone.clone());
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u32().await {
                    let mut body = vec![0; length as usize];
                    stream.read_exact(&mut body).await.expect("a body");
                    let frame: HostRequestFrame = serde_json::from_slice(&body).expect("a request");
                    let HostRequest::OpenEndpoint { machine, .. } = frame.request else {
                        stream.write_all(&machines).await.expect("written");
                        continue;
                    };
                    if machine == deaf {
                        count.fetch_add(1, Ordering::SeqCst);
                        std::future::pending::<()>().await;
                    }
                    stream.write_all(&gone).await.expect("written");
                }
            });
        }
    });
    (dir, socket, asked)
}

#[tokio::test]
async fn a_machine_that_takes_no_connections_holds_up_its_own_callers_alone() {
    let deaf = MachineId::from_entropy([9; 10]);
    let (_dir, socket, asked) = daemon_of_a_deaf_machine(deaf.clone());
    let client = HostClient::new(&socket);
    let callers: Vec<_> = (0..HOST_ENDPOINTS_MAX * 4)
        .map(|_| {
            let (client, deaf) = (client.clone(), deaf.clone());
            tokio::spawn(async move {
                client
                    .open_endpoint(deaf, Generation(1), EndpointPort::Docker)
                    .await
            })
        })
        .collect();
    while asked.load(Ordering::SeqCst) < HOST_PORT_ENDPOINTS_MAX {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        let refused = open(&client).await.expect_err("another machine's");
        assert_eq!(refused.code(), Some(HostErrorCode::NotFound));
        assert_eq!(client.machines().await.expect("an answer").at.revision, 7);
    }
    assert_eq!(asked.load(Ordering::SeqCst), HOST_PORT_ENDPOINTS_MAX);
    for caller in callers {
        caller.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_busy_machine_is_told_so() {
    let deaf = MachineId::from_entropy([9; 10]);
    let (code, message) = (HostErrorCode::Busy, "full");
    let (_dir, socket) = daemon(
        frame(&HostReply::Error(HostError::new(code, message))),
        false,
    );
    let client = HostClient::new(&socket);
    let began = tokio::time::Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..HOST_PORT_ENDPOINTS_MAX * 10 {
        let (client, deaf) = (client.clone(), deaf.clone());
        callers.spawn(async move {
            client
                .open_endpoint(deaf, Generation(1), EndpointPort::Docker)
                .await
        });
    }
    while let Some(answer) = callers.join_next().await {
        let refused = answer.expect("ended").expect_err("busy");
        assert_eq!(refused.code(), Some(HostErrorCode::Busy));
    }
    assert!(
        began.elapsed() >= ENDPOINT_BUSY_PAUSE * 9,
        "all callers together ask no more often"
    );
}

/// A daemon that speaks these versions. It says which, or is of the release before hosts said so, which takes no field that it does not
/// know.
fn daemon_of_version(
    socket: &std::path::Path,
    speaks: VersionRange,
    says: bool,
) -> tokio::task::JoinHandle<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).expect("a socket");
    tokio::spawn(async move {
        // Aborted together with this task.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                while let Ok(length) = stream.read_u32().await {
                    let mut body = vec![0; length as usize];
                    stream.read_exact(&mut body).await.expect("a body");
                    let asked: serde_json::Value = serde_json::from_slice(&body).expect("json");
                    let version = asked["version"].as_u64().and_then(|n| n.try_into().ok());
                    let known = ["version", "request", "lease"];
                    let fields = asked.as_object().expect("a frame");
                    let knows = says || fields.keys().all(|name| known.contains(&name.as_str()));
                    let reply = if !version.is_some_and(|version| speaks.has(version)) || !knows {
                        HostReply::Error(HostError {
                            speaks: says.then_some(speaks),
                            ..HostError::new(HostErrorCode::BadRequest, "another version")
                        })
                    } else if asked["request"]["verb"] == "list_volumes" {
                        HostReply::Volumes {
                            volumes: vec![volume(1), volume(2)],
                            more: false,
                        }
                    } else if asked["request"]["verb"] == "watch_machines" {
                        no_machines()
                    } else {
                        HostReply::Done
                    };
                    stream.write_all(&frame(&reply)).await.expect("written");
                }
            });
        }
    })
}

fn volume(n: u8) -> VolumeReport {
    VolumeReport {
        volume: VolumeId::from_entropy([n; 10]),
        size_bytes: 1,
        used_bytes: 1,
        attached_to: None,
        encrypted: false,
    }
}

fn fence(n: u8) -> VolumeFence {
    VolumeFence {
        volume: VolumeId::from_entropy([n; 10]),
        number: Fence(1),
    }
}

#[tokio::test]
async fn a_host_of_the_release_before_and_of_the_next_one_is_used_and_a_stranger_one_is_told_from_them()
 {
    let range = |oldest, newest| VersionRange { oldest, newest };
    for (speaks, says) in [
        (range(2, 2), false),
        (range(2, 3), true),
        (range(3, 4), true),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("host.sock");
        let daemon = daemon_of_version(&socket, speaks, says);
        let client = HostClient::new(&socket);
        client.destroy_volume(fence(1)).await.expect("done");
        assert_eq!(client.volumes().await.expect("listed").len(), 2);
        if !says {
            // It has no verb for one volume.
            let shown = client.show_volume(fence(2)).await.expect("shown");
            assert_eq!(shown, Some(volume(2)));
            assert_eq!(client.show_volume(fence(3)).await.expect("shown"), None);
        }
        let mut watch = client.watch().await.expect("watched");
        let wait = std::time::Duration::ZERO;
        watch.next(None, wait).await.expect("machines");
        daemon.abort();
    }
    for (speaks, says, told) in [(range(4, 5), true, "4 to 5"), (range(1, 1), true, "1")] {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("host.sock");
        let daemon = daemon_of_version(&socket, speaks, says);
        let client = HostClient::new(&socket);
        let refused = client.volumes().await.expect_err("another version");
        assert!(
            matches!(refused, HostClientError::OtherVersion(_)),
            "{refused:?}"
        );
        let words = refused.to_string();
        let both = format!(
            "the host speaks version {told} of the host API, and this control plane 2 to 3"
        );
        assert!(words.contains(&both), "{words}");
        client.watch().await.expect_err("another version");
        daemon.abort();
    }
}

#[tokio::test]
async fn a_host_that_was_replaced_by_one_of_another_version_is_asked_in_its_own() {
    let range = |oldest, newest| VersionRange { oldest, newest };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("host.sock");
    let mut daemon = daemon_of_version(&socket, range(2, 3), true);
    let client = HostClient::new(&socket);
    client.destroy_volume(fence(1)).await.expect("done");
    for (speaks, says) in [
        (range(2, 2), false),
        (range(3, 4), true),
        (range(2, 2), false),
    ] {
        // It is gone before another one begins.
        daemon.abort();
        let _aborted = daemon.await;
        daemon = daemon_of_version(&socket, speaks, says);
        client.destroy_volume(fence(1)).await.expect("done");
        client.watch().await.expect("watched");
        client.destroy_volume(fence(1)).await.expect("done");
    }
    daemon.abort();
}

#[tokio::test]
async fn a_list_that_does_not_end_is_refused() {
    let endless = HostReply::Volumes {
        volumes: vec![volume(1), volume(2)],
        more: true,
    };
    let empty = HostReply::Volumes {
        volumes: vec![],
        more: true,
    };
    for answer in [endless, empty] {
        let (_dir, socket) = daemon(frame(&answer), false);
        match HostClient::new(&socket).volumes().await {
            Err(HostClientError::Protocol(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

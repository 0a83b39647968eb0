//! The client of the host API against daemons that do not keep to the protocol.

use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, HostError, HostErrorCode, HostReply, HostRequest, HostRequestFrame,
};
use slipway_core::id::MachineId;
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
    let machines = vec![];
    let (_dir, socket) = daemon(
        frame(&HostReply::Machines {
            revision: 7,
            machines,
        }),
        true,
    );
    let client = HostClient::new(&socket);
    for _ in 0..5 {
        assert_eq!(client.machines().await.expect("an answer").revision, 7);
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
    let machines = frame(&HostReply::Machines {
        revision: 7,
        machines: vec![],
    });
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
        assert_eq!(client.machines().await.expect("an answer").revision, 7);
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

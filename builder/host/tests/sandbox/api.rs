//! The socket: who may speak, and what nonsense gets.

use crate::client::Client;
use crate::harness::{Guest, Host, WAIT};
use slipway_core::host_api::{EndpointPort, HostErrorCode, HostReply};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

fn refusal(client: &mut Client) -> HostErrorCode {
    match client.receive().unwrap().0 {
        HostReply::Error(error) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nonsense_is_refused_and_the_daemon_goes_on() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let info = client.info();
    assert_eq!(info.drivers, ["sandbox"]);
    assert_eq!(info.pool_capacity_bytes, 40 << 30);
    assert_eq!(info.image.len(), 64);
    for (json, code) in [
        (
            r#"{"version":2,"request":{"verb":"something_new"}}"#,
            HostErrorCode::BadRequest,
        ),
        (
            r#"{"version":2,"request":{"verb":"reboot"}}"#,
            HostErrorCode::BadRequest,
        ),
        (
            r#"{"version":2,"request":{"verb":"destroy_volume","volume":"../../etc"}}"#,
            HostErrorCode::BadRequest,
        ),
        ("{", HostErrorCode::BadRequest),
        ("", HostErrorCode::BadRequest),
    ] {
        client.send_json(json.as_bytes()).unwrap();
        assert_eq!(refusal(&mut client), code, "{json}");
    }
    assert_eq!(client.info(), info, "the connection can still be used");
    client.send_raw(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(refusal(&mut client), HostErrorCode::BadRequest);
    assert!(
        client.receive().is_err(),
        "its place in the stream is lost, so it is closed"
    );
    assert_eq!(host.client().info(), info);
}

#[test]
fn only_root_and_listed_users_may_speak() {
    let Some(host) = Host::start_with(Guest::Idle, |settings, _| {
        settings["allowed_users"] = serde_json::json!(["nobody"]);
        settings["allowed_uids"] = serde_json::json!([65532]);
    }) else {
        return;
    };
    let socket = host.dir.join("host.sock");
    let found = std::fs::metadata(&socket).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o660, 0));
    std::fs::set_permissions(
        &host.dir,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    // `uid 65533` may not even open it; as a member of the socket's group it may, and is then refused by its id.
    let ask = |uid: &str, gid: &str| {
        let request = r#"{"version":2,"request":{"verb":"info"}}"#;
        let script = format!(
            "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => '{}') or exit 9; $s->print(pack('N', {}) . '{request}'); $s->flush; sysread($s, my $h, 4); sysread($s, my $b, 65536); print $b",
            socket.display(),
            request.len()
        );
        let output = Command::new("setpriv")
            .args([
                "--reuid",
                uid,
                "--regid",
                gid,
                "--clear-groups",
                "perl",
                "-e",
                &script,
            ])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    assert_eq!(ask("65533", "65533").0, Some(9));
    assert!(ask("65533", "0").1.contains("denied"));
    for listed in ["65534", "65532"] {
        assert!(ask(listed, "0").1.contains(r#""reply":"info""#));
    }
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let settings = serde_json::from_value(host.settings.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime
        .block_on(slipway_host::run(settings, std::future::pending()))
        .unwrap_err();
    assert!(
        matches!(error, slipway_host::HostRunError::AlreadyRunning { .. }),
        "{error}"
    );
    host.client().info();
}

#[test]
fn connections_beyond_the_bound_wait() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let request = br#"{"version":2,"request":{"verb":"info"}}"#;
    let clients: Vec<_> = (0..slipway_host::limits::CONNECTIONS_MAX)
        .map(|_| {
            let mut client = host.client();
            client.info();
            client
        })
        .collect();
    let mut over = host.client();
    over.send_json(request).unwrap();
    drop(clients);
    assert!(matches!(over.receive().unwrap().0, HostReply::Info(_)));
}

#[test]
fn whoever_may_not_speak_takes_no_place_from_those_who_may() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&host.dir, open).unwrap();
    // As a member of the socket's group, with more connections than there are places, all of them silent.
    let script = format!(
        "use IO::Socket::UNIX; my @held; for (1..{}) {{ my $s = IO::Socket::UNIX->new(Peer => '{}'); push @held, $s if $s; }} print \"held\\n\"; close STDOUT; sleep 600",
        slipway_host::limits::CONNECTIONS_MAX + 100,
        host.dir.join("host.sock").display(),
    );
    let mut crowd = Command::new("setpriv")
        .args(["--reuid", "65533", "--regid", "0", "--clear-groups"])
        .args(["perl", "-e", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut crowd.stdout.take().unwrap(), &mut said).unwrap();
    let info = host.client().info();
    crowd.kill().unwrap();
    crowd.wait().unwrap();
    assert_eq!(said, "held\n");
    assert_eq!(info.drivers, ["sandbox"]);
}

#[test]
fn a_machine_that_accepts_no_connections_starves_nobody() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let deaf = host.machine(&mut client, 1).machine;
    let other = host.machine(&mut client, 2).machine;
    // Nobody accepts in there. A connection stays in the backlog when its other end has gone.
    let open = |client: &mut Client| client.open(&deaf, 1, EndpointPort::Docker).map(drop);
    let began = Instant::now();
    while open(&mut client).is_ok() {
        assert!(began.elapsed() < WAIT, "the backlog never fills");
    }
    let callers: Vec<_> = (0..slipway_host::limits::OPENING_PER_PORT_MAX * 4)
        .map(|_| {
            let mut client = host.client();
            let deaf = deaf.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    let opened = client.open(&deaf, 1, EndpointPort::Docker).map(drop);
                    assert_eq!(opened, Err(HostErrorCode::Busy));
                }
            })
        })
        .collect();
    client.info();
    client.open(&other, 1, EndpointPort::Docker).unwrap();
    client.open(&deaf, 1, EndpointPort::Guest).unwrap();
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(
        began.elapsed() < WAIT,
        "the answer busy waits for the machine"
    );
}

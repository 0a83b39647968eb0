//! Verbs on volumes of a machine that runs: kept, forked, extended, exported and imported, and what leases of keys get.

use crate::client::Client;
use crate::harness::{Guest, Host};
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    Cloning, HostErrorCode, HostReply, HostRequest, ImportPart, VolumeSource,
};
use slipway_core::id::{SnapshotId, VolumeId};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn error(reply: HostReply) -> HostErrorCode {
    match reply {
        HostReply::Error(error) => error.code,
        other => panic!("{other:?}"),
    }
}

fn stream(client: &mut Client, request: HostRequest) -> (u64, UnixStream) {
    match client.ask(request) {
        (HostReply::Stream { offset_bytes }, Some(fd)) => (offset_bytes, UnixStream::from(fd)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_machine_s_volume_is_kept_forked_extended_and_moved() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let first = host.machine(&mut client, 1);
    host.inside(&first.machine, "echo then > /var/lib/docker/file");
    let snapshot = SnapshotId::from_entropy([1; 10]);
    let create = HostRequest::CreateSnapshot {
        volume: first.volume.clone(),
        snapshot: snapshot.clone(),
    };
    for _ in 0..2 {
        match client.ask(create.clone()).0 {
            HostReply::Snapshot(report) => assert_eq!(report.size_bytes, 4 << 30),
            other => panic!("{other:?}"),
        }
    }
    host.inside(&first.machine, "echo now > /var/lib/docker/file");
    let extend = HostRequest::ExtendVolume {
        volume: first.volume.clone(),
        size_bytes: 5 << 30,
    };
    match client.ask(extend).0 {
        HostReply::Volume(report) => assert_eq!(report.size_bytes, 5 << 30),
        other => panic!("{other:?}"),
    }
    let shrink = HostRequest::ExtendVolume {
        volume: first.volume.clone(),
        size_bytes: 4 << 30,
    };
    assert_eq!(error(client.ask(shrink).0), HostErrorCode::BadRequest);

    // Another machine on what the first one's volume held; and one on what came out and in again.
    let restored = host.spec(2, 1);
    let restore = HostRequest::EnsureVolume {
        volume: restored.volume.clone(),
        size_bytes: 4 << 30,
        source: Some(VolumeSource::Snapshot {
            snapshot: snapshot.clone(),
        }),
    };
    assert!(matches!(client.ask(restore).0, HostReply::Volume(_)));
    let export = HostRequest::ExportSnapshot {
        snapshot: snapshot.clone(),
        offset_bytes: 0,
        sealed: false,
    };
    let mut exported = Vec::new();
    let (_, mut from) = stream(&mut client, export);
    from.read_to_end(&mut exported).unwrap();
    check_sealed(&mut client, host.spec(4, 1).volume, &exported);
    // From another host it is as it was; what a tenant sends, no kernel of a host mounts.
    let moved = host.spec(3, 1);
    let sent = host.spec(5, 1);
    arrives(&mut client, &moved.volume, true, &exported);
    arrives(&mut client, &sent.volume, false, &exported);
    assert_eq!(client.ensure(&sent), Err(HostErrorCode::VolumeForeign));
    for spec in [&restored, &moved] {
        client.ensure(spec).unwrap();
        let said = host.inside(&spec.machine, "cat /var/lib/docker/file");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "then\n", "{said:?}");
    }
    match client.ask(HostRequest::ListSnapshots).0 {
        HostReply::Snapshots { snapshots, .. } => assert_eq!(snapshots.len(), 1),
        other => panic!("{other:?}"),
    }
    let delete = HostRequest::DeleteSnapshot { snapshot };
    for _ in 0..2 {
        assert_eq!(client.ask(delete.clone()).0, HostReply::Done);
    }
}

/// `host`: it comes from another host.
fn arrives(client: &mut Client, volume: &VolumeId, host: bool, exported: &[u8]) {
    let import = HostRequest::ImportVolume {
        volume: volume.clone(),
        size_bytes: 4 << 30,
        sealed: host,
        part: ImportPart::Whole,
    };
    let (offset, mut to) = stream(client, import);
    assert_eq!(offset, 0);
    to.write_all(exported).unwrap();
    to.shutdown(Shutdown::Write).unwrap();
    let mut told = Vec::new();
    to.read_to_end(&mut told).unwrap();
    match serde_json::from_slice(&told).unwrap() {
        HostReply::Volume(report) => assert_eq!(report.volume, *volume),
        other => panic!("{other:?}"),
    }
}

/// One that says to be as on an encrypted disk is not taken from whoever did not say so.
fn check_sealed(client: &mut Client, volume: VolumeId, exported: &[u8]) {
    let import = HostRequest::ImportVolume {
        volume,
        size_bytes: 4 << 30,
        sealed: false,
        part: ImportPart::Whole,
    };
    let (_, mut to) = stream(client, import);
    let mut sealed = exported.to_vec();
    sealed[8] = 1;
    // It may be refused before all is written.
    let _ = to.write_all(&sealed);
    let mut told = Vec::new();
    // What it has not read makes the end of it a reset.
    let _ = to.read_to_end(&mut told);
    match serde_json::from_slice(&told).unwrap() {
        HostReply::Error(error) => assert_eq!(error.code, HostErrorCode::BadRequest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_are_taken_with_a_lease_and_for_what_is_newest() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let info = client.info();
    assert!(!info.encrypts);
    assert!(matches!(
        info.cloning,
        Cloning::FullCopy | Cloning::Reflink | Cloning::Thin
    ));
    assert_eq!(
        error(client.ask(HostRequest::LendKey).0),
        HostErrorCode::BadRequest,
        "without a lease"
    );
    let volume = VolumeId::from_entropy([1; 10]);
    let mut lend = |generation: u64| {
        let key = "ab".repeat(64);
        let frame = format!(
            r#"{{"version":2,"request":{{"verb":"lend_key"}},"lease":{{"volume":"{volume}","machine":null,"generation":{generation},"ttl_ms":1000,"key":"{key}"}}}}"#
        );
        client.send_json(frame.as_bytes()).unwrap();
        client.receive().unwrap().0
    };
    assert_eq!(lend(3), HostReply::Done);
    assert_eq!(lend(3), HostReply::Done, "renewed");
    assert_eq!(error(lend(2)), HostErrorCode::StaleGeneration);
    let revoke = HostRequest::RevokeKey {
        volume: volume.clone(),
        generation: Generation(4),
    };
    assert_eq!(host.client().ask(revoke).0, HostReply::Done);
    assert_eq!(error(lend(3)), HostErrorCode::StaleGeneration);
    assert!(!host.log().contains("abab"), "a key in the log");
}

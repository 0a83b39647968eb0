//! What keeps orders of the past from being done, and lists that are long.

use crate::client::Client;
use crate::harness::{Guest, Host};
use slipway_core::fence::{Fence, VolumeFence};
use slipway_core::host_api::{
    HostErrorCode, HostReply, HostRequest, HostRequestFrame, ImportPart, MachineSpec, Page,
    VersionRange,
};
use slipway_core::id::{SnapshotId, VolumeId};
use slipway_core::limits::HOST_API_PAGE_MAX;
use std::fs::File;
use std::time::{Duration, Instant};

fn fence(volume: &VolumeId, number: u64) -> VolumeFence {
    VolumeFence {
        volume: volume.clone(),
        number: Fence(number),
    }
}

fn code(reply: &HostReply) -> Option<HostErrorCode> {
    match reply {
        HostReply::Error(error) => Some(error.code),
        _ => None,
    }
}

/// Every verb that changes a volume, or gives it to a machine.
fn verbs(host: &Host, volume: &VolumeId) -> Vec<HostRequest> {
    let machine = MachineSpec {
        volume: volume.clone(),
        ..host.spec(1, 1)
    };
    let (volume, size_bytes) = (volume.clone(), 2 << 30);
    vec![
        HostRequest::EnsureVolume {
            volume: volume.clone(),
            size_bytes,
            source: None,
        },
        HostRequest::ExtendVolume {
            volume: volume.clone(),
            size_bytes,
        },
        HostRequest::CreateSnapshot {
            volume: volume.clone(),
            snapshot: SnapshotId::from_entropy([8; 10]),
        },
        HostRequest::DeleteSnapshot {
            snapshot: SnapshotId::from_entropy([8; 10]),
        },
        HostRequest::ImportVolume {
            volume: volume.clone(),
            size_bytes,
            sealed: true,
            part: ImportPart::Whole,
        },
        HostRequest::ShowVolume {
            volume: volume.clone(),
        },
        HostRequest::DestroyVolume { volume },
        HostRequest::EnsureMachine(machine),
    ]
}

#[test]
fn an_order_that_comes_late_is_not_done_also_after_a_restart_and_a_destruction() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let volume = VolumeId::from_entropy([1; 10]);
    let ensure = verbs(&host, &volume).remove(0);
    let show = HostRequest::ShowVolume {
        volume: volume.clone(),
    };
    let destroy = HostRequest::DestroyVolume {
        volume: volume.clone(),
    };
    let mut client = host.client();
    let made = client.ask_fenced(ensure.clone(), &fence(&volume, 4));
    assert!(matches!(made, HostReply::Volume(_)), "{made:?}");
    // A copy was chosen: from now on nothing older is done to it.
    let shown = client.ask_fenced(show.clone(), &fence(&volume, 5));
    assert!(matches!(shown, HostReply::Volume(_)), "{shown:?}");
    for restarts in 0..2 {
        let mut client = host.client();
        for late in verbs(&host, &volume) {
            let refused = client.ask_fenced(late.clone(), &fence(&volume, 4));
            assert_eq!(code(&refused), Some(HostErrorCode::StaleFence), "{late:?}");
        }
        // Who has no numbers is of a time before them, and may not know the word for it.
        let old = HostRequestFrame {
            version: 2,
            ..destroy.clone().into()
        };
        let refused = client.ask_frame(&old).0;
        assert_eq!(code(&refused), Some(HostErrorCode::StaleGeneration));
        let start = HostRequest::EnsureMachine(host.spec(1, 1));
        let refused = client.ask_fenced(start.clone(), &fence(&VolumeId::from_entropy([2; 10]), 9));
        assert_eq!(code(&refused), Some(HostErrorCode::BadRequest));
        let old = HostRequestFrame {
            version: 2,
            ..start.into()
        };
        let refused = client.ask_frame(&old).0;
        assert_eq!(code(&refused), Some(HostErrorCode::StaleGeneration));
        let others = fence(&VolumeId::from_entropy([2; 10]), 9);
        let refused = client.ask_fenced(destroy.clone(), &others);
        assert_eq!(code(&refused), Some(HostErrorCode::BadRequest));
        assert_eq!(client.volumes().len(), 1, "after {restarts} restarts");
        host.kill_daemon();
        host.start_daemon();
    }
    let mut client = host.client();
    for _ in 0..2 {
        let destroyed = client.ask_fenced(destroy.clone(), &fence(&volume, 6));
        assert_eq!(destroyed, HostReply::Done);
    }
    host.kill_daemon();
    host.start_daemon();
    let mut client = host.client();
    let refused = client.ask_fenced(ensure.clone(), &fence(&volume, 5));
    assert_eq!(code(&refused), Some(HostErrorCode::StaleFence));
    assert_eq!(client.volumes(), [], "nobody's volume comes back");
    let gone = client.ask_fenced(show, &fence(&volume, 7));
    assert_eq!(code(&gone), Some(HostErrorCode::NotFound));
    let anew = client.ask_fenced(ensure, &fence(&volume, 8));
    assert!(matches!(anew, HostReply::Volume(_)), "{anew:?}");
}

#[test]
fn a_destruction_that_waits_behind_an_import_is_held_against_what_was_decided_meanwhile() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let volume = VolumeId::from_entropy([1; 10]);
    let import = verbs(&host, &volume).remove(4);
    let destroy = verbs(&host, &volume).remove(6);
    let mut client = host.client();
    let began = client.ask_frame(&HostRequestFrame {
        fence: Some(fence(&volume, 2)),
        ..import.into()
    });
    let (HostReply::Stream { .. }, Some(stream)) = began else {
        panic!("{began:?}");
    };
    // It comes while the import is under way, and is late already.
    let mut late = host.client();
    let refused = std::thread::spawn(move || late.ask_fenced(destroy, &fence(&volume, 1)));
    drop(stream);
    assert_eq!(
        code(&refused.join().unwrap()),
        Some(HostErrorCode::StaleFence)
    );
}

/// All pages of a list, by the ids that `take` gives with whether there are more.
fn all_pages(
    client: &mut Client,
    list: &HostRequest,
    take: impl Fn(HostReply) -> (Vec<String>, bool),
) -> Vec<Vec<String>> {
    let mut pages: Vec<Vec<String>> = Vec::new();
    loop {
        let after = pages.last().and_then(|page| page.last().cloned());
        let page = Some(Page {
            after,
            max: u32::MAX,
        });
        let reply = client.ask_frame(&HostRequestFrame {
            page,
            ..list.clone().into()
        });
        let (ids, more) = take(reply.0);
        pages.push(ids);
        if !more {
            return pages;
        }
    }
}

#[test]
fn lists_come_in_pages_however_long_they_are() {
    const SNAPSHOTS: u32 = 9000;
    const VOLUMES: u32 = 1200;
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let id = |n: u32| {
        let mut bytes = [0; 10];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        bytes
    };
    // As the pool keeps them: images that take no blocks.
    let pool = host.dir.join("pool");
    for n in 0..VOLUMES {
        let name = format!("volumes/{}.img", VolumeId::from_entropy(id(n)));
        File::create(pool.join(name))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
    }
    for n in 0..SNAPSHOTS {
        let (snapshot, volume) = (id(n), id(n % VOLUMES));
        let (snapshot, volume) = (
            SnapshotId::from_entropy(snapshot),
            VolumeId::from_entropy(volume),
        );
        let name = format!("snapshots/{snapshot}.{volume}.img");
        File::create(pool.join(name)).unwrap();
    }
    let mut client = host.client();
    let snapshots = all_pages(&mut client, &HostRequest::ListSnapshots, |reply| {
        let HostReply::Snapshots { snapshots, more } = reply else {
            panic!("{reply:?}");
        };
        let ids = snapshots.iter().map(|it| it.snapshot.to_string());
        (ids.collect(), more)
    });
    let volumes = all_pages(&mut client, &HostRequest::ListVolumes, |reply| {
        let HostReply::Volumes { volumes, more } = reply else {
            panic!("{reply:?}");
        };
        let ids = volumes.iter().map(|it| it.volume.to_string());
        (ids.collect(), more)
    });
    for (pages, number) in [(snapshots, SNAPSHOTS), (volumes, VOLUMES)] {
        assert_eq!(pages.len(), number.div_ceil(HOST_API_PAGE_MAX) as usize);
        let ids: Vec<String> = pages.concat();
        assert_eq!(ids.len(), number as usize);
        assert!(ids.is_sorted(), "each once, in the order of ids");
    }
    // Who does not ask for pages gets all or a clear refusal, as before.
    let all = client.ask(HostRequest::ListSnapshots).0;
    assert_eq!(code(&all), Some(HostErrorCode::Failed));
    client.info();
}

#[test]
fn a_watch_of_another_life_of_the_daemon_is_answered_at_once() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let look = |host: &Host, epoch, after, wait: Duration| {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap();
        let watch = HostRequest::WatchMachines {
            epoch,
            after,
            wait_ms,
        };
        match host.client().ask(watch).0 {
            HostReply::Machines {
                epoch: Some(epoch),
                revision,
                ..
            } => (epoch, revision),
            other => panic!("{other:?}"),
        }
    };
    let first = look(&host, None, 0, Duration::ZERO);
    host.kill_daemon();
    host.start_daemon();
    let second = look(&host, None, 0, Duration::ZERO);
    assert_ne!(first.0, second.0);
    assert_eq!(first.1, second.1, "nothing but the epoch tells them apart");
    let wait = Duration::from_secs(25);
    let began = Instant::now();
    assert_eq!(look(&host, Some(first.0), first.1, wait), second);
    assert!(began.elapsed() < wait, "it waited for a change");
    let unchanged = Duration::from_millis(50);
    assert_eq!(look(&host, Some(second.0), second.1, unchanged), second);
}

#[test]
fn a_caller_of_another_version_is_told_both() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let of = |version| HostRequestFrame {
        version,
        ..HostRequest::Info.into()
    };
    for version in [2, 3] {
        let told = client.ask_frame(&of(version)).0;
        assert!(matches!(told, HostReply::Info(_)), "{told:?}");
    }
    for version in [1, 4] {
        let HostReply::Error(error) = client.ask_frame(&of(version)).0 else {
            panic!("version {version} is taken");
        };
        assert_eq!(error.code, HostErrorCode::BadRequest);
        let speaks = VersionRange {
            oldest: 2,
            newest: 3,
        };
        assert_eq!(error.speaks, Some(speaks));
        let message = error.message.for_log();
        let both = format!("version {version} of the host API is not spoken here, 2 to 3 is");
        assert!(message.contains(&both), "{message}");
    }
}

//! Exports and imports: what breaks off goes on, what nobody goes on with goes.

use super::*;
use bytes::Bytes;
use common::{HEAD, stream_of};
use slipway_core::limits::HOST_API_FRAME_BYTES_MAX;
use slipway_scheduler::farm::{AskedImport, BodyEnded, ImportedSoFar};
use tokio::sync::mpsc;

fn contents() -> Vec<u8> {
    (0..2 * HOST_API_FRAME_BYTES_MAX)
        .map(|n| u8::try_from(n % 251).expect("small"))
        .collect()
}

async fn importing(bed: &Bed, org: &OrgId, size: u64) -> Volume {
    let import = Some(AskedImport {
        digest: Some("ab".repeat(32)),
    });
    let made = bed.farm.create_volume(
        org,
        AskedVolume {
            import,
            ..asked(size)
        },
    );
    let made = made.await.expect("made");
    assert_eq!(made.state, VolumeState::Planned);
    assert!(made.import.is_some() && made.notice.is_none(), "{made:?}");
    made
}

/// Sends these bytes; then the end, or that it stopped.
async fn send(bed: &Bed, volume: &Volume, bytes: &[u8], whole: bool) -> Result<Volume, FarmError> {
    let (to, body) = mpsc::channel(1);
    let pieces: Vec<Bytes> = bytes.chunks(10_000).map(Bytes::copy_from_slice).collect();
    tokio::spawn(async move {
        for piece in pieces {
            if to.send(Ok(piece)).await.is_err() {
                return;
            }
        }
        if !whole {
            let _ = to.send(Err(BodyEnded)).await;
        }
    });
    bed.farm.import_volume(&volume.org, &volume.id, body).await
}

async fn so_far(bed: &Bed, volume: &Volume) -> ImportedSoFar {
    let so_far = bed.farm.imported_so_far(&volume.org, &volume.id);
    so_far.await.expect("told")
}

fn holds(bed: &Bed, id: &VolumeId) -> Option<Vec<u8>> {
    bed.world.lock().contents.get(id.as_str()).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported() {
    for bed in [Bed::start().await, Bed::start_encrypting().await] {
        let org = bed.org(HOUR).await.org;
        let volume = make(&bed, &org, 2).await;
        let contents = contents();
        let held = (volume.id.to_string(), contents.clone());
        bed.world.lock().contents.extend([held]);
        let kept = bed.farm.create_snapshot(&org, &volume.id).await;
        let kept = kept.expect("kept").id;
        for offset in [0, 1000] {
            let opened = bed.farm.export_snapshot(&org, &kept, offset as u64).await;
            let mut download = opened.expect("opened");
            let (mut all, mut piece) = (Vec::new(), [0; 5000]);
            loop {
                let read = download.read(&mut piece).await.expect("read");
                if read == 0 {
                    break;
                }
                all.extend_from_slice(&piece[..read]);
            }
            assert!(all == stream_of(&contents, offset), "{offset}");
        }

        let new = importing(&bed, &org, 3).await;
        assert_eq!(promised(&bed).await, 5, "counted from the beginning");
        assert_eq!(so_far(&bed, &new).await, ImportedSoFar::At(0));
        for refused in [
            bed.farm
                .extend_volume(&org, &new.id, ByteSize::gib(9))
                .await
                .map(drop),
            bed.farm.create_snapshot(&org, &new.id).await.map(drop),
        ] {
            assert_eq!(refused.expect_err("it is not there").fault(), Fault::User);
        }
        let made = send(&bed, &new, &stream_of(&contents, 0), true).await;
        let made = made.expect("whole");
        assert_eq!((made.state, made.import), (VolumeState::Ready, None));
        assert!(holds(&bed, &new.id) == Some(contents));
        assert_eq!(so_far(&bed, &new).await, ImportedSoFar::Whole);
        let again = send(&bed, &new, b"more", true).await;
        assert!(matches!(
            again,
            Err(FarmError::Volume(VolumeError::NotImporting))
        ));
        let leases = bed.world.lock().leases.clone();
        assert!(leases.is_empty(), "still lent: {leases:?}");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_also_after_a_restart() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let contents = contents();
    let new = importing(&bed, &org, 3).await;
    let half = HEAD + contents.len() / 2;
    let whole = stream_of(&contents, 0);
    let cut = send(&bed, &new, &whole[..half], false).await;
    assert!(matches!(
        cut,
        Err(FarmError::Volume(VolumeError::BrokenOff))
    ));
    // An end that is none is the sender's mistake, and takes nothing away.
    let short = send(&bed, &new, &whole[..half], true).await;
    let error = short.expect_err("it is not whole");
    assert_eq!((error.fault(), error.hint().is_some()), (Fault::User, true));
    for rubbish in [&b"rubbish"[..], &[255; 100]] {
        let error = send(&bed, &new, rubbish, true).await.expect_err("rubbish");
        assert_eq!(error.fault(), Fault::User);
    }
    bed.restart_farm().await;
    bed.kill_daemon().await;
    bed.start_daemon();
    let ImportedSoFar::At(offset) = eventually("the host answers", || async {
        bed.farm.imported_so_far(&org, &new.id).await.ok()
    })
    .await
    else {
        panic!("it is not whole");
    };
    assert_eq!(offset, (half - HEAD) as u64);
    let rest = stream_of(&contents, half - HEAD);
    let made = send(&bed, &new, &rest, true).await.expect("whole");
    assert_eq!(made.state, VolumeState::Ready);
    assert!(holds(&bed, &new.id) == Some(contents));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_became_whole_while_nobody_looked_is_found() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let new = importing(&bed, &org, 3).await;
    // As if the control plane had died between the host's word and its own record.
    let disk = Disk {
        size: new.size.0,
        used: 5,
        source: None,
        encrypted: false,
    };
    bed.world.lock().volumes.insert(new.id.clone(), disk);
    assert_eq!(so_far(&bed, &new).await, ImportedSoFar::Whole);
    let other = importing(&bed, &org, 3).await;
    let disk = Disk {
        size: other.size.0,
        used: 5,
        source: None,
        encrypted: false,
    };
    bed.world.lock().volumes.insert(other.id.clone(), disk);
    bed.restart_farm().await;
    settled(&bed, &org, &other.id, "the keeper finds it").await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_goes_on_with_goes() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let (forgotten, fresh) = (
        importing(&bed, &org, 3).await,
        importing(&bed, &org, 4).await,
    );
    let begun = stream_of(&contents(), 0);
    for volume in [&forgotten, &fresh] {
        send(&bed, volume, &begun[..100], false)
            .await
            .expect_err("cut");
    }
    let over = bed.store.keep_import(&org, &forgotten.id, Timestamp(1));
    over.await.expect("recorded");
    bed.restart_farm().await;
    eventually("it is gone", || async {
        (promised(&bed).await == 4).then_some(())
    })
    .await;
    assert!(!bed.world.lock().imports.contains_key(&forgotten.id));
    assert!(bed.world.lock().imports.contains_key(&fresh.id));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_is_sent_and_who_destroys_does_not_wait_for_it() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let new = importing(&bed, &org, 3).await;
    let (to, body) = mpsc::channel(1);
    let sending = tokio::spawn({
        let (farm, org, id) = (bed.farm.clone(), org.clone(), new.id.clone());
        async move { farm.import_volume(&org, &id, body).await }
    });
    let begun = Bytes::from(stream_of(&contents(), 0)).slice(..5000);
    to.send(Ok(begun)).await.expect("taken");
    eventually("some has arrived", || async {
        bed.world.lock().imports.contains_key(&new.id).then_some(())
    })
    .await;
    let second = send(&bed, &new, b"mine", true).await;
    assert!(matches!(
        second,
        Err(FarmError::Volume(VolumeError::BeingSent))
    ));
    let gone = bed.farm.destroy_volume(&org, &new.id, true).await;
    assert_eq!(gone.expect("gone").state, VolumeState::Deleting);
    let cut = sending.await.expect("it ends");
    cut.expect_err("it is gone");
    assert_eq!(promised(&bed).await, 0);
    assert_eq!(on_host(&bed), (vec![], vec![]));
    assert!(bed.world.lock().imports.is_empty());
    let late = send(&bed, &new, b"late", true).await;
    assert_eq!(late.expect_err("there is none").fault(), Fault::User);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_takes_it_leaves_nothing() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    for code in [HostErrorCode::NoSpace, HostErrorCode::Unsupported] {
        let new = importing(&bed, &org, 3).await;
        bed.world.lock().refuse_volumes.push_back(code);
        let whole = stream_of(b"contents", 0);
        send(&bed, &new, &whole, true).await.expect_err("refused");
        assert_eq!(promised(&bed).await, 0, "{code:?}");
    }
    // One that is busy now may take it later.
    let new = importing(&bed, &org, 3).await;
    bed.world
        .lock()
        .refuse_volumes
        .push_back(HostErrorCode::Busy);
    let whole = stream_of(b"contents", 0);
    let busy = send(&bed, &new, &whole, true).await.expect_err("busy");
    assert_eq!(busy.fault(), Fault::System);
    send(&bed, &new, &whole, true).await.expect("taken");
    bed.end().await;
}

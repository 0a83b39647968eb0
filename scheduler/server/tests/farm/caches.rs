//! Builders' caches: which failures cost one and which do not, their keys, what is kept aside, and the room for them.

use super::*;
use slipway_core::fence::Fence;
use slipway_scheduler::farm::VolumeError;
use slipway_store::VolumeState;

/// As after a move that an older database does not know of.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_does_not_start_on_a_cache_that_its_host_knows_more_of() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let volume = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    in_state(&bed.farm, &key, "stopped").await;
    let later = Fence(1 << 20);
    bed.world.lock().fences.insert(volume.clone(), later);
    bed.farm.ensure_builder(&key).await.expect("ensured");
    let said = eventually("a refusal", || async {
        bed.farm.builder(&key).expect("there").last_error
    })
    .await;
    assert!(said.contains("later orders about its cache"), "{said}");
    assert_eq!(bed.world.starts(), 1, "it started on what may be stale");
    assert_eq!(bed.farm.builder(&key).expect("there").volume, volume);
    bed.end().await;
}

/// A start that has no key is tried again, and the cache is not thrown away for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_store_that_is_away_delays_starts_and_ends_nothing() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    bed.outage.lasts.store(true, Ordering::Relaxed);
    let volume = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    let said = eventually("what is missing", || async {
        bed.farm.builder(&key).expect("there").last_error
    })
    .await;
    assert!(said.contains("the key store does not answer"), "{said}");
    // Longer than three starts may fail before a builder gets another volume.
    eventually("more tries", || async {
        (bed.outage.asked.load(Ordering::Relaxed) >= 5).then_some(())
    })
    .await;
    assert_eq!(bed.world.starts(), 0, "it started without a key");
    bed.outage.lasts.store(false, Ordering::Relaxed);
    in_state(&bed.farm, &key, "running").await;
    assert_eq!(bed.farm.builder(&key).expect("there").volume, volume);

    bed.outage.lasts.store(true, Ordering::Relaxed);
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    bed.farm.stop_builder(&key).await.expect("stopped");
    in_state(&bed.farm, &key, "stopped").await;
    bed.end().await;
}

/// What runs goes on, and its lease is renewed soon after the key store answers again.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_store_that_is_away_at_a_renewal_ends_nothing() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    in_state(&bed.farm, &key, "running").await;
    let lends = || bed.world.lock().lends;
    let renewed_after = |before: u32| {
        eventually("a renewal", move || async move {
            (lends() > before).then_some(())
        })
    };
    renewed_after(lends()).await;

    bed.outage.lasts.store(true, Ordering::Relaxed);
    eventually("renewals that fail", || async {
        (bed.outage.asked.load(Ordering::Relaxed) >= 5).then_some(())
    })
    .await;
    ping(&mut stream).await.expect("an answer");
    in_state(&bed.farm, &key, "running").await;
    let before = lends();
    bed.outage.lasts.store(false, Ordering::Relaxed);
    renewed_after(before).await;
    assert_eq!(bed.world.starts(), 1, "it started anew");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_will_not_start_gets_an_empty_cache_once() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(first.clone());
    // The caller's connection does not fail for it.
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    let view = bed.farm.builder(&key).expect("there");
    assert_ne!(view.volume, first);
    assert!(
        view.notice
            .expect("the owner is told")
            .contains(first.as_str())
    );
    let kept = bed.store.volume(&key.org, &first).await.expect("kept");
    assert_eq!(kept.state, VolumeState::Aside);
    // It can be thrown away, and its room comes back.
    bed.farm
        .destroy_volume(&key.org, &first, true)
        .await
        .expect("destroyed");
    let promised = bed.store.hosts().await.expect("hosts")[0].pool_promised;
    assert_eq!(promised.0, 1 << 30);
    assert!(matches!(
        bed.farm.destroy_volume(&key.org, &view.volume, true).await,
        Err(FarmError::Volume(VolumeError::Attached))
    ));
    bed.end().await;
}

/// Whatever a host cannot do, it says nothing about the cache: a slow disk, a full table, a network that cannot be made.
#[tokio::test(flavor = "multi_thread")]
async fn failed_starts_never_cost_a_cache_and_callers_are_told() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::Failed; 100]);
    match bed.farm.connect(&key, EndpointPort::Docker).await {
        Err(FarmError::WontStart(why)) => {
            assert!(why.contains("its host could not start it"), "{why}");
            assert!(!why.contains("test:"), "the host's own words: {why}");
        }
        other => panic!("{other:?}"),
    }
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!((view.volume, view.notice), (first.clone(), None));
    assert_eq!(bed.store.volumes(&key.org).await.expect("listed").len(), 1);
    bed.world.lock().refuse_starts.clear();
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    assert_eq!(bed.farm.builder(&key).expect("there").volume, first);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_the_guest_found_damaged_is_replaced() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world.lock().hold_ready = true;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "booting").await;
    let view = bed.farm.builder(&key).expect("there");
    let generation = view.state.live_generation().expect("it lives");
    bed.world.lock().hold_ready = false;
    bed.world.end_damaged(&view.machine, generation);
    in_state(&bed.farm, &key, "running").await;
    let view = bed.farm.builder(&key).expect("there");
    assert_ne!(view.volume, first);
    assert!(view.notice.expect("told").contains(first.as_str()));
    bed.end().await;
}

/// Nothing is destroyed by itself: the owner is told what may be given up, and by which verb.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_that_there_is_no_room_to_replace_stays() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(first.clone());
    let host = bed.store.hosts().await.expect("hosts").remove(0).host;
    bed.store
        .put_host(&slipway_store::Host {
            pool_capacity: ByteSize::gib(1),
            ..host
        })
        .await
        .expect("a full pool");
    match bed.farm.connect(&key, EndpointPort::Docker).await {
        Err(FarmError::WontStart(why)) => {
            assert!(why.contains("slipway builders reset-cache"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!(view.volume, first);
    assert!(
        view.notice.expect("told").contains("reset-cache"),
        "the notice"
    );
    assert!(bed.world.lock().volumes.contains_key(&first), "destroyed");
    bed.farm.reset_cache(&key).await.expect("reset");
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    assert_eq!(bed.farm.builder(&key).expect("there").notice, None);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cache_at_most_is_kept_aside() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(first.clone());
    drop(connect(&bed.farm, &key).await);
    in_state(&bed.farm, &key, "running").await;
    let second = bed.farm.builder(&key).expect("there").volume;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(second.clone());
    match bed.farm.connect(&key, EndpointPort::Docker).await {
        Err(FarmError::WontStart(why)) => assert!(why.contains(first.as_str()), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.store.volumes(&key.org).await.expect("listed").len(), 2);
    // With the older one gone, the next caller gets a new cache at once.
    bed.farm
        .destroy_volume(&key.org, &first, true)
        .await
        .expect("destroyed");
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    let view = bed.farm.builder(&key).expect("there");
    assert!(view.notice.expect("told").contains(second.as_str()));
    bed.end().await;
}

/// A cache that a virtual machine has written is whole, and so its owner reads no word of damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_a_virtual_machine_has_written_is_called_so() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    for beside in [None, Some(first)] {
        bed.farm.stop_builder(&key).await.expect("stopped");
        let volume = bed.farm.builder(&key).expect("there").volume;
        bed.world.lock().foreign.insert(volume.clone());
        let connected = bed.farm.connect(&key, EndpointPort::Docker).await;
        match (&connected, &beside) {
            (Ok(_), None) => {}
            // One is kept aside already.
            (Err(FarmError::WontStart(_)), Some(_)) => {}
            (other, _) => panic!("{other:?}"),
        }
        let notice = bed.farm.builder(&key).expect("there").notice;
        let notice = notice.expect("the owner is told");
        let kept = beside.unwrap_or(volume);
        for words in [
            "virtual machine",
            "written",
            "--isolation vm",
            kept.as_str(),
        ] {
            assert!(notice.contains(words), "{words:?} is not in {notice:?}");
        }
        assert!(!notice.contains("damaged"), "{notice}");
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_empties_the_cache_and_spares_what_is_in_use() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let (stream, guard) = connect(&bed.farm, &key).await;
    in_state(&bed.farm, &key, "running").await;
    match bed.farm.reset_cache(&key).await {
        Err(FarmError::InUse { in_flight: 1 }) => {}
        other => panic!("{other:?}"),
    }
    drop((stream, guard));
    let view = bed.farm.reset_cache(&key).await.expect("reset");
    assert_eq!(view.state, MachineState::Stopped);
    assert!(
        !bed.world.lock().volumes.contains_key(&view.volume),
        "the volume is still there"
    );
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    assert_eq!(ping(&mut stream).await.expect("an answer"), 2);
    assert!(bed.world.lock().volumes.contains_key(&view.volume));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_gone_costs_time_and_nothing_else() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    drop(connect(&bed.farm, &key).await);
    in_state(&bed.farm, &key, "running").await;
    let view = bed.farm.stop_builder(&key).await.expect("stopped");
    assert!(bed.world.lock().volumes.remove(&view.volume).is_some());
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    assert_eq!(bed.farm.builder(&key).expect("there").volume, view.volume);
    assert!(bed.world.lock().volumes.contains_key(&view.volume));
    bed.end().await;
}

/// A pool that its operator makes larger has room at once, as far as its host is asked: no daemon has to be started anew for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_grows_while_its_host_runs_has_room_for_more() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let capacity = async || {
        bed.store.hosts().await.expect("listed")[0]
            .host
            .pool_capacity
    };
    let before = eventually("the first word of the host", || async {
        let hosts = bed.store.hosts().await.expect("listed");
        hosts.first().map(|known| known.host.pool_capacity)
    })
    .await;
    let grown = 1 << 40;
    bed.world.lock().pool_grown_by = grown;
    eventually("the new size of the pool", || async {
        // Any change of a machine ends a watch call.
        bed.world.poke();
        (capacity().await == ByteSize(before.0 + grown)).then_some(())
    })
    .await;
    bed.farm.ensure_builder(&key).await.expect("placed");
    bed.end().await;
}

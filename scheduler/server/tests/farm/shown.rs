//! What users and operators are shown: why a start waits or fails, what needs a look, and of whose builders.

use super::*;
use slipway_core::generation::Generation;
use slipway_core::time::Timestamp;
use slipway_scheduler::farm::{FarmEvent, NextEvent};
use std::sync::Arc;

/// Whoever waits learns at once what for, and what is over soon is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn what_delays_a_start_is_told_while_it_lasts() {
    let mut bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    in_state(&bed.farm, &key, "stopped").await;
    let waits_for = async |farm: &Farm, words: &str| {
        eventually(words, || async {
            let why = farm.builder(&key).expect("there").waiting_for?;
            why.contains(words).then_some(())
        })
        .await;
    };
    assert_eq!(bed.farm.builder(&key).expect("there").waiting_for, None);
    // More refusals than a caller would stand if they were failures.
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::Busy; 6]);
    let (farm, other) = (bed.farm.clone(), key.clone());
    let waiting = tokio::spawn(async move {
        let (mut stream, _guard) = connect(&farm, &other).await;
        ping(&mut stream).await.expect("an answer")
    });
    waits_for(&bed.farm, "still holds its cache").await;
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::DiskFull; 4]);
    waits_for(&bed.farm, "a disk of its host is full").await;
    waiting.await.expect("no panic");
    in_state(&bed.farm, &key, "running").await;
    assert_eq!(bed.farm.builder(&key).expect("there").waiting_for, None);

    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.kill_daemon().await;
    let farm = bed.farm.clone();
    let (farm_too, other) = (farm.clone(), key.clone());
    let waiting = tokio::spawn(async move { connect(&farm_too, &other).await });
    waits_for(&farm, "its host does not answer").await;
    let notices = farm.notices();
    assert!(notices[0].contains("does not answer"), "{notices:?}");
    bed.start_daemon();
    drop(waiting.await.expect("no panic"));
    bed.end().await;
}

/// The org demands what its builder's host does not have any more: waiting does not help, so nobody waits to the deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_isolation_that_is_demanded_is_told_to_who_waits() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::Unsupported; 40]);
    let told = bed.farm.connect(&key, EndpointPort::Docker).await;
    let error = told.map(drop).expect_err("it cannot start");
    assert!(matches!(error, FarmError::WontStart(_)), "{error:?}");
    let hint = "`slipway orgs update --isolation auto`";
    assert!(error.to_string().contains(hint), "{error}");
    // As soon as it can, it starts.
    bed.world.lock().refuse_starts.clear();
    drop(connect(&bed.farm, &key).await);
    bed.end().await;
}

/// What a builder image lacks is for whoever waits to read, and for as long as nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_reads_why_the_engine_cannot_start() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world.lock().hold_ready = true;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    // As often as it is started.
    let world = Arc::clone(&bed.world);
    let refusing = tokio::spawn(async move {
        let mut refused = Generation(0);
        loop {
            let last = world.lock().started.last().cloned();
            if let Some((machine, generation)) = last.filter(|(_, last)| *last > refused) {
                refused = generation;
                world.end_refused(&machine, generation, "it has no iptables");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    in_state(&bed.farm, &key, "crashed").await;
    let told = bed.farm.connect(&key, EndpointPort::Docker).await;
    refusing.abort();
    let error = told.map(drop).expect_err("it cannot start").to_string();
    assert!(error.contains("it has no iptables"), "{error}");
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!(view.last_error.as_deref(), Some("it has no iptables"));
    bed.end().await;
}

/// Nobody has to look for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_builder_image_is_a_notice() {
    let mut bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    assert_eq!(bed.farm.notices(), Vec::<String>::new());
    let days = |n: u64| Duration::from_secs(n * 24 * 60 * 60);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    for (age, notice) in [(days(29), false), (days(40), true)] {
        let made_at = Timestamp(u64::try_from((now - age).as_millis()).expect("small"));
        bed.kill_daemon().await;
        bed.world.lock().image_made_at = Some(made_at);
        bed.start_daemon();
        eventually("the age of the image", || async {
            let images = bed.farm.images();
            images
                .iter()
                .any(|(_, ages)| ages.image == Some(made_at))
                .then_some(())
        })
        .await;
        let notices = eventually("the host", || async {
            let notices = bed.farm.notices();
            (!notices
                .iter()
                .any(|words| words.contains("does not answer")))
            .then_some(notices)
        })
        .await;
        let told = notices.iter().any(|words| words.contains("40 days old"));
        assert_eq!(told, notice, "{notices:?}");
    }
    bed.end().await;
}

/// What the machine printed last is told to who waits for it, and of one that ran before nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_dies_at_boot_gives_its_reason() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let why = async |words: &str| {
        eventually(words, || async {
            let view = bed.farm.builder(&key).expect("there");
            view.last_error.filter(|why| why.contains(words))
        })
        .await
    };
    bed.world.lock().hold_ready = true;
    for words in ["no space in /run", "another reason"] {
        let told = format!("it ended before Docker was up; the last it printed: {words}");
        bed.world.lock().last_words = Some(words.to_owned());
        bed.farm.ensure_builder(&key).await.expect("ensured");
        in_state(&bed.farm, &key, "booting").await;
        bed.world.crash_all();
        assert_eq!(why(words).await, told);
    }
    bed.world.lock().hold_ready = false;
    in_state(&bed.farm, &key, "running").await;
    bed.world.lock().hold_ready = true;
    bed.world.lock().last_words = Some("words of a build".to_owned());
    bed.world.crash_all();
    in_state(&bed.farm, &key, "booting").await;
    let said = bed.farm.builder(&key).expect("there").last_error;
    assert!(!said.is_some_and(|said| said.contains("words of a build")));
    bed.world.lock().hold_ready = false;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_their_own_org_only() {
    let bed = Bed::start().await;
    let (ours, theirs) = (bed.org(HOUR).await, bed.org(HOUR).await);
    let mut changes = bed.farm.subscribe(&ours.org);
    drop(connect(&bed.farm, &theirs).await);
    drop(connect(&bed.farm, &ours).await);
    let mut states = Vec::new();
    while !states.contains(&"running") {
        let next = changes.next().await;
        let NextEvent::Event(FarmEvent::Builder(view)) = next else {
            panic!("{next:?}");
        };
        assert_eq!(view.key, ours);
        if states.last() != Some(&view.state.name()) {
            states.push(view.state.name());
        }
    }
    assert_eq!(states, ["stopped", "starting", "booting", "running"]);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_from_faults() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let nowhere = BuilderKey {
        region: "moon".into(),
        ..key.clone()
    };
    let error = bed
        .farm
        .ensure_builder(&nowhere)
        .await
        .expect_err("no such place");
    assert_eq!(error.fault(), slipway_core::build::Fault::User);
    assert!(error.to_string().contains("local/amd64"), "{error}");
    assert!(matches!(
        bed.farm.stop_builder(&key).await,
        Err(FarmError::NoBuilder { .. })
    ));
    bed.end().await;
}

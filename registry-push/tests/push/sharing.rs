//! Work that is done once: by pushes at the same time, by further tags, and by images that the registry has already.

use crate::image::{Made, assert_complete, image};
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, Registry};
use http::Method;
use slipway_registry_push::{PushOptions, PushState, Target, push};
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread")]
async fn pushes_at_the_same_time_read_and_send_a_layer_once() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // Slow enough that all of them meet in the middle of it.
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::PATCH => Act::Slow(256 << 10),
        _ => Act::Forward,
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    // Some know each other by the index, some only by being in one process.
    for index in [Some(base.path().join("index")), None] {
        let name = if index.is_some() { "with" } else { "without" };
        let layer = Made::new(6 << 20, name.len() as u64);
        let image = image(&[layer.clone(), Made::new(1000, 7 + name.len() as u64)]);
        let options = PushOptions {
            index,
            ..PushOptions::default()
        };
        let pushes = ["one:v1", "one:v2", "two:v1", "three:v1"].map(|target| {
            let target = Target::parse(&proxy.target(&format!("{name}/{target}"))).unwrap();
            let (image, options) = (image.clone(), options.clone());
            tokio::spawn(async move {
                let pushed = push(image, &target, None, &options, |_| ()).await.unwrap();
                (target, pushed)
            })
        });
        let mut states = Vec::new();
        for push in pushes {
            let (target, pushed) = push.await.unwrap();
            assert_complete(
                &registry,
                target.repository(),
                target.tag(),
                &image,
                &pushed,
            );
            states.push(pushed.layers[0].state);
        }
        assert_eq!(layer.opened.load(Ordering::SeqCst), 1, "{name} {states:?}");
        let count = |state| states.iter().filter(|other| **other == state).count();
        assert_eq!(count(PushState::Pushed), 1, "{states:?}");
        assert!(count(PushState::Mounted) >= 1, "{states:?}");
    }
    // Nothing is left of the turns.
    let turns = base.path().join("index").with_extension("turns");
    assert_eq!(std::fs::read_dir(turns).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waited_for_a_push_that_failed_sends_the_layer() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::PATCH => Act::Slow(64 << 10),
        _ => Act::Forward,
    })
    .await;
    let layer = Made::new(16 << 20, 77);
    let image = image(std::slice::from_ref(&layer));
    let (slow, fast) = (
        Target::parse(&proxy.target("slow:v1")).unwrap(),
        Target::parse(&registry.target("fast:v1")).unwrap(),
    );
    let first = tokio::spawn({
        let image = image.clone();
        async move { push(image, &slow, None, &PushOptions::default(), |_| ()).await }
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    while layer.read.load(Ordering::SeqCst) == 0 {
        assert!(std::time::Instant::now() < deadline, "it never reads");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    first.abort();
    let pushed = push(image.clone(), &fast, None, &PushOptions::default(), |_| ())
        .await
        .unwrap();
    assert_eq!(pushed.layers[0].state, PushState::Pushed);
    assert_complete(&registry, "fast", "v1", &image, &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn further_tags_cost_one_manifest_each() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let layers: Vec<Made> = (0..5).map(|seed| Made::new(10_000, 2 * seed)).collect();
    let image = image(&layers);
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let options = PushOptions {
        more_tags: vec!["v2".to_string(), "latest".to_string(), "v1".to_string()],
        ..PushOptions::default()
    };
    let pushed = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    for tag in ["v1", "v2", "latest"] {
        assert_complete(&registry, "app", tag, &image, &pushed);
    }
    assert_eq!(proxy.count(&Method::PUT, "/manifests/"), 3);
    assert_eq!(proxy.count(&Method::PUT, "/blobs/"), 6);
    let bad = PushOptions {
        more_tags: vec!["a/b".to_string()],
        ..PushOptions::default()
    };
    let error = push(image, &target, None, &bad, |_| ()).await.unwrap_err();
    assert_eq!(error.blame(), slipway_registry_push::Blame::User);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_image_of_many_layers_costs_four_requests() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let base = tempfile::tempdir().unwrap();
    let options = PushOptions {
        index: Some(base.path().join("index")),
        ..PushOptions::default()
    };
    let layers: Vec<Made> = (0..20).map(|seed| Made::new(10_000, 2 * seed)).collect();
    let image = image(&layers);
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let first = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    let requests = |before: usize| proxy.seen().len() - before;
    let before = proxy.seen().len();
    let again = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    assert_eq!((again.digest, again.sent_bytes), (first.digest, 0));
    assert_eq!(requests(before), 4);

    // A further tag: the manifest is asked for by digest, written and proved.
    let before = proxy.seen().len();
    let other = Target::parse(&proxy.target("app:v2")).unwrap();
    let tagged = push(image.clone(), &other, None, &options, |_| ())
        .await
        .unwrap();
    assert_eq!(requests(before), 7);
    assert_complete(&registry, "app", "v2", &image, &tagged);

    // Every blob was removed from below the manifest. Whichever are drawn, it is seen.
    for layer in &tagged.layers {
        std::fs::remove_file(registry.blob_path(&layer.digest)).unwrap();
    }
    let mended = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "app", "v1", &image, &mended);

    // One blob alone is seen for sure only by who asks for all.
    std::fs::remove_file(registry.blob_path(&tagged.layers[7].digest)).unwrap();
    let all = PushOptions {
        ask_for_every_blob: true,
        ..options
    };
    let mended = push(image.clone(), &target, None, &all, |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "app", "v1", &image, &mended);
}

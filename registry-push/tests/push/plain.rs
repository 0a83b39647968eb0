//! Pushes that go well: what is sent, what is not, and how one authenticates.

use crate::image::{Made, assert_complete, image};
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, PASSWORD, Registry, USER};
use http::Method;
use slipway_registry_push::{Credential, PushError, PushOptions, PushState, Target, push};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

pub(crate) fn credential(password: &str) -> Credential {
    Credential {
        username: USER.to_string(),
        password: password.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_whole_and_each_part_tells_its_story() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let twice = Made::new(3 << 20, 1);
    let image = image(&[
        twice.clone(),
        Made::new(0, 2),
        Made::new(10_000, 3),
        twice.clone(),
        Made::new(9_000_001, 4),
    ]);
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    let told: Mutex<HashMap<String, Vec<slipway_registry_push::Progress>>> = Mutex::default();
    let note = |progress: slipway_registry_push::Progress| {
        assert!(progress.current <= progress.total, "{progress:?}");
        let mut told = told.lock().unwrap();
        let news = told.entry(progress.item.clone()).or_default();
        if let Some(before) = news.last() {
            let grows = progress.compressed >= before.compressed && progress.sent >= before.sent;
            assert!(grows, "{before:?} {progress:?}");
        }
        news.push(progress);
    };
    let pushed = push(image.clone(), &target, None, &PushOptions::default(), note)
        .await
        .unwrap();
    assert_complete(&registry, "team/app", "v1", &image, &pushed);
    assert_eq!(
        twice.opened.load(Ordering::SeqCst),
        1,
        "a layer that occurs twice is read once"
    );
    assert_eq!(pushed.sent_bytes, pushed.size_bytes);
    let told = told.into_inner().unwrap();
    assert_eq!(told.len(), 4 + 2, "{:?}", told.keys());
    for layer in &pushed.layers {
        let last = told[layer.diff_id.as_str()].last().unwrap();
        let found = (last.compressed, last.sent);
        assert_eq!(found, (layer.size_bytes, layer.sent_bytes), "{last:?}");
    }
    for (item, news) in told {
        let states: Vec<PushState> = news.iter().map(|news| news.state).collect();
        assert_eq!(states.last(), Some(&PushState::Pushed), "{item}");
        let expected = if item.starts_with("sha256:") {
            PushState::Waiting
        } else {
            PushState::Pushing
        };
        assert_eq!(states.first(), Some(&expected), "{item}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_is_an_image() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[]);
    let target = Target::parse(&registry.target("empty:v1")).unwrap();
    let pushed = push(
        image.clone(),
        &target,
        None,
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(&registry, "empty", "v1", &image, &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_image_costs_three_questions_and_no_reading() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let base = tempfile::tempdir().unwrap();
    let options = PushOptions {
        index: Some(base.path().join("index")),
        ..PushOptions::default()
    };
    let layer = Made::new(3 << 20, 1);
    let image = image(std::slice::from_ref(&layer));
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let first = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    let (requests, opened) = (proxy.seen().len(), layer.opened.load(Ordering::SeqCst));

    let again = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    assert_eq!(again.digest, first.digest);
    assert_eq!(
        (again.sent_bytes, again.layers[0].state),
        (0, PushState::Exists)
    );
    assert_eq!(layer.opened.load(Ordering::SeqCst), opened);
    assert_eq!(proxy.seen().len() - requests, 3);

    // Another tag needs the manifest alone.
    let other = Target::parse(&proxy.target("app:v2")).unwrap();
    let tagged = push(image.clone(), &other, None, &options, |_| ())
        .await
        .unwrap();
    assert_eq!(tagged.sent_bytes, tagged.manifest_bytes.len() as u64);
    assert_complete(&registry, "app", "v2", &image, &tagged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_repository_is_mounted() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let options = PushOptions {
        index: Some(base.path().join("index")),
        ..PushOptions::default()
    };
    let layer = Made::new(3 << 20, 1);
    let image = image(std::slice::from_ref(&layer));
    let first = Target::parse(&registry.target("one:v1")).unwrap();
    push(image.clone(), &first, None, &options, |_| ())
        .await
        .unwrap();
    let second = Target::parse(&registry.target("two:v1")).unwrap();
    let pushed = push(image.clone(), &second, None, &options, |_| ())
        .await
        .unwrap();
    assert_eq!(
        (pushed.layers[0].state, pushed.layers[0].sent_bytes),
        (PushState::Mounted, 0)
    );
    assert_eq!(layer.opened.load(Ordering::SeqCst), 1);
    assert_complete(&registry, "two", "v1", &image, &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_wrong_costs_time_only() {
    let (Some(one), Some(two)) = (
        Registry::start(&Access::Open),
        Registry::start(&Access::Open),
    ) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let options = PushOptions {
        index: Some(base.path().join("index")),
        ..PushOptions::default()
    };
    let image = image(&[Made::new(3 << 20, 1)]);
    let first = Target::parse(&one.target("app:v1")).unwrap();
    push(image.clone(), &first, None, &options, |_| ())
        .await
        .unwrap();
    // A mount from a repository that does not exist there, and blobs that are not there.
    let second = Target::parse(&two.target("app:v1")).unwrap();
    let options = PushOptions {
        mount_from: vec!["none/such".to_string()],
        ..options
    };
    let pushed = push(image.clone(), &second, None, &options, |_| ())
        .await
        .unwrap();
    assert_eq!(pushed.layers[0].state, PushState::Pushed);
    assert_complete(&two, "app", "v1", &image, &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_password_and_no_other() {
    let Some(registry) = Registry::start(&Access::Password) else {
        return;
    };
    let image = image(&[Made::new(3 << 20, 1)]);
    let target = Target::parse(&registry.target("app:v1")).unwrap();
    let options = PushOptions::default();
    let error = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Unauthorized {
                anonymous: true,
                ..
            }
        ),
        "{error:?}"
    );
    let error = push(
        image.clone(),
        &target,
        Some(&credential("wrong-word")),
        &options,
        |_| (),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Unauthorized {
                anonymous: false,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(!format!("{error:?} {error}").contains("wrong-word"));
    let pushed = push(
        image.clone(),
        &target,
        Some(&credential(PASSWORD)),
        &options,
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_tried_once() {
    let Some(registry) = Registry::start(&Access::Password) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let image = image(&[Made::new(1000, 1)]);
    let options = PushOptions::default();
    push(
        image,
        &target,
        Some(&credential("wrong-word")),
        &options,
        |_| (),
    )
    .await
    .unwrap_err();
    assert_eq!(
        proxy.count(&Method::HEAD, "/blobs/"),
        2,
        "once without, once with the password"
    );
    assert_eq!(proxy.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_changed_in_the_store_leaves_no_tag() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let mut layer = Made::new(5 << 20, 1);
    layer.diff_id = slipway_registry_push::Digest::of(b"what it was");
    let target = Target::parse(&registry.target("app:v1")).unwrap();
    let error = push(
        image(&[layer]),
        &target,
        None,
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap_err();
    let is_diff_id = matches!(
        error,
        PushError::Source(slipway_registry_push::SourceError::DiffId { .. })
    );
    assert!(is_diff_id, "{error:?}");
    assert_eq!(registry.tag("app", "v1"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_only_where_it_was_allowed() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // A name that is this machine but is no loopback name to Docker's rule.
    let name = format!("localhost.localdomain:{}", registry.address.port());
    if std::net::ToSocketAddrs::to_socket_addrs(&name).is_err() {
        // Then the refusal alone can be seen.
        eprintln!("{name} is not known on this machine");
    }
    let target = Target::parse(&format!("{name}/app:v1")).unwrap();
    let image = image(&[Made::new(1000, 1)]);
    let error = push(image, &target, None, &PushOptions::default(), |_| ())
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error:?}");
    assert_eq!(registry.tag("app", "v1"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_through_the_proxy_but_for_what_is_near() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let image = image(&[Made::new(2 << 20, 1)]);
    let far = Target::parse("registry.corp.test:5000/far:v1").unwrap();
    let options = PushOptions {
        insecure_http: vec!["registry.corp.test".to_string()],
        http_proxy: Some(format!("http://{}", proxy.address)),
        no_proxy: "127.0.0.0/8".to_string(),
        ..PushOptions::default()
    };
    let pushed = push(image.clone(), &far, None, &options, |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "far", "v1", &image, &pushed);
    let asked = proxy.seen().len();
    let near = Target::parse(&registry.target("near:v1")).unwrap();
    let pushed = push(image.clone(), &near, None, &options, |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "near", "v1", &image, &pushed);
    assert_eq!(proxy.seen().len(), asked);
}

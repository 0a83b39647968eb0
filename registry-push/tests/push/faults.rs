//! Registries and networks that fail, lie or attack: a complete push or a clear error, never a tag on an incomplete image.

use crate::image::{Made, assert_complete, image};
use crate::plain::credential;
use crate::proxy::{Act, Proxy, Seen};
use crate::registry::{Access, PASSWORD, Registry};
use http::{Method, StatusCode, header};
use slipway_registry_push::{
    Blame, ImageSource, ProtocolFault, PushError, PushOptions, Pushed, Target, push,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WHOLE_MAX: Duration = Duration::from_secs(600);

async fn push_to(proxy: &Proxy, image: &ImageSource) -> Result<Pushed, PushError> {
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let options = PushOptions::default();
    let push = push(image.clone(), &target, None, &options, |_| ());
    tokio::time::timeout(WHOLE_MAX, push)
        .await
        .expect("a push ends")
}

fn patch(seen: &Seen) -> bool {
    seen.method == Method::PATCH
}

fn answer(status: u16, body: &'static str) -> Act {
    Act::Answer(StatusCode::from_u16(status).unwrap(), Vec::new(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_at_every_megabyte_only_costs_time() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |seen, _| {
        if patch(seen) {
            Act::Cut(1 << 20)
        } else {
            Act::Forward
        }
    })
    .await;
    let layer = Made::new(12 << 20, 1);
    let image = image(std::slice::from_ref(&layer));
    let pushed = push_to(&proxy, &image).await.unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
    assert!(proxy.count(&Method::PATCH, "/uploads/") > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_upload_goes_on_from_the_registrys_offset() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // Docker's registry keeps nothing of a cut request; this one keeps what arrived, as others do.
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::PATCH => Act::Keep(2 << 20),
        Method::GET if seen.path.contains("/uploads/") => Act::Kept,
        _ => Act::Forward,
    })
    .await;
    let layer = Made::new(24 << 20, 1);
    let image = image(std::slice::from_ref(&layer));
    let pushed = push_to(&proxy, &image).await.unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
    assert!(proxy.count(&Method::PATCH, "/uploads/") >= 3);
    assert_eq!(
        proxy.count(&Method::POST, "/uploads/"),
        2,
        "one for the layer, one for the config"
    );
    // Once if the sockets' buffers held less than is kept for another try, else once more.
    assert!(layer.opened.load(Ordering::SeqCst) <= 2);
    let whole = pushed.layers[0].size_bytes;
    assert!(
        pushed.layers[0].sent_bytes < whole * 3,
        "{} sent of {whole}",
        pushed.layers[0].sent_bytes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_loses_uploads_gets_the_layer_again() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let patches = AtomicUsize::new(0);
    let proxy = Proxy::start(registry.address, move |seen, _| {
        match (&seen.method, seen.path.contains("/uploads/")) {
            (&Method::PATCH, _) if patches.fetch_add(1, Ordering::SeqCst) == 0 => {
                Act::Cut(20 << 20)
            }
            // It does not know the upload any more.
            (&Method::GET, true) => answer(404, r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#),
            _ => Act::Forward,
        }
    })
    .await;
    let layer = Made::new(60 << 20, 1);
    let image = image(std::slice::from_ref(&layer));
    let pushed = push_to(&proxy, &image).await.unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
    assert_eq!(layer.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failing_request_is_tried_again() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[Made::new(3 << 20, 1), Made::new(2 << 20, 2)]);
    for status in [429, 500, 502, 503] {
        // Every first try of every kind of request fails.
        let tried = std::sync::Mutex::new(std::collections::HashSet::new());
        let proxy = Proxy::start(registry.address, move |seen, _| {
            let path = seen
                .path
                .split(['?', '='])
                .next()
                .unwrap_or_default()
                .to_string();
            let is_first = tried.lock().unwrap().insert((seen.method.clone(), path));
            if is_first {
                answer(status, "not now")
            } else {
                Act::Forward
            }
        })
        .await;
        let target = Target::parse(&proxy.target(&format!("app{status}:v1"))).unwrap();
        let pushed = push(
            image.clone(),
            &target,
            None,
            &PushOptions::default(),
            |_| (),
        )
        .await
        .unwrap();
        assert_complete(&registry, &format!("app{status}"), "v1", &image, &pushed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_waited_for() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, number| match number {
        0 => Act::Answer(
            StatusCode::TOO_MANY_REQUESTS,
            vec![("retry-after", "2".to_string())],
            "",
        ),
        _ => Act::Forward,
    })
    .await;
    let started = Instant::now();
    push_to(&proxy, &image(&[])).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_do_no_harm() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[Made::new(3 << 20, 1)]);
    for (number, method) in [Method::POST, Method::PATCH, Method::PUT]
        .into_iter()
        .enumerate()
    {
        let lost = AtomicUsize::new(0);
        let proxy = Proxy::start(registry.address, move |seen, _| {
            let is_first = seen.method == method && lost.fetch_add(1, Ordering::SeqCst) == 0;
            if is_first {
                Act::LoseAnswer
            } else {
                Act::Forward
            }
        })
        .await;
        let target = Target::parse(&proxy.target(&format!("app{number}:v1"))).unwrap();
        let pushed = push(
            image.clone(),
            &target,
            None,
            &PushOptions::default(),
            |_| (),
        )
        .await
        .unwrap();
        assert_complete(&registry, &format!("app{number}"), "v1", &image, &pushed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_mends_is_asked_once_and_named() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    type Is = fn(&PushError) -> bool;
    let cases: [(u16, &'static str, Blame, Is); 7] = [
        (401, "", Blame::Registry, |e| {
            matches!(e, PushError::Challenge { .. })
        }),
        (403, "denied", Blame::User, |e| {
            matches!(e, PushError::Forbidden { .. })
        }),
        (404, "", Blame::User, |e| {
            matches!(e, PushError::NotFound { .. })
        }),
        (413, "", Blame::User, |e| {
            matches!(e, PushError::TooLarge { .. })
        }),
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"Quota exceeded"}]}"#,
            Blame::User,
            |e| matches!(e, PushError::Quota { .. }),
        ),
        (507, "", Blame::User, |e| {
            matches!(e, PushError::Quota { .. })
        }),
        (418, "short and stout", Blame::User, |e| {
            matches!(e, PushError::Rejected { .. })
        }),
    ];
    for (status, body, blame, is) in cases {
        let proxy = Proxy::start(registry.address, move |seen, _| {
            if seen.method == Method::POST {
                answer(status, body)
            } else {
                Act::Forward
            }
        })
        .await;
        let error = push_to(&proxy, &image(&[Made::new(1000, 1)]))
            .await
            .unwrap_err();
        assert!(is(&error), "{status}: {error:?}");
        assert_eq!(error.blame(), blame, "{status}");
        let asked = proxy.count(&Method::POST, "/uploads/");
        assert!(asked <= 2, "{status}: the layer and the config, {asked}");
        assert_eq!(registry.tag("app", "v1"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_refused_as_too_large_ends_the_push() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |seen, _| {
        if patch(seen) {
            answer(413, "")
        } else {
            Act::Forward
        }
    })
    .await;
    let error = push_to(&proxy, &image(&[Made::new(20 << 20, 1)]))
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::TooLarge { .. }), "{error:?}");
    assert_eq!(registry.tag("app", "v1"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_never_recovers_is_given_up() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| answer(503, "down for good")).await;
    let error = push_to(&proxy, &image(&[])).await.unwrap_err();
    assert!(
        matches!(error, PushError::RegistryFailed { .. }),
        "{error:?}"
    );
    assert_eq!(
        proxy.seen().len(),
        slipway_registry_push::limits::ATTEMPTS as usize
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_said() {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let target = Target::parse(&format!("{address}/app:v1")).unwrap();
    let error = push(image(&[]), &target, None, &PushOptions::default(), |_| ())
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.blame(), Blame::Network);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_is_found_out() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let other = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let image = image(&[Made::new(3 << 20, 1)]);

    // It claims more bytes than were sent.
    let proxy = Proxy::start(registry.address, |seen, _| {
        if patch(seen) {
            Act::Change("range", "0-99999999".to_string())
        } else {
            Act::Forward
        }
    })
    .await;
    let error = push_to(&proxy, &image).await.unwrap_err();
    let is_offset = matches!(
        error,
        PushError::Protocol {
            fault: ProtocolFault::Offset { .. },
            ..
        }
    );
    assert!(is_offset, "{error:?}");

    // It names another digest for a blob.
    let proxy = Proxy::start(registry.address, move |seen, _| {
        if seen.method == Method::PUT {
            Act::Change("docker-content-digest", other.to_string())
        } else {
            Act::Forward
        }
    })
    .await;
    let error = push_to(&proxy, &image).await.unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Protocol {
                fault: ProtocolFault::Digest { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(registry.tag("app", "v1"), None);

    // It takes everything and has nothing.
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::HEAD => answer(404, ""),
        Method::PUT if seen.path.contains("/manifests/") => answer(201, ""),
        _ => Act::Forward,
    })
    .await;
    let error = push_to(&proxy, &image).await.unwrap_err();
    assert!(matches!(error, PushError::Incomplete { .. }), "{error:?}");
    assert_eq!(registry.tag("app", "v1"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_sense_or_end_are_refused() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[Made::new(1000, 1)]);
    for location in ["", "ftp://example.test/x", "http://", "\u{1}"] {
        let proxy = Proxy::start(registry.address, move |seen, _| match seen.method {
            Method::POST if location.chars().any(char::is_control) => answer(202, ""),
            Method::POST => Act::Answer(
                StatusCode::ACCEPTED,
                vec![("location", location.to_string())],
                "",
            ),
            _ => Act::Forward,
        })
        .await;
        let found = push_to(&proxy, &image).await;
        assert!(found.is_err(), "{location:?}");
        assert_eq!(registry.tag("app", "v1"), None);
    }
    let proxy = Proxy::start(registry.address, |seen, _| {
        if seen.method == Method::POST {
            Act::Endless(StatusCode::FORBIDDEN)
        } else {
            Act::Forward
        }
    })
    .await;
    let error = push_to(&proxy, &image).await.unwrap_err();
    assert!(matches!(error, PushError::Forbidden { .. }), "{error:?}");
    assert!(error.to_string().len() < 1000);

    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::HEAD => Act::Answer(
            StatusCode::TEMPORARY_REDIRECT,
            vec![("location", seen.path.clone())],
            "",
        ),
        _ => Act::Forward,
    })
    .await;
    let error = push_to(&proxy, &image).await.unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Protocol {
                fault: ProtocolFault::Redirects,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_registry_slows_the_reading_down() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // 16 KiB every 50 ms is 320 KiB/s; the layer is larger than all buffers on the way.
    let proxy = Proxy::start(registry.address, |seen, _| {
        if patch(seen) {
            Act::Slow(16 << 10)
        } else {
            Act::Forward
        }
    })
    .await;
    let layer = Made::new(64 << 20, 1);
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let options = PushOptions::default();
    let push = push(
        image(std::slice::from_ref(&layer)),
        &target,
        None,
        &options,
        |_| (),
    );
    tokio::time::timeout(Duration::from_secs(5), push)
        .await
        .expect_err("it cannot be done yet");
    let read = layer.read.load(Ordering::SeqCst);
    assert!(
        read < 48 << 20,
        "{read} bytes read ahead of a slow registry"
    );
    // The push was dropped: the reading ends.
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let before = layer.read.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if layer.read.load(Ordering::SeqCst) == before {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "reading goes on after the push was dropped"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_64_kib_a_second_is_waited_for() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::PATCH | Method::PUT => Act::Slow((64 << 10) / 20),
        _ => Act::Forward,
    })
    .await;
    // One goes whole, one is streamed; together they take some seconds.
    let image = image(&[Made::new(100 << 10, 1), Made::new(600 << 10, 2)]);
    let started = Instant::now();
    let pushed = push_to(&proxy, &image).await.unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
    assert!(started.elapsed() >= Duration::from_secs(3), "it was slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_owns_to_less_than_it_has_gets_no_wrong_layer() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let lies = AtomicUsize::new(0);
    let proxy = Proxy::start(registry.address, move |seen, _| {
        if patch(seen) && lies.fetch_add(1, Ordering::SeqCst) == 0 {
            Act::Change("range", "0-99".to_string())
        } else {
            Act::Forward
        }
    })
    .await;
    let image = image(&[Made::new(5 << 20, 1)]);
    match push_to(&proxy, &image).await {
        Ok(pushed) => assert_complete(&registry, "app", "v1", &image, &pushed),
        Err(error) => {
            assert_eq!(error.blame(), Blame::Registry, "{error:?}");
            assert_eq!(registry.tag("app", "v1"), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tag_is_written_before_every_blob_has_answered() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // The registry takes every blob, says so, and has lost one of them.
    let layers = [Made::new(1000, 1), Made::new(3 << 20, 2)];
    let image = image(&layers);
    let whole = push(
        image.clone(),
        &Target::parse(&registry.target("whole:v1")).unwrap(),
        None,
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap();
    let blobs = whole.layers.iter().map(|layer| layer.digest.clone());
    for lost in blobs.chain([image.id()]) {
        let (path, commits) = (format!("/blobs/{lost}"), AtomicUsize::new(0));
        let proxy = Proxy::start(registry.address, move |seen, _| {
            match seen.method {
                Method::PUT => commits.fetch_add(1, Ordering::SeqCst),
                _ => 0,
            };
            if seen.method == Method::HEAD && seen.path.ends_with(&path) {
                answer(404, "")
            } else {
                Act::Forward
            }
        })
        .await;
        let error = push_to(&proxy, &image).await.unwrap_err();
        assert!(matches!(error, PushError::Incomplete { .. }), "{error:?}");
        assert_eq!(proxy.count(&Method::PUT, "/manifests/"), 0);
        assert_eq!(registry.tag("app", "v1"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_at_another_host_work_and_never_see_the_credential() {
    let Some(registry) = Registry::start(&Access::Password) else {
        return;
    };
    let Some(store) = Registry::start(&Access::Open) else {
        return;
    };
    let elsewhere = Proxy::start(store.address, |_, _| Act::Forward).await;
    let away = format!("http://{}", elsewhere.address);
    // Three ways to send a client away: a location, a redirect of the opening, and a redirect of a question.
    let to = away.clone();
    let proxy = Proxy::start(registry.address, move |seen, _| {
        let known = seen.headers.contains_key(header::AUTHORIZATION);
        let redirect = || {
            Act::Answer(
                StatusCode::TEMPORARY_REDIRECT,
                vec![("location", format!("{to}{}", seen.path))],
                "",
            )
        };
        match seen.method {
            Method::POST | Method::HEAD if known && !seen.path.contains("/manifests/") => {
                redirect()
            }
            Method::PATCH | Method::PUT if known && seen.path.contains("/uploads/") => redirect(),
            _ => Act::Forward,
        }
    })
    .await;
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let image = image(&[Made::new(3 << 20, 1)]);
    // The manifest's own registry has no blobs, so it refuses the manifest; the blobs arrived elsewhere.
    let error = push(
        image.clone(),
        &target,
        Some(&credential(PASSWORD)),
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(
            error,
            PushError::Rejected { .. } | PushError::NotFound { .. }
        ),
        "{error:?}"
    );
    assert!(store.blob(&image.id()).is_some());
    assert!(elsewhere.count(&Method::PATCH, "/uploads/") >= 1);
    for seen in elsewhere.seen() {
        assert!(
            !seen.headers.contains_key(header::AUTHORIZATION),
            "{seen:?}"
        );
    }
    assert_eq!(registry.tag("app", "v1"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_while_a_push_goes_on() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // Each token is good for so many requests; so a push needs many tokens, some of them in the middle of an upload.
    let issued = std::sync::Arc::new(AtomicUsize::new(0));
    let used = std::sync::Arc::new(AtomicUsize::new(0));
    let tokens = issued.clone();
    let proxy = Proxy::start(registry.address, move |seen, _| {
        if seen.path.starts_with("/token") {
            assert!(
                seen.path.contains("scope=repository%3Aapp%3Apull%2Cpush"),
                "{}",
                seen.path
            );
            let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            used.store(0, Ordering::SeqCst);
            let bodies = [
                r#"{"token":"t1"}"#,
                r#"{"access_token":"t2","expires_in":300}"#,
                r#"{"token":"t3"}"#,
            ];
            return answer(200, bodies[(number - 1) % 3]);
        }
        let newest = format!("Bearer t{}", (tokens.load(Ordering::SeqCst) + 2) % 3 + 1);
        let shown = seen
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if shown != Some(newest.as_str()) || used.fetch_add(1, Ordering::SeqCst) >= 2 {
            let host = seen.headers[header::HOST].to_str().unwrap();
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"test\"");
            return Act::Answer(
                StatusCode::UNAUTHORIZED,
                vec![("www-authenticate", challenge)],
                "",
            );
        }
        Act::Forward
    })
    .await;
    let image = image(&[Made::new(10 << 20, 1)]);
    let target = Target::parse(&proxy.target("app:v1")).unwrap();
    let pushed = push(
        image.clone(),
        &target,
        Some(&credential("any")),
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
    assert!(issued.load(Ordering::SeqCst) >= 3, "{issued:?}");
}

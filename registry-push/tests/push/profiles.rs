//! The registries that people push to, each by what it does that Docker's own does not: a whole push, or one error with the right blame.
//!
//! The quirks are those of public reports; behind each profile is a real registry. What has to do with TLS and tokens is in `secure`.

use crate::image::{Made, assert_complete, image};
use crate::proxy::{Act, Proxy, Seen};
use crate::registry::{Access, Registry};
use http::{Method, StatusCode, header};
use slipway_registry_push::{
    Blame, ImageSource, PushError, PushOptions, PushState, Pushed, Target, push,
};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

type Rule = Box<dyn Fn(&Seen, usize) -> Act + Send + Sync>;

/// One registry's ways.
struct Profile {
    /// Also the repository.
    name: &'static str,
    /// Bytes of its image's large layer.
    layer: u64,
    rule: fn() -> Rule,
}

/// Each of these takes the whole image in the end.
const WHOLE: &[Profile] = &[
    Profile {
        // Docker Hub limits the rate and says for how long, as a date at times.
        name: "hub",
        layer: 2 << 20,
        rule: || {
            let asked = AtomicUsize::new(0);
            Box::new(move |seen, _| match asked.fetch_add(1, Ordering::SeqCst) {
                0 => limited(
                    429,
                    vec![("retry-after", "1".to_string())],
                    "toomanyrequests",
                ),
                1 if seen.method != Method::PATCH => limited(
                    429,
                    vec![
                        ("date", "Mon, 30 Nov 2026 10:00:00 GMT".to_string()),
                        ("retry-after", "Mon, 30 Nov 2026 10:00:01 GMT".to_string()),
                    ],
                    "toomanyrequests",
                ),
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // GitHub's secondary limits come as 403, with words and at times with `Retry-After`; refchecker#67.
        name: "ghcr",
        layer: 2 << 20,
        rule: || {
            let first = Firsts::default();
            Box::new(move |seen, _| match (&seen.method, first.is(seen)) {
                (&Method::POST, true) => limited(
                    403,
                    vec![],
                    r#"{"message":"You have exceeded a secondary rate limit. Please wait a few minutes."}"#,
                ),
                (&Method::PUT, true) if seen.path.contains("/manifests/") => {
                    limited(403, vec![("retry-after", "1".to_string())], "")
                }
                (&Method::PATCH, true) => limited(403, vec![], "secondary rate limit"),
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // Amazon's answers 201 to PATCH, cannot say how far an upload is, and takes no parts below 5 MiB; containers-roadmap#2831.
        name: "ecr",
        layer: 24 << 20,
        rule: || {
            let first = Firsts::default();
            Box::new(move |seen, _| match seen.method {
                Method::PATCH if first.is(seen) => Act::Cut(8 << 20),
                Method::PATCH if length(seen).is_some_and(|length| length < 5 << 20) => {
                    refused(400, r#"{"errors":[{"code":"LAYER_PART_TOO_SMALL"}]}"#)
                }
                Method::PATCH => Act::Status(StatusCode::CREATED),
                Method::GET if is_upload(seen) => refused(405, ""),
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // Says its least chunk before (distribution-spec 1.1, `OCI-Chunk-Min-Length`), and takes no smaller one.
        name: "chunk-least",
        layer: 24 << 20,
        rule: || {
            let first = Firsts::default();
            Box::new(move |seen, _| match seen.method {
                Method::POST => Act::Change("oci-chunk-min-length", (5 << 20).to_string()),
                Method::PATCH if first.is(seen) => Act::Cut(8 << 20),
                Method::PATCH if length(seen).is_some() => refused(416, ""),
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // Google's gives upload locations as paths.
        name: "gar",
        layer: 2 << 20,
        rule: || {
            Box::new(|seen, _| match seen.method {
                Method::POST | Method::PATCH => Act::Relative,
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // Quay's answers the opening with a health check of its own at times; kubevirt#16844.
        name: "quay",
        layer: 2 << 20,
        rule: || {
            let opened = AtomicUsize::new(0);
            Box::new(move |seen, _| {
                let is_early =
                    seen.method == Method::POST && opened.fetch_add(1, Ordering::SeqCst) < 2;
                match is_early {
                    true => refused(200, "Healthcheck requested"),
                    false => Act::Forward,
                }
            })
        },
    },
    Profile {
        // Proxies before Harbor drop the length of what HEAD is asked about, or name that of a compressed answer; godoxy#169.
        name: "harbor",
        layer: 2 << 20,
        rule: || {
            Box::new(|seen, _| match seen.method {
                Method::HEAD if seen.path.contains("/blobs/") => {
                    Act::Change("content-length", "0".to_string())
                }
                Method::HEAD => Act::Change("content-encoding", "gzip".to_string()),
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // Artifactory takes no blob in the request that closes its upload (buildx#196), and names the end of a range one byte too far.
        name: "artifactory",
        layer: 2 << 20,
        rule: || {
            Box::new(|seen, _| match seen.method {
                Method::PUT if is_upload(seen) && length(seen).is_some_and(|length| length > 0) => {
                    refused(404, "")
                }
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // Gitea's range of an empty upload; gitea#34724.
        name: "gitea",
        layer: 2 << 20,
        rule: || {
            Box::new(|seen, _| match seen.method {
                Method::POST | Method::PATCH => Act::Change("range", "0--1".to_string()),
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // zot takes OCI's manifests alone unless its settings say otherwise; zot#724.
        name: "zot",
        layer: 2 << 20,
        rule: || {
            Box::new(|seen, _| {
                let kind = seen.headers.get(header::CONTENT_TYPE);
                let is_docker = kind.is_some_and(|kind| kind.to_str().unwrap().contains("docker"));
                match seen.method == Method::PUT && is_docker {
                    true => refused(415, ""),
                    false => Act::Forward,
                }
            })
        },
    },
    Profile {
        // Nexus and others leave the location out of the answer to PATCH.
        name: "nexus",
        layer: 2 << 20,
        rule: || {
            Box::new(|seen, _| match seen.method {
                Method::PATCH | Method::PUT if is_upload(seen) => Act::Hidden,
                _ => Act::Forward,
            })
        },
    },
    Profile {
        // A proxy that takes 1 MiB in a request (nginx; Cloudflare takes 100 MB); serverless-registry#67.
        name: "proxied",
        layer: 24 << 20,
        rule: || Box::new(|_, _| Act::Most(1 << 20)),
    },
    Profile {
        // A cache before the registry remembers that a blob was not there; wave#750.
        name: "cached",
        layer: 2 << 20,
        rule: || {
            let looks: Mutex<std::collections::HashMap<String, usize>> = Mutex::default();
            Box::new(move |seen, _| {
                if seen.method != Method::HEAD {
                    return Act::Forward;
                }
                let mut looks = looks.lock().unwrap();
                let looks = looks.entry(seen.path.clone()).or_default();
                *looks += 1;
                // The first is before the upload, the second after it.
                match *looks == 2 {
                    true => refused(404, ""),
                    false => Act::Forward,
                }
            })
        },
    },
];

/// Requests of a kind that were not seen before.
#[derive(Default)]
struct Firsts(Mutex<HashSet<Method>>);

impl Firsts {
    fn is(&self, seen: &Seen) -> bool {
        self.0.lock().unwrap().insert(seen.method.clone())
    }
}

fn refused(status: u16, body: &'static str) -> Act {
    limited(status, Vec::new(), body)
}

fn limited(status: u16, headers: Vec<(&'static str, String)>, body: &'static str) -> Act {
    Act::Answer(StatusCode::from_u16(status).unwrap(), headers, body)
}

fn length(seen: &Seen) -> Option<u64> {
    let length = seen.headers.get(header::CONTENT_LENGTH)?;
    length.to_str().unwrap().parse().ok()
}

fn is_upload(seen: &Seen) -> bool {
    seen.path.contains("/blobs/uploads/")
}

async fn pushed(
    proxy: &Proxy,
    name: &str,
    image: &ImageSource,
    options: &PushOptions,
) -> Result<Pushed, PushError> {
    let target = Target::parse(&proxy.target(&format!("{name}:v1"))).unwrap();
    let push = push(image.clone(), &target, None, options, |_| ());
    tokio::time::timeout(Duration::from_secs(600), push)
        .await
        .expect("a push ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_registry_of_the_table_gets_the_whole_image() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // Side by side: most of the time is waits that a registry has asked for.
    let pushes = WHOLE.iter().map(|profile| async {
        let proxy = Proxy::start(registry.address, (profile.rule)()).await;
        let seed = profile.name.bytes().map(u64::from).sum::<u64>() * 4;
        let image = image(&[Made::new(profile.layer, seed), Made::new(3000, seed + 2)]);
        let done = pushed(&proxy, profile.name, &image, &PushOptions::default()).await;
        let done = done.unwrap_or_else(|error| panic!("{}: {error:?}", profile.name));
        assert_complete(&registry, profile.name, "v1", &image, &done);
    });
    futures_util::future::join_all(pushes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_told_from_a_limit_of_the_rate() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[Made::new(1000, 1)]);
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::POST => refused(
            403,
            r#"{"errors":[{"code":"DENIED","message":"permission_denied: write_package"}]}"#,
        ),
        _ => Act::Forward,
    })
    .await;
    let error = pushed(&proxy, "app", &image, &PushOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.blame(), Blame::User, "{error:?}");
    // A wait that is too long is not waited for; the registry's words and blame stay.
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::POST => limited(403, vec![("retry-after", "3600".to_string())], ""),
        _ => Act::Forward,
    })
    .await;
    let error = pushed(&proxy, "app", &image, &PushOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::RateLimited { .. }), "{error:?}");
    assert_eq!(error.blame(), Blame::Registry);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_about_a_blob_gets_it_again() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // Artifactory says 200 to HEAD for a layer that is gone, and refuses the manifest; cc-utils#1752.
    let image = image(&[Made::new(2 << 20, 1), Made::new(3000, 2)]);
    let options = PushOptions {
        index: Some(registry.scratch("index")),
        ..PushOptions::default()
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let before = pushed(&proxy, "before", &image, &options).await.unwrap();
    let gone = before.layers[0].digest.clone();
    let path = format!("/v2/app/blobs/{gone}");
    let proxy = Proxy::start(registry.address, move |seen, _| {
        match (
            &seen.method,
            seen.path == path,
            seen.path.contains("mount="),
        ) {
            (&Method::HEAD, true, _) => refused(200, ""),
            (_, _, true) => refused(405, ""),
            _ => Act::Forward,
        }
    })
    .await;
    let done = pushed(&proxy, "app", &image, &options).await.unwrap();
    assert_complete(&registry, "app", "v1", &image, &done);
    assert_eq!(done.layers[0].state, PushState::Pushed);
    assert_eq!(proxy.count(&Method::PUT, "/manifests/"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_image_costs_an_oci_registry_no_more_than_another() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[Made::new(2 << 20, 1)]);
    let options = PushOptions {
        index: Some(registry.scratch("index")),
        ..PushOptions::default()
    };
    let zot = WHOLE.iter().find(|profile| profile.name == "zot").unwrap();
    let proxy = Proxy::start(registry.address, (zot.rule)()).await;
    let first = pushed(&proxy, "app", &image, &options).await.unwrap();
    let asked = proxy.seen().len();
    let again = pushed(&proxy, "app", &image, &options).await.unwrap();
    assert_eq!(again.digest, first.digest);
    assert_eq!(again.sent_bytes, 0);
    assert!(proxy.seen().len() - asked <= 4, "{:?}", proxy.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_refused_in_any_way_is_an_upload() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    // GitLab's token server gives no second scope; others fail at what they do not know (oras#1892). One question, no waits.
    for (number, status) in [400, 401, 403, 404, 405, 429, 500, 503]
        .into_iter()
        .enumerate()
    {
        let image = image(&[Made::new(2 << 20, 2 * number as u64 + 2)]);
        let options = PushOptions {
            index: Some(registry.scratch("index")),
            ..PushOptions::default()
        };
        let proxy = Proxy::start(registry.address, move |seen, _| {
            match seen.path.contains("mount=") {
                true => refused(status, ""),
                false => Act::Forward,
            }
        })
        .await;
        pushed(&proxy, "before", &image, &options).await.unwrap();
        let app = format!("app{status}");
        let done = pushed(&proxy, &app, &image, &options).await;
        let done = done.unwrap_or_else(|error| panic!("{status}: {error:?}"));
        assert_complete(&registry, &app, "v1", &image, &done);
        assert_eq!(done.layers[0].state, PushState::Pushed, "{status}");
        assert_eq!(proxy.count(&Method::POST, "mount="), 1, "{status}");
    }
}

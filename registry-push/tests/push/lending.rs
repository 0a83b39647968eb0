//! A push whose credential stays with somebody else, and what is found out of a push beforehand, against docker-registry.

use crate::image::{Made, assert_complete, image};
use crate::plain::credential;
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, PASSWORD, Registry};
use crate::secure::with_tokens;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use slipway_registry_push::{
    Credential, Exchange, Lender, Lent, NotLent, Push, PushError, PushOptions, Reach, Scope,
    Target, Wanted, push,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Keeps the credential, and what it lent as text.
#[derive(Debug)]
struct Keeper {
    exchange: Exchange,
    lent: Mutex<Vec<String>>,
    /// For how long it says that its tokens are good.
    lifetime: Option<Duration>,
}

impl Keeper {
    fn new(target: &Target, credential: Credential, lifetime: Option<Duration>) -> Arc<Keeper> {
        Arc::new(Keeper {
            exchange: Exchange::new(target, credential, &PushOptions::default()).unwrap(),
            lent: Mutex::default(),
            lifetime,
        })
    }

    fn options(self: &Arc<Keeper>) -> PushOptions {
        PushOptions {
            lender: Some(self.clone()),
            ..PushOptions::default()
        }
    }
}

impl Lender for Keeper {
    fn lend<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Lent, NotLent>> {
        async move {
            let lent = self.exchange.lend(scope.mount_from.as_deref()).await;
            let (lent, text) = match lent {
                Ok(Lent::Nothing) => (Lent::Nothing, "nothing".to_string()),
                Ok(Lent::Token(token, lifetime)) => (
                    Lent::Token(token.clone(), self.lifetime.unwrap_or(lifetime)),
                    token,
                ),
                Ok(Lent::Credential(credential)) => {
                    let text = credential.password.clone();
                    (Lent::Credential(credential), text)
                }
                Err(PushError::Unauthorized { said, .. }) => {
                    return Err(NotLent::Refused(said.as_str().to_string()));
                }
                Err(error) => return Err(NotLent::Failed(error.to_string())),
            };
            self.lent.lock().unwrap().push(text);
            Ok(lent)
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_pushes_with_lent_tokens_never_has_the_password() {
    let Some((registry, scopes)) = with_tokens().await else {
        return;
    };
    let image = image(&[Made::new(3 << 20, 1), Made::new(2 << 20, 2)]);
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    let keeper = Keeper::new(&target, credential(PASSWORD), None);
    let options = PushOptions {
        mount_from: vec!["team/base".to_string()],
        ..keeper.options()
    };
    let pushed = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "team/app", "v1", &image, &pushed);
    let lent = keeper.lent.lock().unwrap().clone();
    assert_eq!(lent.len(), 1, "one token for the whole push");
    assert!(lent.iter().all(|text| !text.contains(PASSWORD)));
    assert_eq!(*scopes.lock().unwrap(), ["repository:team/app:pull,push"]);
    // The base may be read, as with the credential itself.
    keeper.exchange.lend(Some("team/base")).await.unwrap();
    let asked = scopes.lock().unwrap().clone();
    assert!(
        asked.contains(&"repository:team/base:pull".to_string()),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lent_tokens_that_end_are_asked_for_again() {
    let Some((registry, _)) = with_tokens().await else {
        return;
    };
    let image = image(&[Made::new(3 << 20, 1), Made::new(2 << 20, 2)]);
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    let keeper = Keeper::new(&target, credential(PASSWORD), Some(Duration::ZERO));
    let pushed = push(image.clone(), &target, None, &keeper.options(), |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "team/app", "v1", &image, &pushed);
    assert!(keeper.lent.lock().unwrap().len() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keepers_wrong_password_is_told_as_one() {
    let Some((registry, _)) = with_tokens().await else {
        return;
    };
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    let keeper = Keeper::new(&target, credential("wrong-word"), None);
    let image = image(&[Made::new(1 << 20, 1)]);
    let error = push(image, &target, None, &keeper.options(), |_| ())
        .await
        .unwrap_err();
    let is_refused = matches!(&error, PushError::Unauthorized { anonymous: false, said, .. }
        if said.as_str().contains("incorrect username"));
    assert!(is_refused, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_lent_where_a_registry_knows_nothing_else_or_is_not_to_be_reached() {
    let Some(registry) = Registry::start(&Access::Password) else {
        return;
    };
    let image = image(&[Made::new(1 << 20, 1)]);
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    let keeper = Keeper::new(&target, credential(PASSWORD), None);
    let pushed = push(image.clone(), &target, None, &keeper.options(), |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "team/app", "v1", &image, &pushed);
    assert_eq!(*keeper.lent.lock().unwrap(), [PASSWORD]);

    for name in ["127.0.0.1", "localhost"] {
        let name = format!("{name}:{}/team/app:v1", registry.address.port());
        let nowhere = PushOptions {
            reach: Some(Reach::new(|_| false)),
            ..PushOptions::default()
        };
        let target = Target::parse(&name).unwrap();
        let exchange = Exchange::new(&target, credential("kept"), &nowhere).unwrap();
        let lent = exchange.lend(None).await.unwrap();
        assert!(
            matches!(lent, Lent::Credential(it) if it.password == "kept"),
            "{name}"
        );
    }
}

/// A tenant names the registry, and the registry names its token server: neither leads to where the keeper must not go.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_that_is_not_to_be_reached_is_not_asked() {
    let Some((registry, scopes)) = with_tokens().await else {
        return;
    };
    // The registry alone, which is asked twice: without a token, and then for a token to ask with.
    let seen = Arc::new(Mutex::new(0));
    let counted = seen.clone();
    let once = Reach::new(move |_| {
        let mut seen = counted.lock().unwrap();
        *seen += 1;
        *seen <= 2
    });
    let options = PushOptions {
        reach: Some(once),
        ..PushOptions::default()
    };
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    let exchange = Exchange::new(&target, credential(PASSWORD), &options).unwrap();
    // The way to tokens is closed, and the password is no way round it.
    let refused = exchange.lend(None).await.unwrap_err();
    assert!(matches!(refused, PushError::Closed { .. }), "{refused:?}");
    assert_eq!(*seen.lock().unwrap(), 3);
    assert!(scopes.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_or_a_token_server_that_is_away_brings_nobody_the_password() {
    let Some((registry, _)) = with_tokens().await else {
        return;
    };
    let lend = |name: String| async move {
        let target = Target::parse(&name).unwrap();
        let options = PushOptions::default();
        let exchange = Exchange::new(&target, credential(PASSWORD), &options).unwrap();
        exchange.lend(None).await
    };
    let once = Proxy::start(registry.address, |_, number| match number {
        0 => Act::LoseAnswer,
        _ => Act::Forward,
    });
    let lent = lend(once.await.target("team/app:v1")).await.unwrap();
    assert!(matches!(lent, Lent::Token(token, _) if !token.contains(PASSWORD)));
    let always = Proxy::start(registry.address, |_, _| Act::LoseAnswer).await;
    let error = lend(always.target("team/app:v1")).await.unwrap_err();
    assert!(matches!(error, PushError::Broken { .. }), "{error:?}");
    assert!(always.seen().len() > 1);

    // Nobody listens there any more.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let asks_for_tokens = Proxy::start(registry.address, move |_, _| {
        let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\"");
        Act::Answer(
            http::StatusCode::UNAUTHORIZED,
            vec![("www-authenticate", challenge)],
            "",
        )
    })
    .await;
    let error = lend(asks_for_tokens.target("team/app:v1"))
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error:?}");
    // Of the registry itself nothing is known then: it may be one that the builder alone reaches.
    let lent = lend(format!("{address}/team/app:v1")).await.unwrap();
    assert!(matches!(lent, Lent::Credential(it) if it.password == PASSWORD));
}

/// A proxy looks names up by itself: what the keeper may reach would not be what is reached.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_go_everywhere_goes_through_no_proxy() {
    let Some(registry) = Registry::start(&Access::Password) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |_, _| Act::Forward).await;
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
    for (reach, is_used) in [(None, true), (Some(Reach::new(|_| true)), false)] {
        let options = PushOptions {
            reach,
            http_proxy: Some(format!("http://{}", proxy.address)),
            ..PushOptions::default()
        };
        let before = proxy.seen().len();
        let exchange = Exchange::new(&target, credential(PASSWORD), &options).unwrap();
        let lent = exchange.lend(None).await.unwrap();
        assert!(matches!(lent, Lent::Credential(_)));
        assert_eq!(proxy.seen().len() > before, is_used);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_pulls_with_a_lent_token_can_read_those_repositories_and_write_nothing() {
    let (Some((registry, scopes)), Some(passwords)) =
        (with_tokens().await, Registry::start(&Access::Password))
    else {
        return;
    };
    let made = image(&[Made::new(1 << 20, 1)]);
    for repository in ["team/base", "team/other"] {
        let target = Target::parse(&registry.target(&format!("{repository}:v1"))).unwrap();
        let options = PushOptions::default();
        push(
            made.clone(),
            &target,
            Some(&credential(PASSWORD)),
            &options,
            |_| (),
        )
        .await
        .unwrap();
    }
    scopes.lock().unwrap().clear();
    let target = Target::parse(&registry.target("team/base:v1")).unwrap();
    let exchange = |password, at: &Target| {
        Exchange::new(at, credential(password), &PushOptions::default()).unwrap()
    };
    let keeper = exchange(PASSWORD, &target);
    assert_eq!(keeper.wanted_of_pulls().await.unwrap(), Wanted::Token);
    assert!(
        scopes.lock().unwrap().is_empty(),
        "nothing is shown to find that out"
    );
    let repositories = ["team/base".to_string()];
    let (token, lifetime) = keeper.pull_token(&repositories).await.unwrap();
    assert!(!token.contains(PASSWORD) && lifetime > Duration::from_secs(30));
    assert_eq!(*scopes.lock().unwrap(), ["repository:team/base:pull"]);

    let client = reqwest::Client::new();
    let ask = |method: http::Method, path: &str| {
        let url = format!("http://{}/v2/{path}", registry.address);
        let request = client
            .request(method, url)
            .bearer_auth(&token)
            .header(
                "accept",
                "application/vnd.docker.distribution.manifest.v2+json",
            )
            .header("accept", "application/vnd.oci.image.manifest.v1+json");
        async move { request.send().await.unwrap().status().as_u16() }
    };
    use http::Method;
    assert_eq!(ask(Method::HEAD, "team/base/manifests/v1").await, 200);
    assert_eq!(ask(Method::HEAD, "team/other/manifests/v1").await, 401);
    assert_eq!(ask(Method::POST, "team/base/blobs/uploads/").await, 401);

    let wrong = exchange("wrong-word", &target);
    let refused = wrong.pull_token(&repositories).await.unwrap_err();
    assert!(
        matches!(
            refused,
            PushError::Unauthorized {
                anonymous: false,
                ..
            }
        ),
        "{refused:?}"
    );
    // Who knows passwords alone gives none, and none is told.
    let target = Target::parse(&passwords.target("team/base:v1")).unwrap();
    let keeper = exchange(PASSWORD, &target);
    assert_eq!(keeper.wanted_of_pulls().await.unwrap(), Wanted::Credential);
    assert!(keeper.pull_token(&repositories).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_would_refuse_is_found_before_there_is_an_image() {
    let (Some((tokens, scopes)), Some(passwords)) =
        (with_tokens().await, Registry::start(&Access::Password))
    else {
        return;
    };
    for registry in [&tokens, &passwords] {
        let target = Target::parse(&registry.target("team/app:v1")).unwrap();
        for (login, is_taken) in [
            (None, false),
            (Some(credential("wrong-word")), false),
            (Some(credential(PASSWORD)), true),
        ] {
            let push = Push::new(&target, login.as_ref(), &PushOptions::default()).unwrap();
            match push.checker().check().await {
                Ok(()) => assert!(is_taken),
                Err(PushError::Unauthorized { anonymous, .. }) => {
                    assert!(!is_taken);
                    assert_eq!(anonymous, login.is_none());
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    assert_eq!(scopes.lock().unwrap().len(), 1, "one token");
}

//! TLS and signed tokens, against docker-registry's own checks of both. Keys and signatures come from openssl.

use crate::image::{Made, assert_complete, image};
use crate::plain::credential;
use crate::registry::{Access, PASSWORD, Registry, USER};
use crate::{program, run, skip};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use slipway_registry_push::{Credential, PushError, PushOptions, Target, push};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// A key and a certificate for 127.0.0.1 signed with itself.
struct Identity {
    _dir: tempfile::TempDir,
    openssl: PathBuf,
    key: PathBuf,
    certificate: PathBuf,
}

impl Identity {
    fn new() -> Option<Identity> {
        let Some(openssl) = program("openssl") else {
            skip("needs openssl");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let (key, certificate) = (
            dir.path().join("key.pem"),
            dir.path().join("certificate.pem"),
        );
        run(Command::new(&openssl)
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
            ])
            .args([
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate));
        Some(Identity {
            _dir: dir,
            openssl,
            key,
            certificate,
        })
    }

    /// RSA with SHA-256.
    fn sign(&self, text: &str, scratch: &Path) -> Vec<u8> {
        let (input, output) = (scratch.join("text"), scratch.join("signature"));
        std::fs::write(&input, text).unwrap();
        let mut openssl = Command::new(&self.openssl);
        openssl
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .arg("-out")
            .arg(&output)
            .arg(&input);
        run(&mut openssl);
        std::fs::read(output).unwrap()
    }

    fn pem(&self) -> Vec<u8> {
        std::fs::read(&self.certificate).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls_is_trusted_by_its_root_alone() {
    let Some(identity) = Identity::new() else {
        return;
    };
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let Some(registry) = Registry::start_with(&Access::Password, &tls) else {
        return;
    };
    let target = Target::parse(&registry.target("app:v1")).unwrap();
    let image = image(&[Made::new(3 << 20, 1)]);
    let secure = PushOptions {
        require_tls: true,
        ..PushOptions::default()
    };
    let error = push(
        image.clone(),
        &target,
        Some(&credential(PASSWORD)),
        &secure,
        |_| (),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error:?}");
    let trusting = PushOptions {
        extra_roots_pem: vec![identity.pem()],
        ..secure
    };
    let pushed = push(
        image.clone(),
        &target,
        Some(&credential(PASSWORD)),
        &trusting,
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(&registry, "app", "v1", &image, &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_is_spoken_to_as_it_speaks() {
    let Some(identity) = Identity::new() else {
        return;
    };
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let image = image(&[Made::new(3 << 20, 1)]);
    let with_tls = Registry::start_with(&Access::Password, &tls);
    let (Some(with_tls), Some(without)) = (with_tls, Registry::start(&Access::Password)) else {
        return;
    };
    for (name, registry, named) in [
        ("host", &with_tls, with_tls.address.to_string()),
        ("network", &with_tls, "127.0.0.0/8".to_string()),
        ("clear", &without, format!("http://{}", without.address)),
    ] {
        let options = PushOptions {
            insecure: vec![named],
            ..PushOptions::default()
        };
        let target = Target::parse(&registry.target(&format!("{name}:v1"))).unwrap();
        let login = credential(PASSWORD);
        let pushed = push(image.clone(), &target, Some(&login), &options, |_| ())
            .await
            .unwrap();
        assert_complete(registry, name, "v1", &image, &pushed);
    }
    // Whoever requires TLS gets it verified, whatever the list says.
    let options = PushOptions {
        insecure: vec![with_tls.address.to_string()],
        require_tls: true,
        ..PushOptions::default()
    };
    let target = Target::parse(&with_tls.target("other:v1")).unwrap();
    let error = push(image, &target, None, &options, |_| ())
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::Unreachable { .. }), "{error:?}");
}

/// What identity tokens are exchanged for.
const IDENTITY_TOKEN: &str = "identity/token+of=someone";

/// Docker's token server, as far as docker-registry checks its work: tokens for those scopes that were asked for, by GET with a password
/// or by POST with an identity token. Its realm redirects once, as those behind a TLS proxy do.
async fn token_server(identity: Arc<Identity>, scopes: Arc<Mutex<Vec<String>>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        while let Ok((stream, _)) = listener.accept().await {
            let (identity, scopes, expected) = (identity.clone(), scopes.clone(), expected.clone());
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (identity, scopes, expected) =
                    (identity.clone(), scopes.clone(), expected.clone());
                async move {
                    let (parts, body) = request.into_parts();
                    if !parts.uri.path().ends_with('/') {
                        let query = parts.uri.query().map(|query| format!("?{query}"));
                        let to = format!("{}/{}", parts.uri.path(), query.unwrap_or_default());
                        return Response::builder()
                            .status(307)
                            .header(header::LOCATION, to)
                            .body(Full::new(bytes::Bytes::new()));
                    }
                    let form = body.collect().await.unwrap().to_bytes();
                    let form = String::from_utf8(form.to_vec()).unwrap();
                    let shown = parts.headers.get(header::AUTHORIZATION);
                    let (is_right, question) = match parts.method == Method::POST {
                        true => (shown.is_none() && exchanges(&form), form),
                        false => (
                            shown.is_some_and(|value| value == expected.as_str()),
                            parts.uri.query().unwrap_or_default().to_string(),
                        ),
                    };
                    let (status, body) = if is_right {
                        let asked = asked_scopes(&question);
                        scopes.lock().unwrap().extend(asked.iter().cloned());
                        (
                        200,
                        serde_json::json!({ "token": token(&identity, &asked), "expires_in": 60 })
                            .to_string(),
                    )
                    } else {
                        (
                            401,
                            r#"{"details":"incorrect username or password"}"#.to_string(),
                        )
                    };
                    Response::builder()
                        .status(status)
                        .body(Full::new(bytes::Bytes::from(body)))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    format!("http://{address}/token")
}

fn exchanges(form: &str) -> bool {
    let pairs: Vec<(String, String)> = form_urlencoded::parse(form.as_bytes())
        .into_owned()
        .collect();
    let has = |name: &str, value: &str| pairs.contains(&(name.to_string(), value.to_string()));
    has("grant_type", "refresh_token")
        && has("refresh_token", IDENTITY_TOKEN)
        && has("service", "test")
}

fn asked_scopes(question: &str) -> Vec<String> {
    form_urlencoded::parse(question.as_bytes())
        .filter(|(name, _)| name == "scope")
        .flat_map(|(_, value)| value.split(' ').map(str::to_string).collect::<Vec<_>>())
        .collect()
}

/// A JSON web token as the distribution's token specification has it, with the certificate in its header.
fn token(identity: &Identity, scopes: &[String]) -> String {
    let pem = String::from_utf8(identity.pem()).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let header = serde_json::json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] });
    let access: Vec<_> = scopes
        .iter()
        .map(|scope| {
            let parts: Vec<&str> = scope.split(':').collect();
            let actions: Vec<&str> = parts[2].split(',').collect();
            serde_json::json!({ "type": parts[0], "name": parts[1], "actions": actions })
        })
        .collect();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = serde_json::json!({
        "iss": "test", "aud": "test", "sub": USER, "exp": now + 60, "nbf": now - 10, "iat": now, "jti": "1", "access": access,
    });
    let text = [header, claims]
        .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
        .join(".");
    let scratch = tempfile::tempdir().unwrap();
    let signature = identity.sign(&text, scratch.path());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A registry that wants tokens, its token server, and the scopes that were asked for. `None` when a program is missing.
pub(crate) async fn with_tokens() -> Option<(Registry, Arc<Mutex<Vec<String>>>)> {
    let identity = Arc::new(Identity::new()?);
    let scopes: Arc<Mutex<Vec<String>>> = Arc::default();
    let realm = token_server(identity.clone(), scopes.clone()).await;
    let access = Access::Token {
        realm,
        certificate: identity.certificate.clone(),
    };
    Some((Registry::start(&access)?, scopes))
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_tokens_of_exactly_the_scopes_needed() {
    let Some((registry, scopes)) = with_tokens().await else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let options = PushOptions {
        index: Some(base.path().join("index")),
        ..PushOptions::default()
    };
    let image = image(&[Made::new(3 << 20, 1), Made::new(2 << 20, 2)]);
    let target = Target::parse(&registry.target("team/app:v1")).unwrap();
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
    assert!(error.to_string().contains("incorrect username"), "{error}");
    let pushed = push(
        image.clone(),
        &target,
        Some(&credential(PASSWORD)),
        &options,
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(&registry, "team/app", "v1", &image, &pushed);
    assert_eq!(
        *scopes.lock().unwrap(),
        ["repository:team/app:pull,push"],
        "one token for the whole push"
    );

    // A mount needs to read the other repository as well.
    let second = Target::parse(&registry.target("team/other:v1")).unwrap();
    let pushed = push(
        image.clone(),
        &second,
        Some(&credential(PASSWORD)),
        &options,
        |_| (),
    )
    .await
    .unwrap();
    assert_eq!(
        pushed
            .layers
            .iter()
            .map(|layer| layer.sent_bytes)
            .sum::<u64>(),
        0
    );
    assert_complete(&registry, "team/other", "v1", &image, &pushed);
    let asked: HashSet<String> = scopes.lock().unwrap().iter().cloned().collect();
    let expected = [
        "repository:team/app:pull,push",
        "repository:team/other:pull,push",
        "repository:team/app:pull",
    ];
    assert_eq!(asked, expected.map(str::to_string).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_tokens_are_exchanged() {
    let Some((registry, scopes)) = with_tokens().await else {
        return;
    };
    let image = image(&[Made::new(2 << 20, 1)]);
    let options = PushOptions::default();
    // As Docker's config has it (`identitytoken`), and as credential helpers write it.
    for (name, username) in [("config", ""), ("helper", "<token>")] {
        let target = Target::parse(&registry.target(&format!("{name}:v1"))).unwrap();
        let with = |password: &str| Credential {
            username: username.to_string(),
            password: password.to_string(),
        };
        let error = push(
            image.clone(),
            &target,
            Some(&with("other")),
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
        let right = with(IDENTITY_TOKEN);
        let pushed = push(image.clone(), &target, Some(&right), &options, |_| ())
            .await
            .unwrap();
        assert_complete(&registry, name, "v1", &image, &pushed);
    }
    let expected = ["config", "helper"].map(|name| format!("repository:{name}:pull,push"));
    assert_eq!(*scopes.lock().unwrap(), expected);
}

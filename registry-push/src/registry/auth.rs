//! Gets and renews what a registry wants to see: nothing, Basic, or a bearer token.
//!
//! The credential goes to the registry's own origin and to the token server that it names over TLS; nowhere else. Tokens are kept for one
//! push and never written down. Token servers are asked as Docker asks them: by GET with Basic (distribution, docs/spec/auth/token), or,
//! for an identity token, by POST (docs/spec/auth/oauth).

use super::endpoint::{Answer, Endpoint, read_answer};
use super::retry::{Attempts, is_rate_limit, is_transient, retry_after};
use crate::challenge::{Challenge, ChallengeError, choose};
use crate::error::{ProtocolFault, PushError, Said};
use crate::lend::{Lent, NotLent, Scope};
use crate::limits::{ANSWER_TIMEOUT, REDIRECTS, TOKEN_LIFETIME, TOKEN_LIFETIME_MAX, TOKEN_SLACK};
use crate::target::Credential;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// What a registry wants to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is open to everybody.
    Nothing,
    /// User name and password with each request.
    Credential,
    /// A token of its token server's.
    Token,
}

/// What is known of a registry's wishes.
#[derive(Default)]
pub(crate) struct Auth {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    challenge: Option<Challenge>,
    /// The lender has said so.
    wants_nothing: bool,
    /// By the other repository a token covers for a mount, if any.
    tokens: HashMap<Option<String>, Token>,
}

struct Token {
    header: HeaderValue,
    /// As the token server wrote it.
    text: String,
    ends_at: Instant,
    renew_at: Instant,
}

#[derive(serde::Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Auth {
    /// The header to send, if the registry has asked for one. Renews a token that is about to end.
    pub(crate) async fn header(
        &self,
        registry: &Endpoint,
        mount_from: Option<&str>,
    ) -> Result<Option<HeaderValue>, PushError> {
        let mut state = self.state.lock().await;
        if registry.credential.get().is_none()
            && let Some(lent) = lent(registry, &mut state, mount_from).await?
        {
            return Ok(lent);
        }
        match state.challenge.clone() {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(registry.credential.get().map(basic)),
            Some(Challenge::Bearer { realm, service }) => {
                let key = mount_from.map(str::to_string);
                if let Some(token) = state
                    .tokens
                    .get(&key)
                    .filter(|token| token.renew_at > Instant::now())
                {
                    return Ok(Some(token.header.clone()));
                }
                let mut scopes = vec![format!("repository:{}:pull,push", registry.repository)];
                scopes.extend(mount_from.map(pull_of));
                let token = fetch(registry, &realm, service.as_deref(), &scopes).await?;
                let header = token.header.clone();
                state.tokens.insert(key, token);
                Ok(Some(header))
            }
        }
    }

    /// What the registry has asked for so far.
    pub(crate) async fn wanted(&self) -> Wanted {
        match self.state.lock().await.challenge {
            None => Wanted::Nothing,
            Some(Challenge::Basic) => Wanted::Credential,
            Some(Challenge::Bearer { .. }) => Wanted::Token,
        }
    }

    /// A token as the token server wrote it, and how long it is good. It is not used here any more.
    pub(crate) async fn token(
        &self,
        registry: &Endpoint,
        mount_from: Option<&str>,
    ) -> Result<(String, Duration), PushError> {
        self.header(registry, mount_from).await?;
        let mut state = self.state.lock().await;
        let key = mount_from.map(str::to_string);
        let token = state.tokens.remove(&key);
        let token = token.ok_or_else(|| registry.protocol(ITEM, ProtocolFault::Token))?;
        let left = token.ends_at.saturating_duration_since(Instant::now());
        Ok((token.text, left))
    }

    /// A token for pulling from these repositories alone, and how long it is good. It is not kept.
    pub(crate) async fn pull_token(
        &self,
        registry: &Endpoint,
        repositories: &[String],
    ) -> Result<(String, Duration), PushError> {
        let challenge = self.state.lock().await.challenge.clone();
        let Some(Challenge::Bearer { realm, service }) = challenge else {
            return Err(registry.protocol(ITEM, ProtocolFault::Token));
        };
        let scopes: Vec<String> = repositories.iter().map(|it| pull_of(it)).collect();
        let token = fetch(registry, &realm, service.as_deref(), &scopes).await?;
        let left = token.ends_at.saturating_duration_since(Instant::now());
        Ok((token.text, left))
    }

    /// Takes in a 401. `shown` is the header it was answered to; when that is the newest we could show, there is no use in another try.
    pub(crate) async fn refused(
        &self,
        registry: &Endpoint,
        headers: &HeaderMap,
        shown: Option<&HeaderValue>,
        said: Said,
    ) -> Result<(), PushError> {
        let values = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenge = choose(values).map_err(|source| PushError::Challenge {
            host: registry.host.clone(),
            source,
        })?;
        let mut state = self.state.lock().await;
        state.wants_nothing = false;
        let is_lent = registry.lender().is_some() && registry.credential.get().is_none();
        let refused = || Err(registry.unauthorized(said));
        match &challenge {
            // What is lent is known by what is lent.
            Challenge::Basic if is_lent => {}
            Challenge::Basic if shown.is_some() || registry.credential.get().is_none() => {
                return refused();
            }
            Challenge::Basic => {}
            Challenge::Bearer { .. } => {
                // Another request may have fetched a newer token since; then only the old one was refused.
                if let Some(shown) = shown {
                    state.tokens.retain(|_, token| token.header != *shown);
                }
            }
        }
        state.challenge = Some(challenge);
        Ok(())
    }
}

/// What is lent, if that is not the credential itself.
async fn lent(
    registry: &Endpoint,
    state: &mut State,
    mount_from: Option<&str>,
) -> Result<Option<Option<HeaderValue>>, PushError> {
    let Some(lender) = registry.lender() else {
        return Ok(None);
    };
    let key = mount_from.map(str::to_string);
    let kept = state.tokens.get(&key);
    if let Some(token) = kept.filter(|token| token.renew_at > Instant::now()) {
        return Ok(Some(Some(token.header.clone())));
    }
    if state.wants_nothing {
        return Ok(Some(None));
    }
    let scope = Scope {
        repository: registry.repository.clone(),
        mount_from: key.clone(),
    };
    match lender.lend(&scope).await {
        Ok(Lent::Nothing) => {
            state.wants_nothing = true;
            Ok(Some(None))
        }
        Ok(Lent::Token(text, lifetime)) => {
            let token = kept_for(&text, lifetime)
                .ok_or_else(|| registry.protocol(ITEM, ProtocolFault::Token))?;
            let header = token.header.clone();
            state.tokens.insert(key, token);
            Ok(Some(Some(header)))
        }
        Ok(Lent::Credential(credential)) => {
            // Nobody else sets it while the state is locked.
            let _ = registry.credential.set(credential);
            Ok(None)
        }
        Err(NotLent::Refused(words)) => {
            Err(registry.unauthorized(Said::from_body(words.as_bytes())))
        }
        Err(NotLent::Failed(reason)) => Err(PushError::NotLent {
            host: registry.host.clone(),
            reason,
        }),
    }
}

fn pull_of(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

fn basic(credential: &Credential) -> HeaderValue {
    let joined = STANDARD.encode(format!("{}:{}", credential.username, credential.password));
    sensitive(&format!("Basic {joined}")).unwrap_or_else(|| HeaderValue::from_static("Basic"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Asks the token server.
async fn fetch(
    registry: &Endpoint,
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
) -> Result<Token, PushError> {
    let realm = token_server(registry, realm)?;
    let question = match registry.credential.get() {
        Some(credential) if credential.is_identity_token() => Question {
            url: realm,
            form: Some(exchange(credential, service, scopes)),
            shown: None,
        },
        credential => Question {
            url: with_query(realm, credential, service, scopes),
            form: None,
            shown: credential.map(basic),
        },
    };
    let mut attempts = Attempts::default();
    loop {
        let (error, wait) = match asked(registry, &question).await {
            Ok(answer) => match answer.status {
                StatusCode::OK => return token(registry, &answer.body),
                status
                    if is_rate_limit(status, &answer.headers, &Said::from_body(&answer.body)) =>
                {
                    let wait = attempts.limited(retry_after(&answer.headers));
                    (registry.failed(ITEM, &answer, attempts.made()), wait)
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(registry.unauthorized(Said::from_body(&answer.body)));
                }
                // How a server for OAuth says that a token has ended or was never good (RFC 6749, section 5.2).
                StatusCode::BAD_REQUEST if question.form.is_some() => {
                    return Err(registry.unauthorized(Said::from_body(&answer.body)));
                }
                status if is_transient(status) => {
                    let wait = attempts.failed(retry_after(&answer.headers));
                    (registry.failed(ITEM, &answer, attempts.made()), wait)
                }
                _ => return Err(registry.failed(ITEM, &answer, 1)),
            },
            Err(error @ (PushError::Broken { .. } | PushError::TimedOut { .. })) => {
                let wait = attempts.failed(None);
                (error.with_attempts(attempts.made()), wait)
            }
            Err(error @ PushError::Unreachable { .. }) => (error, attempts.failed(None)),
            Err(error) => return Err(error),
        };
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// For messages.
const ITEM: &str = "the token";

/// One question to a token server.
struct Question {
    url: Url,
    /// The body of a POST; without it the question is a GET.
    form: Option<String>,
    /// What authenticates a GET.
    shown: Option<HeaderValue>,
}

/// The token server's URL, if a credential may go there.
fn token_server(registry: &Endpoint, realm: &str) -> Result<Url, PushError> {
    let challenge = |source: ChallengeError| PushError::Challenge {
        host: registry.host.clone(),
        source,
    };
    let url = Url::parse(realm).map_err(|_| challenge(ChallengeError::Realm(realm.to_string())))?;
    let url = registry.secured(&url).unwrap_or(url);
    if !may_see_credential(registry, &url) && registry.credential.get().is_some() {
        return Err(challenge(ChallengeError::Clear(realm.to_string())));
    }
    Ok(url)
}

fn may_see_credential(registry: &Endpoint, url: &Url) -> bool {
    url.scheme() == "https" || registry.may_be_plain(url)
}

fn with_query(
    mut url: Url,
    credential: Option<&Credential>,
    service: Option<&str>,
    scopes: &[String],
) -> Url {
    url.query_pairs_mut()
        .extend_pairs(service.map(|service| ("service", service)))
        .extend_pairs(scopes.iter().map(|scope| ("scope", scope)))
        .extend_pairs(credential.map(|credential| ("account", credential.username.as_str())));
    url
}

/// The exchange of an identity token, as a form (RFC 6749, section 6).
fn exchange(credential: &Credential, service: Option<&str>, scopes: &[String]) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token")
        .extend_pairs(service.map(|service| ("service", service)))
        .append_pair("client_id", "slipway-push")
        .append_pair("scope", &scopes.join(" "))
        .append_pair("refresh_token", &credential.password);
    form.finish()
}

/// Asks once, and follows redirects: within the host (to TLS, to a path with a slash), or to another one, which gets no credential.
async fn asked(registry: &Endpoint, question: &Question) -> Result<Answer, PushError> {
    let mut url = question.url.clone();
    for _ in 0..=REDIRECTS {
        let is_meant = url.host() == question.url.host() && may_see_credential(registry, &url);
        let method = match question.form {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let mut request = registry.http(&url)?.request(method, url.clone());
        match (&question.form, &question.shown) {
            (Some(form), _) if is_meant => {
                request = request
                    .header(
                        header::CONTENT_TYPE,
                        HeaderValue::from_static("application/x-www-form-urlencoded"),
                    )
                    .body(form.clone());
            }
            // A form for somebody else is not sent at all.
            (Some(_), _) => return Err(registry.protocol(ITEM, ProtocolFault::Redirects)),
            (None, Some(shown)) if is_meant => {
                request = request.header(header::AUTHORIZATION, shown.clone());
            }
            (None, _) => {}
        }
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await {
            Err(_) => return Err(registry.timed_out(ITEM, ANSWER_TIMEOUT)),
            Ok(Err(source)) => return Err(registry.transport(ITEM, 1, source)),
            Ok(Ok(response)) => read_answer(response).await,
        };
        if !answer.status.is_redirection() || !answer.headers.contains_key(header::LOCATION) {
            return Ok(answer);
        }
        url = registry.location(ITEM, &url, &answer.headers)?;
    }
    Err(registry.protocol(ITEM, ProtocolFault::Redirects))
}

/// Reads the answer of a token server; the token is never longer than the answer, and lives for a day at most.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz_token(registry: &Endpoint, body: &[u8]) {
    if let Ok(token) = token(registry, body) {
        assert!(token.header.len() <= body.len() + "Bearer ".len());
        assert!(token.header.is_sensitive());
        assert!(token.renew_at <= Instant::now() + TOKEN_LIFETIME_MAX);
    }
}

fn token(registry: &Endpoint, body: &[u8]) -> Result<Token, PushError> {
    let fault = || registry.protocol("the token", ProtocolFault::Token);
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| fault())?;
    let text = answer
        .token
        .or(answer.access_token)
        .filter(|text| !text.is_empty())
        .ok_or_else(fault)?;
    let lifetime = answer
        .expires_in
        .map_or(TOKEN_LIFETIME, Duration::from_secs);
    kept_for(&text, lifetime).ok_or_else(fault)
}

/// `None` for a text that no header can have.
fn kept_for(text: &str, lifetime: Duration) -> Option<Token> {
    let lifetime = lifetime.min(TOKEN_LIFETIME_MAX);
    // A short-lived token is used for most of its life rather than renewed at every request.
    let slack = TOKEN_SLACK.min(lifetime / 4);
    Some(Token {
        header: sensitive(&format!("Bearer {text}"))?,
        text: text.to_string(),
        ends_at: Instant::now() + lifetime,
        renew_at: Instant::now() + lifetime.saturating_sub(slack),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::PushOptions;
    use crate::target::Target;

    #[test]
    fn a_credential_stays_within_tls() {
        let target = Target::parse("harbor.example.test/team/app:1").expect("parses");
        let credential = Credential {
            username: "someone".into(),
            password: "secret".into(),
        };
        let options = PushOptions::default();
        let registry = Endpoint::new(&target, Some(&credential), &options).expect("prepares");
        for (realm, expected) in [
            (
                "https://auth.example.test/t",
                Some("https://auth.example.test/t"),
            ),
            // Behind a proxy that ends TLS, a registry writes the scheme that it sees.
            (
                "http://harbor.example.test/service/token",
                Some("https://harbor.example.test/service/token"),
            ),
            ("http://harbor.example.test:8080/service/token", None),
            ("http://auth.example.test/t", None),
            ("http://harbor.example.test.evil.test/t", None),
        ] {
            let found = token_server(&registry, realm).ok();
            assert_eq!(found.as_ref().map(Url::as_str), expected, "{realm}");
        }
    }
}

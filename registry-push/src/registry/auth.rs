//! Gets and renews what a registry wants to see: nothing, Basic, or a bearer token.
//!
//! The credential goes to the registry's own origin and to the token server that it names over TLS; nowhere else. Tokens are kept for one
//! push and never written down.

use super::challenge::{Challenge, ChallengeError, choose};
use super::client::{Registry, read_answer};
use super::retry::{Attempts, is_transient, retry_after};
use crate::error::{ProtocolFault, PushError, Said};
use crate::limits::{ANSWER_TIMEOUT, TOKEN_LIFETIME, TOKEN_SLACK};
use crate::target::Credential;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::Url;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// What is known of a registry's wishes.
#[derive(Default)]
pub(crate) struct Auth {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    challenge: Option<Challenge>,
    /// By the other repository a token covers for a mount, if any.
    tokens: HashMap<Option<String>, Token>,
}

struct Token {
    header: HeaderValue,
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
        registry: &Registry,
        mount_from: Option<&str>,
    ) -> Result<Option<HeaderValue>, PushError> {
        let mut state = self.state.lock().await;
        match state.challenge.clone() {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(registry.credential.as_ref().map(basic)),
            Some(Challenge::Bearer { realm, service }) => {
                let key = mount_from.map(str::to_string);
                if let Some(token) = state
                    .tokens
                    .get(&key)
                    .filter(|token| token.renew_at > Instant::now())
                {
                    return Ok(Some(token.header.clone()));
                }
                let token = fetch(registry, &realm, service.as_deref(), mount_from).await?;
                let header = token.header.clone();
                state.tokens.insert(key, token);
                Ok(Some(header))
            }
        }
    }

    /// Takes in a 401. `shown` is the header it was answered to; when that is the newest we could show, there is no use in another try.
    pub(crate) async fn refused(
        &self,
        registry: &Registry,
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
        let refused = || Err(registry.unauthorized(said));
        match &challenge {
            Challenge::Basic if shown.is_some() || registry.credential.is_none() => {
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

fn basic(credential: &Credential) -> HeaderValue {
    let joined = STANDARD.encode(format!("{}:{}", credential.username, credential.password));
    sensitive(&format!("Basic {joined}")).unwrap_or_else(|| HeaderValue::from_static("Basic"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Asks the token server (distribution, docs/spec/auth/token).
async fn fetch(
    registry: &Registry,
    realm: &str,
    service: Option<&str>,
    mount_from: Option<&str>,
) -> Result<Token, PushError> {
    let challenge = |source: ChallengeError| PushError::Challenge {
        host: registry.host.clone(),
        source,
    };
    let mut url =
        Url::parse(realm).map_err(|_| challenge(ChallengeError::Realm(realm.to_string())))?;
    if url.scheme() != "https" && registry.credential.is_some() && !registry.may_be_plain(&url) {
        return Err(challenge(ChallengeError::Clear(realm.to_string())));
    }
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(service.map(|service| ("service", service)));
        query.append_pair(
            "scope",
            &format!("repository:{}:pull,push", registry.repository),
        );
        query.extend_pairs(mount_from.map(|from| ("scope", format!("repository:{from}:pull"))));
        query.extend_pairs(
            registry
                .credential
                .as_ref()
                .map(|credential| ("account", credential.username.as_str())),
        );
    }
    let mut attempts = Attempts::default();
    loop {
        let mut request = registry.http(&url)?.get(url.clone());
        if let Some(credential) = &registry.credential {
            request = request.header(header::AUTHORIZATION, basic(credential));
        }
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await;
        let (error, wait) = match sent {
            Err(_) => (
                registry.timed_out("the token", ANSWER_TIMEOUT),
                attempts.failed(None),
            ),
            Ok(Err(source)) => {
                let wait = attempts.failed(None);
                (
                    registry.transport("the token", attempts.made(), source),
                    wait,
                )
            }
            Ok(Ok(response)) => {
                let answer = read_answer(response).await;
                match answer.status {
                    StatusCode::OK => return token(registry, &answer.body),
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        return Err(registry.unauthorized(Said::from_body(&answer.body)));
                    }
                    status if is_transient(status) => {
                        let wait = attempts.failed(retry_after(&answer.headers));
                        (registry.failed("the token", &answer, attempts.made()), wait)
                    }
                    _ => return Err(registry.failed("the token", &answer, 1)),
                }
            }
        };
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// Reads the answer of a token server; the token is never longer than the answer, and lives for a day at most.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz_token(registry: &Registry, body: &[u8]) {
    if let Ok(token) = token(registry, body) {
        assert!(token.header.len() <= body.len() + "Bearer ".len());
        assert!(token.header.is_sensitive());
        assert!(token.renew_at <= Instant::now() + Duration::from_secs(86_400));
    }
}

fn token(registry: &Registry, body: &[u8]) -> Result<Token, PushError> {
    let fault = || registry.protocol("the token", ProtocolFault::Token);
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| fault())?;
    let text = answer
        .token
        .or(answer.access_token)
        .filter(|text| !text.is_empty())
        .ok_or_else(fault)?;
    let header = sensitive(&format!("Bearer {text}")).ok_or_else(fault)?;
    let lifetime = answer
        .expires_in
        .map_or(TOKEN_LIFETIME, Duration::from_secs)
        .min(Duration::from_secs(86_400));
    // A short-lived token is used for most of its life rather than renewed at every request.
    let slack = TOKEN_SLACK.min(lifetime / 4);
    Ok(Token {
        header,
        renew_at: Instant::now() + lifetime.saturating_sub(slack),
    })
}

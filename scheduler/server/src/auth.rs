//! Who asks, and for which org: the one place where credentials become principals, and principals enter orgs.
//!
//! A token's secret is 256 random bits, known to the store by its SHA-256 alone. It is looked up by that hash, so no
//! comparison here depends on the secret's own bytes, and a hash read from the store opens nothing.
//!
//! Must not know: what is done with an org once entered.

mod cache;
mod credential;
mod failures;
mod recent;
mod watch;

pub use credential::{Credential, CredentialError, SECRET_PREFIX, Secret};

use crate::bounds::TOKEN_TOUCH_EVERY;
use crate::ca::CertificateIdentity;
use crate::clock::now;
use crate::problem::{Code, Problem};
use crate::rate::LogLimit;
use cache::{Cache, CacheKey, Good};
use failures::Failures;
use recent::RecentOrgs;
use slipway_core::id::{AppId, OrgId, TokenId};
use slipway_store::{App, ErrorKind, Org, Store, StoreError, Token, TokenRole};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What became of a credential.
#[derive(Debug)]
pub enum AuthOutcome {
    /// It is good.
    Allowed(Principal),
    /// It is not.
    Denied(Denial),
    /// Nobody could tell: the store did not answer.
    Unavailable,
}

/// Why a credential is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// There is none.
    Missing,
    /// It has not the form of one.
    Malformed,
    /// Nobody issued it.
    Unknown,
    /// It was good once.
    Revoked,
    /// It was good for a time.
    Expired,
    /// It is not, and too many wrong ones came from there to say why.
    TooManyFailures,
}

/// Somebody whose credential is good. Clones end together when the token is revoked or expires.
#[derive(Debug, Clone)]
pub struct Principal {
    token: Arc<Token>,
    /// The org the credential is confined to; absent for the administrator's token.
    org: Option<OrgId>,
    /// The app that was named as Basic's user name.
    named_app: Option<String>,
    ended: Arc<CancellationToken>,
}

/// An org that a principal has entered, and what it may do there.
#[derive(Debug, Clone)]
pub struct Entered {
    /// The org.
    pub org: Org,
    /// The one app it may touch; absent for all.
    pub app: Option<AppId>,
}

/// Turns credentials into principals; clones share what they remember.
#[derive(Debug, Clone)]
pub struct Authenticator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    cache: Cache,
    failures: Failures,
    refusals: LogLimit,
    recent: RecentOrgs,
}

impl Denial {
    /// As the caller may know it. Whoever holds the secret may know what became of it.
    pub fn problem(self) -> Problem {
        let message = match self {
            Self::Missing => "authentication is required",
            Self::Malformed => "the credential is malformed",
            Self::Unknown => "the token is not known",
            Self::Revoked => "the token has been revoked",
            Self::Expired => "the token has expired",
            Self::TooManyFailures => {
                let message =
                    "the credential is not good, and too many others from your address were not";
                return Problem::new(Code::Limit, message)
                    .hint("see that nothing uses an old token; wait a minute to be told more");
            }
        };
        Problem::new(Code::Unauthenticated, message)
    }
}

impl Principal {
    /// The token behind the credential.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The org the credential is confined to; absent for the administrator.
    pub fn org(&self) -> Option<&OrgId> {
        self.org.as_ref()
    }

    /// Cancelled when the token is revoked or has expired: whatever runs for it ends. That is at once for a revocation
    /// by this process, and within [`TOKEN_LOOK_EVERY`](crate::bounds::TOKEN_LOOK_EVERY) for everything else.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// May it do what needs `role`?
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn require(&self, role: TokenRole) -> Result<(), Problem> {
        if self.token.role >= role {
            return Ok(());
        }
        let (has, needs) = (name(self.token.role), name(role));
        Err(Problem::new(
            Code::Forbidden,
            format!("this needs a token with the role {needs}; yours has the role {has}"),
        )
        .hint(format!(
            "whoever has an admin token of the org can make one: `slipway tokens create NAME --role {needs}`"
        )))
    }

    /// Is it the installation's administrator?
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn require_administrator(&self) -> Result<(), Problem> {
        match self.org {
            None => self.require(TokenRole::Admin),
            Some(_) => Err(
                Problem::new(Code::Forbidden, "this needs the administrator's token")
                    .hint("it is in admin.token in the server's data directory"),
            ),
        }
    }
}

impl Authenticator {
    /// Remembers nothing yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(Inner {
            store,
            cache: Cache::default(),
            failures: Failures::default(),
            refusals: LogLimit::new(),
            recent: RecentOrgs::default(),
        }))
    }

    /// Whose credential is this?
    pub async fn authenticate(&self, credential: &Credential, peer: IpAddr) -> AuthOutcome {
        let key = match credential {
            Credential::Secret { secret, .. } => CacheKey::Secret(secret.hash().0),
            Credential::Certificate(identity) => CacheKey::Certificate(identity.clone()),
        };
        let inner = &self.0;
        let Good { token, ended } = match inner.cache.get(&key) {
            Some(good) => good,
            // However many wrong ones came from there: it is one look by a key, and others may share the address.
            None => match inner.look_up(credential, &key).await {
                Ok(good) => good,
                Err(Some(denial)) => return AuthOutcome::Denied(inner.denied(peer, denial)),
                Err(None) => return AuthOutcome::Unavailable,
            },
        };
        // The clock goes on while the cache remembers.
        if let Err(denial) = check(&token) {
            return AuthOutcome::Denied(inner.denied(peer, denial));
        }
        let org = match credential {
            Credential::Certificate(identity) => Some(identity.org.clone()),
            Credential::Secret { .. } => token.org.clone(),
        };
        AuthOutcome::Allowed(Principal {
            org,
            named_app: credential.named_app(),
            token,
            ended,
        })
    }

    /// Enters an org: the one that is asked for (id or slug), or the credential's own.
    ///
    /// # Errors
    /// [`Code::NotFound`] for an org that is not the caller's, whether it exists or not; [`Code::AppNotFound`] or
    /// [`Code::Forbidden`] for an app named by Basic's user name; [`Code::Invalid`] if the administrator names no org.
    pub async fn enter(
        &self,
        principal: &Principal,
        asked: Option<&str>,
    ) -> Result<Entered, Problem> {
        let store = &self.0.store;
        let org = match (&principal.org, asked) {
            (None, None) => {
                return Err(Problem::new(Code::Invalid, "which org?")
                    .hint("the administrator's token is good for all; name one"));
            }
            (None, Some(asked)) => match asked.parse::<OrgId>() {
                Ok(id) => found(store.org(&id).await, asked)?,
                Err(_) => found(store.org_by_slug(asked).await, asked)?,
            },
            (Some(own), asked) => {
                let org = store.org(own).await?;
                match asked {
                    Some(asked) if asked != org.slug && asked != org.id.as_str() => {
                        return Err(unknown_org(asked));
                    }
                    Some(_) | None => org,
                }
            }
        };
        if let Some(name) = &principal.named_app {
            let app = store.app_by_name(&org.id, name).await?;
            check_app(principal, &app)?;
        }
        Ok(Entered {
            org,
            app: principal.token.app.clone(),
        })
    }

    /// The same for the gateways, which want an org's defaults with every request: as they were a moment ago.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub async fn enter_recent(
        &self,
        principal: &Principal,
        asked: Option<&str>,
    ) -> Result<Entered, Problem> {
        let recent = &self.0.recent;
        if let (Some(own), None, None) = (&principal.org, &principal.named_app, asked)
            && let Some(org) = recent.get(own, Instant::now())
        {
            return Ok(Entered {
                org,
                app: principal.token.app.clone(),
            });
        }
        let entered = self.enter(principal, asked).await?;
        recent.put(&entered.org, Instant::now());
        Ok(entered)
    }

    /// Forgets a token, at once, and ends what runs for it. Call it after the store has revoked it.
    pub fn revoked(&self, token: &TokenId) {
        self.0.cache.end(token);
    }
}

impl Entered {
    /// May the principal touch this app?
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn check_app(&self, app: &App) -> Result<(), Problem> {
        match &self.app {
            Some(only) if *only != app.id => Err(other_app()),
            Some(_) | None => Ok(()),
        }
    }
}

fn name(role: TokenRole) -> &'static str {
    match role {
        TokenRole::Read => "read",
        TokenRole::Deploy => "deploy",
        TokenRole::Admin => "admin",
    }
}

fn check_app(principal: &Principal, app: &App) -> Result<(), Problem> {
    match &principal.token.app {
        Some(only) if *only != app.id => Err(other_app()),
        Some(_) | None => Ok(()),
    }
}

/// Whether a neighbour of that name exists is none of the caller's business: the answer is the same.
fn unknown_org(asked: &str) -> Problem {
    let asked: String = asked.chars().filter(|c| !c.is_control()).take(64).collect();
    Problem::new(
        Code::NotFound,
        format!("there is no org '{asked}', or it is not yours"),
    )
    .hint("`slipway orgs list` shows the orgs your token is good for")
}

fn found(org: Result<Org, StoreError>, asked: &str) -> Result<Org, Problem> {
    match org {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(unknown_org(asked)),
        done => Ok(done?),
    }
}

fn other_app() -> Problem {
    Problem::new(Code::Forbidden, "the token is good for another app only")
}

fn check(token: &Token) -> Result<(), Denial> {
    if token.revoked_at.is_some() {
        return Err(Denial::Revoked);
    }
    match token.expires_at {
        Some(end) if end <= now() => Err(Denial::Expired),
        Some(_) | None => Ok(()),
    }
}

impl Inner {
    /// Counts a wrong credential, and writes it down as long as there are not too many.
    fn denied(&self, peer: IpAddr, denial: Denial) -> Denial {
        let now = Instant::now();
        let too_many = self.failures.count(peer, now);
        if let Some(left_out) = self.refusals.admit(now) {
            tracing::info!(%peer, ?denial, left_out, "credential refused");
        }
        if too_many {
            return Denial::TooManyFailures;
        }
        denial
    }

    /// `Err(None)`: the store does not answer.
    async fn look_up(
        &self,
        credential: &Credential,
        key: &CacheKey,
    ) -> Result<Good, Option<Denial>> {
        loop {
            let epoch = self.cache.epoch();
            let found = match credential {
                Credential::Secret { secret, .. } => self.store.token_by_hash(&secret.hash()).await,
                Credential::Certificate(identity) => self.token_of(identity).await,
            };
            let token = match found {
                Ok(Some(token)) => Arc::new(token),
                Ok(None) => return Err(Some(Denial::Unknown)),
                Err(error) => {
                    tracing::error!(why = ?crate::chain::chain(&error), "token not looked up");
                    return Err(None);
                }
            };
            check(&token).map_err(Some)?;
            // Revoked between the store's answer and here: ask again.
            if let Some(good) = self.cache.put(epoch, key.clone(), Arc::clone(&token)) {
                self.touch(&token);
                return Ok(good);
            }
        }
    }

    /// The token a certificate was issued with, if it may speak for the certificate's org: it is the org's own, or the
    /// administrator's.
    async fn token_of(&self, identity: &CertificateIdentity) -> Result<Option<Token>, StoreError> {
        let token = self.store.token(&identity.token).await?;
        Ok(token.filter(|token| {
            token
                .org
                .as_ref()
                .is_none_or(|owner| *owner == identity.org)
        }))
    }

    fn touch(&self, token: &Token) {
        let due = |last| now().since(last) >= TOKEN_TOUCH_EVERY;
        if token.last_used_at.is_none_or(due) {
            let (store, id) = (Arc::clone(&self.store), token.id.clone());
            tokio::spawn(async move {
                if let Err(error) = store.touch_token(&id, now()).await {
                    tracing::debug!(why = ?crate::chain::chain(&error), "use of a token not noted");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;

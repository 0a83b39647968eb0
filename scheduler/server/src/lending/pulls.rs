//! Lends tokens to deploys that pull from a registry whose login the org has stored and the client has not.
//!
//! A token is for pulling from named repositories alone. The password is given to nobody here: who pulls from a registry that knows nothing
//! else must be logged in himself. Must not know: who pulls, from where it is asked.

use super::Lending;
use crate::bounds::{
    PULL_EXCHANGE_KEPT, PULL_EXCHANGES_MAX, PULL_LOAN_EVERY, PULL_LOAN_WAIT_MAX, PULL_LOANS_MAX,
    PULL_REPOSITORIES_MAX, REFERENCE_BYTES_MAX,
};
use crate::credentials::canonical;
use crate::problem::{Code, Problem};
use crate::rate::Bucket;
use slipway_core::build::RegistryCredential;
use slipway_core::id::OrgId;
use slipway_registry_push::{Credential, Exchange, PushError, Target, Wanted};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What is lent to who pulls. `Debug` shows no token.
pub(crate) enum PullLoan {
    /// The org has no login there, the registry wants none, or it is not reached from here: it is pulled from as if there were none.
    Nothing,
    /// The registry gives tokens; no repository was named.
    Tokens,
    /// A token as the token server wrote it, and how long it is good.
    Token(String, Duration),
    /// The registry takes passwords alone, and that is not lent.
    Password,
}

impl PullLoan {
    /// Whether it has a token in it.
    pub(crate) fn is_token(&self) -> bool {
        matches!(self, Self::Token(..))
    }
}

impl std::fmt::Debug for PullLoan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Tokens => "Tokens",
            Self::Token(..) => "Token(redacted)",
            Self::Password => "Password",
        })
    }
}

/// What is remembered between two loans.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    paces: Mutex<HashMap<OrgId, Bucket>>,
    exchanges: Mutex<HashMap<(OrgId, String), Kept>>,
}

/// An exchange that was made a while ago: what the registry wants is known there, and connections are open.
#[derive(Debug)]
struct Kept {
    made_at: Instant,
    /// By which a login that was changed since is found.
    credential: RegistryCredential,
    exchange: Arc<Exchange>,
}

impl Lending {
    /// A token for pulling from these repositories of a registry with the org's stored login; without any, whether tokens are lent.
    ///
    /// # Errors
    /// [`Code::Limit`] for too many at once, [`Code::Invalid`] for what is no repository and for a login that the registry refuses,
    /// [`Code::Unavailable`] for a token server that does not answer.
    pub(crate) async fn pull(
        &self,
        org: &OrgId,
        registry: &str,
        repositories: &[String],
    ) -> Result<PullLoan, Problem> {
        let registry = canonical(registry);
        let Some(target) = checked(&registry, repositories) else {
            let message = "that is no registry, or none of its repositories";
            return Err(Problem::new(Code::Invalid, message)
                .hint("like registry.example:5000 and team/app, without tag"));
        };
        if !self.pulls.admit(org) {
            let message = "the org asks for too many registry tokens at once";
            return Err(Problem::new(Code::Limit, message).hint("deploy again in a minute"));
        }
        let Some(credential) = self.credentials.get(org, &registry).await? else {
            self.forget(org, &target);
            return Ok(PullLoan::Nothing);
        };
        let exchange = self.exchange(org, &target, credential);
        let exchange = exchange.map_err(|error| Problem::internal(&error))?;
        let asked = async {
            match exchange.wanted_of_pulls().await? {
                Wanted::Nothing => Ok(PullLoan::Nothing),
                Wanted::Credential => Ok(PullLoan::Password),
                Wanted::Token if repositories.is_empty() => Ok(PullLoan::Tokens),
                Wanted::Token => {
                    let (token, lifetime) = exchange.pull_token(repositories).await?;
                    Ok(PullLoan::Token(token, lifetime))
                }
            }
        };
        match tokio::time::timeout(PULL_LOAN_WAIT_MAX, asked).await {
            Ok(Ok(loan)) => {
                // Nothing was saved by what is known of such a registry, and it may learn to give tokens.
                if matches!(loan, PullLoan::Nothing | PullLoan::Password) {
                    self.forget(org, &target);
                }
                Ok(loan)
            }
            // Without a loan an image that everybody may read can still be had.
            Ok(Err(error)) if repositories.is_empty() => {
                tracing::debug!(registry, %error, "the registry is not asked from here");
                Ok(PullLoan::Nothing)
            }
            Err(_elapsed) if repositories.is_empty() => Ok(PullLoan::Nothing),
            Ok(Err(PushError::Unauthorized { said, .. })) => {
                let message = format!(
                    "{registry} refuses the login that the org has stored: {}",
                    said.as_str()
                );
                let hint = format!("`slipway registry login {registry}` stores another one");
                Err(Problem::new(Code::Invalid, message).hint(hint))
            }
            Ok(Err(error)) => Err(Problem::new(Code::Unavailable, error.to_string())),
            Err(_elapsed) => {
                let message = format!("the token server of {registry} does not answer");
                Err(Problem::new(Code::Unavailable, message).hint("try again later"))
            }
        }
    }

    fn forget(&self, org: &OrgId, target: &Target) {
        let key = (org.clone(), target.registry().to_owned());
        lock(&self.pulls.exchanges).remove(&key);
    }

    /// The one that is kept, or a new one.
    fn exchange(
        &self,
        org: &OrgId,
        target: &Target,
        credential: RegistryCredential,
    ) -> Result<Arc<Exchange>, PushError> {
        let now = Instant::now();
        let mut kept = lock(&self.pulls.exchanges);
        kept.retain(|_, it| now.duration_since(it.made_at) < PULL_EXCHANGE_KEPT);
        let key = (org.clone(), target.registry().to_owned());
        if let Some(known) = kept.get(&key).filter(|it| it.credential == credential) {
            return Ok(Arc::clone(&known.exchange));
        }
        let login = Credential {
            username: credential.username.clone(),
            password: credential.password.clone(),
        };
        let exchange = Arc::new(Exchange::new(target, login, &self.options)?);
        if kept.len() >= PULL_EXCHANGES_MAX
            && let Some(oldest) = kept.iter().min_by_key(|(_, it)| it.made_at)
        {
            let oldest = oldest.0.clone();
            kept.remove(&oldest);
        }
        let new = Kept {
            made_at: now,
            credential,
            exchange: Arc::clone(&exchange),
        };
        kept.insert(key, new);
        Ok(exchange)
    }
}

impl Pulls {
    fn admit(&self, org: &OrgId) -> bool {
        let now = Instant::now();
        let mut paces = lock(&self.paces);
        paces.retain(|_, pace| !pace.is_full(now));
        let pace = paces.entry(org.clone()).or_insert_with(Bucket::full);
        pace.take(now, PULL_LOANS_MAX, PULL_LOAN_EVERY)
    }
}

/// Some repository of the registry, if all names are what they should be. Whatever is in the way of a scope's grammar is no repository.
fn checked(registry: &str, repositories: &[String]) -> Option<Target> {
    let named = |repository: &str| {
        let target = Target::parse(&format!("{registry}/{repository}:latest")).ok()?;
        (target.registry() == registry).then_some(target)
    };
    let is_short = |text: &str| text.len() <= REFERENCE_BYTES_MAX;
    let are_repositories = is_short(registry)
        && repositories.len() <= PULL_REPOSITORIES_MAX
        && repositories.iter().all(|repository| {
            is_short(repository)
                && named(repository).is_some_and(|it| it.repository() == repository)
        });
    if !are_repositories {
        return None;
    }
    named("any/image")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repositories_of_that_registry_are_asked_for() {
        let many = vec!["team/app"; PULL_REPOSITORIES_MAX];
        for (registry, repositories) in [
            ("r.example", vec![]),
            ("r.example:5000", vec!["app", "team/app"]),
            ("docker.io", vec!["library/debian"]),
            ("r.example", many.clone()),
        ] {
            let names: Vec<String> = repositories.iter().map(|it| (*it).to_owned()).collect();
            let target = checked(registry, &names);
            let at = target.as_ref().map(Target::registry);
            assert_eq!(at, Some(registry), "{registry} {names:?}");
        }
        let too_many = [many, vec!["team/app"]].concat();
        for (registry, repositories) in [
            ("r.example", vec!["app:pull,push repository:other"]),
            ("r.example", vec!["app:1"]),
            ("r.example", vec!["app", "app&scope=x"]),
            ("r.example", vec![""]),
            ("r.example", vec!["../app"]),
            ("r.example", too_many),
            ("r.example/team", vec!["app"]),
            ("plain", vec!["app"]),
            ("", vec![]),
        ] {
            let names: Vec<String> = repositories.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(checked(registry, &names), None, "{registry} {names:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_org_that_asks_without_end_is_slowed_down_and_no_other() {
        let pulls = Pulls::default();
        let [one, other] = [1, 2].map(|n| OrgId::from_entropy([n; 10]));
        let admitted = (0..PULL_LOANS_MAX * 2).filter(|_| pulls.admit(&one));
        assert_eq!(admitted.count(), PULL_LOANS_MAX as usize);
        assert!(pulls.admit(&other));
        tokio::time::advance(PULL_LOAN_EVERY).await;
        assert!(pulls.admit(&one));
        assert!(!pulls.admit(&one));
        tokio::time::advance(PULL_LOAN_EVERY * PULL_LOANS_MAX).await;
        assert!(pulls.admit(&other));
        assert_eq!(lock(&pulls.paces).len(), 1, "who is quiet is forgotten");
    }
}

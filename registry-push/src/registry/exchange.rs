//! Trades a credential for tokens, for somebody who is to push ([`crate::Lender`]) or to pull without it.
//!
//! Pushes nothing and reads no image.

use super::auth::Wanted;
use super::client::{Ask, Registry};
use super::retry::{Attempts, is_hopeless};
use super::small::{cancel, open};
use crate::error::PushError;
use crate::lend::Lent;
use crate::limits::EXCHANGE_ATTEMPTS;
use crate::options::PushOptions;
use crate::target::{Credential, Target};
use http::Method;
use std::time::Duration;
use tokio::sync::OnceCell;

/// For messages.
const ITEM: &str = "its version";

/// One credential at one repository. Asks the registry what it wants once, then makes a token whenever one is asked for.
pub struct Exchange {
    registry: Registry,
    credential: Credential,
    wanted: OnceCell<Wanted>,
    /// The same from who pulls, and shows nothing when he asks.
    wanted_of_pulls: OnceCell<Wanted>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl Exchange {
    /// Prepares; asks nothing yet.
    pub fn new(
        target: &Target,
        credential: Credential,
        options: &PushOptions,
    ) -> Result<Exchange, PushError> {
        Ok(Exchange {
            registry: Registry::new(target, Some(&credential), options)?,
            credential,
            wanted: OnceCell::new(),
            wanted_of_pulls: OnceCell::new(),
        })
    }

    /// What is to be shown by who pushes to the repository, and pulls from `mount_from`. A token is given out once.
    ///
    /// The credential itself is given where the registry has asked for that, and where it asked for nothing because it is not to be reached
    /// from here, or could not be, however often it was tried. Never where it has asked for a token, whatever fails then; never because a
    /// connection broke or an answer did not come.
    pub async fn lend(&self, mount_from: Option<&str>) -> Result<Lent, PushError> {
        let wanted = match self.wanted.get_or_try_init(|| self.ask()).await {
            Ok(wanted) => wanted,
            Err(error) if is_out_of_reach(&error) && !self.wants_tokens().await => {
                let host = self.registry.at.name();
                tracing::warn!(host, %error, "the registry is not reached from here: its credential is lent instead of a token");
                return Ok(Lent::Credential(self.credential.clone()));
            }
            Err(error) => return Err(error),
        };
        match wanted {
            Wanted::Nothing => Ok(Lent::Nothing),
            Wanted::Credential => Ok(Lent::Credential(self.credential.clone())),
            Wanted::Token => {
                let (token, lifetime) = self.registry.token(mount_from).await?;
                Ok(Lent::Token(token, lifetime))
            }
        }
    }

    async fn wants_tokens(&self) -> bool {
        self.registry.wanted().await == Wanted::Token
    }

    /// What the registry wants from who pulls. Asked once, and shown nothing.
    pub async fn wanted_of_pulls(&self) -> Result<Wanted, PushError> {
        let ask = || self.registry.ask_what_is_wanted(ITEM);
        self.wanted_of_pulls.get_or_try_init(ask).await.copied()
    }

    /// A token for pulling from these repositories of the registry and for nothing else, and how long it is good. Names of repositories go
    /// into its scopes as they are: the caller has checked them. Fails where the registry wants no token.
    pub async fn pull_token(
        &self,
        repositories: &[String],
    ) -> Result<(String, Duration), PushError> {
        self.wanted_of_pulls().await?;
        self.registry.pull_token(repositories).await
    }

    /// Asks, again where the way may be better the next time. Token servers are asked again by whoever asks them.
    async fn ask(&self) -> Result<Wanted, PushError> {
        let mut attempts = Attempts::default();
        loop {
            let error = match self.ask_once().await {
                Ok(wanted) => return Ok(wanted),
                Err(error) => error,
            };
            let may_pass = matches!(
                error,
                PushError::Unreachable { .. }
                    | PushError::Broken { .. }
                    | PushError::TimedOut { .. }
            ) && !is_hopeless(&error)
                && !self.wants_tokens().await;
            match attempts.failed(None) {
                Some(wait) if may_pass && attempts.made() < EXCHANGE_ATTEMPTS => {
                    tokio::time::sleep(wait).await;
                }
                Some(_) | None => return Err(error.with_attempts(attempts.made())),
            }
        }
    }

    /// By asking for its version, as Docker's clients do; one that wants nothing for that is asked for an upload.
    async fn ask_once(&self) -> Result<Wanted, PushError> {
        self.registry.at.settle().await?;
        let mut ask = Ask::new(ITEM, Method::GET, self.registry.at.url("/v2/"));
        ask.is_retried = false;
        // Whatever it answers, it has said by then what it wants.
        match self.registry.request(ask).await {
            Ok(_)
            | Err(
                PushError::Unauthorized { .. }
                | PushError::RateLimited { .. }
                | PushError::RegistryFailed { .. },
            ) => {}
            Err(error) => return Err(error),
        }
        if self.registry.wanted().await == Wanted::Nothing {
            let opened = open(&self.registry, ITEM).await?;
            cancel(&self.registry, ITEM, opened.url).await;
        }
        Ok(self.registry.wanted().await)
    }
}

fn is_out_of_reach(error: &PushError) -> bool {
    matches!(
        error,
        PushError::Unreachable { .. } | PushError::Closed { .. }
    )
}

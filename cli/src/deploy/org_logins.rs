//! Logins of registries for a deploy on an org's builder: this computer's own ones first; where there is none, tokens that the server lends
//! for pulling, made with the login that the org has stored.
//!
//! The login that is stored never comes here. Must not know how a session is served.

use crate::api::{ApiClient, queries};
use crate::docker_logins::DockerLogins;
use crate::limits::LENDING_REGISTRIES_MAX;
use slipway_buildkit::{Lends, LentToken, RegistryLogin, RegistryLogins};
use slipway_terminal::exit::{Failure, Outcome};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Logins of this computer, and tokens of the server's.
#[derive(Debug)]
pub(super) struct OrgLogins {
    docker: DockerLogins,
    client: ApiClient,
    org: String,
    /// As whom tokens are lent, to tell this deploy's from those of others.
    authority: [u8; 32],
    asked: Mutex<HashMap<String, Arc<OnceCell<Lends>>>>,
}

impl OrgLogins {
    /// Takes where to ask.
    ///
    /// # Errors
    /// Ours: no randomness.
    pub(super) fn new(docker: &DockerLogins, client: &ApiClient, org: &str) -> Outcome<Self> {
        let mut authority = [0; 32];
        getrandom::fill(&mut authority)
            .map_err(|error| Failure::system(format!("no random numbers: {error}")))?;
        Ok(Self {
            docker: docker.clone(),
            client: client.clone(),
            org: org.to_owned(),
            authority,
            asked: Mutex::default(),
        })
    }

    async fn ask(&self, registry: &str) -> Lends {
        match queries::lend_pull(&self.client, &self.org, registry, &[]).await {
            Ok(loan) => match loan.kind.as_str() {
                "TOKEN" => Lends::Tokens(self.authority),
                "PASSWORD" => Lends::Password,
                _ => Lends::Nothing,
            },
            // An older server lends nothing to pulls. What is public can be had all the same.
            Err(error) => {
                let why = error.failure.message();
                tracing::debug!(registry, why, "nothing is lent");
                Lends::Nothing
            }
        }
    }
}

#[slipway_buildkit::async_trait]
impl RegistryLogins for OrgLogins {
    async fn find(&self, registry: &str) -> Option<RegistryLogin> {
        self.docker.find(registry).await
    }

    async fn lends(&self, registry: &str) -> Lends {
        let answer = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.len() >= LENDING_REGISTRIES_MAX && !asked.contains_key(registry) {
                return Lends::Nothing;
            }
            Arc::clone(asked.entry(registry.to_owned()).or_default())
        };
        *answer.get_or_init(|| self.ask(registry)).await
    }

    async fn lend(&self, registry: &str, repositories: &[String]) -> Result<LentToken, String> {
        let loan = queries::lend_pull(&self.client, &self.org, registry, repositories).await;
        let loan = loan.map_err(|error| {
            let message = error.failure.message();
            match error.failure.hint_text() {
                Some(hint) => format!("{message} ({hint})"),
                None => message.to_owned(),
            }
        })?;
        let token = loan
            .token
            .ok_or_else(|| format!("the server lends no token for {registry} any more"))?;
        Ok(LentToken {
            token,
            lifetime: Duration::from_millis(loan.life_ms.unwrap_or_default()),
        })
    }
}

//! Ends what runs for a token that is good no longer: it has expired, or another process has revoked it.
//!
//! Requests find that out by themselves, because each is authenticated. Streams are not asked again once they run, and
//! may run for days.
//!
//! Must not know: what runs.

use super::{Authenticator, Inner, check};
use crate::bounds::TOKEN_LOOK_EVERY;
use crate::farm::{chain, now};
use slipway_core::id::TokenId;
use slipway_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

impl Authenticator {
    /// Looks at the tokens that something runs for, until `cancel`.
    pub(crate) async fn watch(self, cancel: CancellationToken) {
        let mut every = tokio::time::interval(TOKEN_LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = every.tick() => {}
            }
            for (token, expires_at) in self.0.cache.live() {
                if self.0.has_ended(&token, expires_at).await {
                    tracing::info!(%token, "token is good no longer; what runs for it ends");
                    self.0.cache.end(&token);
                }
            }
        }
    }
}

impl Inner {
    /// A store that does not answer ends nothing but what has expired.
    async fn has_ended(&self, token: &TokenId, expires_at: Option<Timestamp>) -> bool {
        if expires_at.is_some_and(|end| end <= now()) {
            return true;
        }
        match self.store.token(token).await {
            Ok(found) => found.is_none_or(|token| check(&token).is_err()),
            Err(error) => {
                tracing::debug!(%token, why = chain(&error), "token not looked at");
                false
            }
        }
    }
}

//! Ends what runs for a token that is good no longer: it has expired, or another process has revoked it.
//!
//! Requests find that out by themselves, because each is authenticated. Streams are not asked again once they run, and
//! may run for days.
//!
//! Must not know: what runs.

use super::{Authenticator, Inner, check};
use crate::bounds::TOKEN_LOOK_EVERY;
use crate::chain::chain;
use crate::clock::now;
use slipway_core::id::TokenId;
use slipway_core::time::Timestamp;
use std::collections::HashSet;
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
            for token in self.0.ended().await {
                tracing::info!(%token, "token is good no longer; what runs for it ends");
                self.0.cache.end(&token);
            }
        }
    }
}

impl Inner {
    /// Which of the tokens that something runs for are good no longer. A store that does not answer ends nothing but what has expired.
    async fn ended(&self) -> Vec<TokenId> {
        let live = self.cache.live();
        let at = now();
        let expired = |expires_at: Option<Timestamp>| expires_at.is_some_and(|end| end <= at);
        let (mut ended, running): (Vec<_>, Vec<_>) = live
            .into_iter()
            .partition(|(_, expires_at)| expired(*expires_at));
        if !running.is_empty() {
            let ids: Vec<TokenId> = running.iter().map(|(token, _)| token.clone()).collect();
            match self.store.tokens_by_id(&ids).await {
                Ok(found) => {
                    let good = found.iter().filter(|token| check(token).is_ok());
                    let good: HashSet<&TokenId> = good.map(|token| &token.id).collect();
                    let gone = running
                        .into_iter()
                        .filter(|(token, _)| !good.contains(token));
                    ended.extend(gone);
                }
                Err(error) => tracing::warn!(why = ?chain(&error), "tokens not looked at"),
            }
        }
        ended.into_iter().map(|(token, _)| token).collect()
    }
}

//! Good credentials, remembered for a moment; and the switch that ends what runs for a token when it is good no longer.
//!
//! Must not know: how a credential is found to be good.

use crate::bounds::{AUTH_CACHE_KEEP, AUTH_CACHE_MAX};
use crate::ca::CertificateIdentity;
use slipway_core::id::TokenId;
use slipway_core::time::Timestamp;
use slipway_store::Token;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum CacheKey {
    Secret([u8; 32]),
    Certificate(CertificateIdentity),
}

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts revocations.
    epoch: u64,
    good: HashMap<CacheKey, (Arc<Token>, Instant)>,
    /// Of each token that something runs for.
    live: HashMap<TokenId, Live>,
}

#[derive(Debug)]
struct Live {
    switch: Weak<CancellationToken>,
    expires_at: Option<Timestamp>,
}

/// A token whose credential is good, and the switch that is thrown when it is revoked or expires.
#[derive(Debug)]
pub(super) struct Good {
    pub(super) token: Arc<Token>,
    pub(super) ended: Arc<CancellationToken>,
}

impl State {
    /// The switch of a token; all holders have the same.
    fn switch(&mut self, token: &Token) -> Arc<CancellationToken> {
        let live = self.live.get(&token.id);
        if let Some(switch) = live.and_then(|live| live.switch.upgrade()) {
            return switch;
        }
        let ended = Arc::new(CancellationToken::new());
        let live = Live {
            switch: Arc::downgrade(&ended),
            expires_at: token.expires_at,
        };
        self.live.insert(token.id.clone(), live);
        ended
    }
}

impl Cache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A good credential's token and its switch, read together, so that no revocation falls between the two.
    pub(super) fn get(&self, key: &CacheKey) -> Option<Good> {
        let mut state = self.state();
        let (token, until) = state.good.get(key)?;
        let token = (*until > Instant::now()).then(|| Arc::clone(token))?;
        let ended = state.switch(&token);
        Some(Good { token, ended })
    }

    /// Read it before the store is asked.
    pub(super) fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// Remembers a credential, unless something was revoked since `epoch`: then nothing is known and it gives `None`.
    pub(super) fn put(&self, epoch: u64, key: CacheKey, token: Arc<Token>) -> Option<Good> {
        let mut state = self.state();
        if state.epoch != epoch {
            return None;
        }
        let at = Instant::now();
        if state.good.len() >= AUTH_CACHE_MAX {
            state.good.retain(|_, (_, until)| *until > at);
        }
        // Still full: every one is in use; the store is asked each time for the rest.
        if state.good.len() < AUTH_CACHE_MAX {
            state
                .good
                .insert(key, (Arc::clone(&token), at + AUTH_CACHE_KEEP));
        }
        let ended = state.switch(&token);
        Some(Good { token, ended })
    }

    /// The tokens that something runs for, and when they expire. Forgets the others.
    pub(super) fn live(&self) -> Vec<(TokenId, Option<Timestamp>)> {
        let mut state = self.state();
        state.live.retain(|_, live| live.switch.strong_count() > 0);
        let live = state.live.iter();
        live.map(|(token, live)| (token.clone(), live.expires_at))
            .collect()
    }

    /// Forgets a token, and ends what runs for it.
    pub(super) fn end(&self, token: &TokenId) {
        let mut state = self.state();
        state.epoch += 1;
        state.good.retain(|_, (known, _)| known.id != *token);
        let live = state.live.remove(token);
        let switch = live.and_then(|live| live.switch.upgrade());
        drop(state);
        if let Some(switch) = switch {
            switch.cancel();
        }
    }
}

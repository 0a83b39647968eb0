//! One request while it is carried out: until when it may go on, what its answer may still take, what it has read already.
//!
//! Must not know: the schema, transports.

use super::answer::{Budget, Full};
use super::limits::{GRAPHQL_ANSWER_BYTES_MAX, GRAPHQL_EVENT_BYTES_MAX};
use super::{Refused, Result};
use crate::auth::Principal;
use crate::problem::{Code, Problem};
use async_graphql::{Context, Value};
use slipway_core::id::{AppId, HostId, OrgId};
use slipway_store::{Host, Store, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// A request that runs.
#[derive(Debug)]
pub(super) struct Running {
    /// The caller's credential is good no longer.
    revoked: CancellationToken,
    /// That, or the request takes too long.
    over: CancellationToken,
    pub(super) budget: Budget,
    /// Something did not fit into the answer.
    full: Mutex<Option<Full>>,
    /// Who holds it reads something large. So there is one such thing in memory that is not charged yet.
    pub(super) reading: tokio::sync::Mutex<()>,
    read: Mutex<Arc<Read>>,
}

/// What several fields of one answer want, read once.
#[derive(Debug, Default)]
struct Read {
    hosts: OnceCell<HashMap<HostId, Host>>,
    apps: Mutex<HashMap<AppId, Arc<OnceCell<String>>>>,
}

impl Running {
    pub(super) fn new(principal: &Principal, budget: Budget) -> Self {
        let revoked = CancellationToken::clone(principal.ended());
        Self {
            over: revoked.child_token(),
            revoked,
            budget,
            full: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            read: Mutex::default(),
        }
    }

    /// Of this request.
    ///
    /// # Errors
    /// [`Code::Internal`] if there is none, which the executor does not let happen.
    pub(super) fn of<'a>(context: &Context<'a>) -> Result<&'a Arc<Self>> {
        let running = context.data_opt::<Arc<Self>>();
        running.ok_or_else(|| Refused(Problem::new(Code::Internal, "the request does not run")))
    }

    /// Cancelled when nothing more of it may begin.
    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// May something more of it begin?
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] if its token is good no longer, [`Code::Unavailable`] if its time is over, [`Code::Limit`] if
    /// its answer is full.
    pub(super) fn check(&self) -> std::result::Result<(), Problem> {
        if self.revoked.is_cancelled() {
            return Err(revoked());
        }
        if self.over.is_cancelled() {
            return Err(too_long());
        }
        match *self.full() {
            Some(full) => Err(problem(full)),
            None => Ok(()),
        }
    }

    /// Adds so many bytes to the answer.
    ///
    /// # Errors
    /// [`Code::Limit`].
    pub(super) fn charge(&self, bytes: usize) -> std::result::Result<(), Problem> {
        let charged = self.budget.charge(bytes);
        self.noted(charged)
    }

    /// Adds a value to the answer.
    ///
    /// # Errors
    /// [`Code::Limit`].
    pub(super) fn charge_value(&self, value: &Value) -> std::result::Result<(), Problem> {
        let charged = self.budget.charge_value(value);
        self.noted(charged)
    }

    fn noted(&self, charged: std::result::Result<(), Full>) -> std::result::Result<(), Problem> {
        charged.map_err(|full| {
            *self.full() = Some(full);
            problem(full)
        })
    }

    /// What became of the answer: `Err` if it did not fit.
    ///
    /// # Errors
    /// [`Code::Limit`].
    pub(super) fn fits(&self) -> std::result::Result<(), Problem> {
        match *self.full() {
            Some(full) => Err(problem(full)),
            None => Ok(()),
        }
    }

    /// The next answer of a stream begins: nothing of the one before is kept.
    pub(super) fn begin(&self) {
        self.budget.begin();
        *self.full() = None;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    fn full(&self) -> MutexGuard<'_, Option<Full>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Arc<Read> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&read)
    }

    /// A host, if there is one with that id.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn host(
        &self,
        store: &dyn Store,
        id: &HostId,
    ) -> std::result::Result<Option<Host>, StoreError> {
        let read = self.read();
        let hosts = read.hosts.get_or_try_init(|| async {
            let hosts = store.hosts().await?.into_iter().map(|used| used.host);
            Ok::<_, StoreError>(hosts.map(|host| (host.id.clone(), host)).collect())
        });
        Ok(hosts.await?.get(id).cloned())
    }

    /// The name of an app.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn app_name(
        &self,
        store: &dyn Store,
        org: &OrgId,
        id: &AppId,
    ) -> std::result::Result<String, StoreError> {
        let read = self.read();
        let name = {
            let mut apps = read.apps.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(apps.entry(id.clone()).or_default())
        };
        let name = name.get_or_try_init(|| async { Ok(store.app(org, id).await?.name) });
        name.await.cloned()
    }
}

/// The caller's token is good no longer.
pub(super) fn revoked() -> Problem {
    Problem::new(
        Code::Unauthenticated,
        "the token has been revoked or has expired meanwhile",
    )
}

/// The request's time is over.
pub(super) fn too_long() -> Problem {
    Problem::new(Code::Unavailable, "the request takes too long")
        .hint("ask for less at once, or try again in a minute")
}

fn problem(full: Full) -> Problem {
    match full {
        Full::Answer => Problem::new(
            Code::Limit,
            format!(
                "the answer has more than {} MiB ({} MiB in a stream of events)",
                GRAPHQL_ANSWER_BYTES_MAX >> 20,
                GRAPHQL_EVENT_BYTES_MAX >> 20
            ),
        )
        .hint("ask for fewer fields or rows at once"),
        Full::Memory => Problem::new(
            Code::Limit,
            "answers that have not been read yet take all the memory there is for them",
        )
        .hint("read the answers of other requests first, or ask for less at once"),
    }
}

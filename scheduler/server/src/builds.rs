//! Builds: recorded, handed to the guest, followed to their end, and told to whoever asks.
//!
//! The guest owns a running build. This side keeps what the guest says, in order, from the last number it has; so it may
//! be killed at any moment and goes on where it was. Readers read from the store alone and are only told when there is
//! more, so there is neither a gap nor a duplicate between what was and what comes.
//!
//! Must not know: how a builder is woken, BuildKit, who may see which build.

mod classic;
mod follow;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod loans;
mod patience;
mod reader;
mod retention;
mod seen;
mod transcript;

use crate::chain::chain;
use crate::clock::now;
use crate::entropy::entropy;
use crate::farm::{ActivityGuard, BuilderKey, Farm, FarmError, FarmEvent};
use crate::guest_client::{GuestClient, GuestError, OLDER_HINT};
use crate::lending::Lending;
use crate::problem::Problem;
pub(crate) use classic::Tap;
use futures_util::Stream;
use http::StatusCode;
use reader::EventReader;
use seen::Watches;
pub use seen::{Asker, Carried};
use slipway_core::build::{
    BuildOutcome, BuildSource, BuildSpec, Fault, NumberedEvent, RegistryCredential,
};
use slipway_core::guest_api::StartBuild;
use slipway_core::host_api::EndpointPort;
use slipway_core::id::{AppId, BuildId, OrgId};
use slipway_core::quota::QuotaError;
use slipway_core::time::Timestamp;
use slipway_store::{Build, BuildState, ErrorKind, NewBuild, Store, StoreError};
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Why a build was not started, read or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its builder could not be used.
    #[error(transparent)]
    Farm(#[from] FarmError),
    /// The store did not do it.
    #[error("keep the build's record")]
    Store(#[from] StoreError),
    /// The builder refused it, with its own words.
    #[error("the builder refused the build: {message}")]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// The caller's credential was good no longer before the builder had the build.
    #[error("the token was revoked or expired before the build began")]
    Ended,
    /// It is a Docker client's own.
    #[error("the build belongs to the Docker client that asked for it, and ends with it")]
    OfClient,
    /// The builder was started by an older version, which does not know all that is asked of it.
    #[error(transparent)]
    Older(GuestError),
    /// The builder did not answer.
    #[error("hand the build to its builder")]
    Guest(#[source] GuestError),
}

impl BuildError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Farm(error) => error.fault(),
            Self::Store(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Limit => Fault::User,
                ErrorKind::NoSpace | ErrorKind::Unavailable | ErrorKind::Internal => Fault::System,
            },
            Self::Refused { status, .. } if status.is_client_error() => Fault::User,
            Self::Ended | Self::OfClient | Self::Older(_) => Fault::User,
            Self::Refused { .. } | Self::Guest(_) => Fault::System,
        }
    }

    /// What the caller may do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Farm(error) => error.hint(),
            Self::Refused { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS => {
                Some("wait until some of the builds have ended")
            }
            Self::Ended => Some("deploy again with a token that is good"),
            Self::OfClient => {
                Some("end it there, or everything on the builder: `slipway builders stop`")
            }
            Self::Older(_) => Some(OLDER_HINT),
            Self::Store(StoreError::Quota(error)) => error.hint(),
            Self::Store(_) | Self::Refused { .. } | Self::Guest(_) => None,
        }
    }
}

impl From<GuestError> for BuildError {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Refused { status, message } => Self::Refused { status, message },
            GuestError::Older => Self::Older(error),
            GuestError::Transport(_) | GuestError::TimedOut(_) | GuestError::Protocol(_) => {
                Self::Guest(error)
            }
        }
    }
}

/// What a caller wants built.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The id of the BuildKit session that the caller has open through the gateway.
    pub session: String,
    /// What to build.
    pub spec: BuildSpec,
    /// For the push alone: handed to the guest, kept nowhere.
    pub credential: Option<RegistryCredential>,
    /// The same for the registries of further names.
    pub tag_credentials: Vec<RegistryCredential>,
    /// Registries whose credential the org has stored: tokens are lent for them.
    pub lent: Vec<String>,
    /// Name of the token that asks.
    pub asked_by: Option<String>,
    /// Once this is cancelled the build does not begin; one that has begun goes on.
    pub until: CancellationToken,
}

/// A handle to the builds; clones are the same.
#[derive(Debug, Clone)]
pub struct BuildService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    farm: Farm,
    store: Arc<dyn Store>,
    /// Without it nothing is lent.
    lending: Option<Lending>,
    /// Builds that are followed now.
    live: Mutex<HashMap<BuildId, Arc<Live>>>,
    watches: Watches,
}

#[derive(Debug, Default)]
struct Live {
    /// Grows when the store has more of it.
    recorded: watch::Sender<u64>,
    cancelled: AtomicBool,
}

/// The entry of a build in [`Inner::live`], which goes with it.
#[derive(Debug)]
struct LiveEntry {
    inner: Arc<Inner>,
    id: BuildId,
    live: Arc<Live>,
}

impl Drop for LiveEntry {
    fn drop(&mut self) {
        self.inner.live().remove(&self.id);
    }
}

impl BuildService {
    /// Adopts all builds that have not ended, and follows each. Their tasks end with the farm's.
    ///
    /// # Errors
    /// The store's.
    pub async fn start(farm: &Farm, lending: Option<Lending>) -> Result<Self, BuildError> {
        let store = Arc::clone(&farm.shared().store);
        let unfinished = store.unfinished_builds().await?;
        let inner = Inner {
            farm: farm.clone(),
            store,
            lending,
            live: Mutex::default(),
            watches: Watches::default(),
        };
        let service = Self(Arc::new(inner));
        let shared = farm.shared();
        shared.tasks.spawn(retention::keep_deleting(
            Arc::clone(&shared.store),
            shared.ceilings,
            shared.cancel.clone(),
        ));
        for build in unfinished {
            service.adopt(build).await?;
        }
        Ok(service)
    }

    /// Follows a build of an earlier life. One that cannot be followed has failed; that keeps nobody else's from being followed.
    async fn adopt(&self, build: Build) -> Result<(), BuildError> {
        let inner = &self.0;
        let machine = inner.store.machine(&build.org, &build.machine).await;
        let found = match machine {
            Ok(machine) => {
                let (org, region, arch) = (machine.org, machine.region, machine.arch);
                let key = BuilderKey { org, region, arch };
                inner.farm.activity(&key).map(|guard| (key, guard))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error.into()),
            Err(error) => return Err(error.into()),
        };
        match found {
            Ok((key, guard)) => {
                tracing::info!(build = %build.id, after = build.last_seq, "build adopted");
                let live = inner.make_live(&build.id);
                let (accepted, _) = oneshot::channel();
                inner.spawn_follower(build, key, live, guard, accepted);
            }
            Err(error) => {
                tracing::error!(build = %build.id, why = ?chain(&error), "build cannot be followed");
                let outcome = BuildOutcome::Failed {
                    fault: Fault::System,
                    message: Problem::from(&error).message.into_owned(),
                    hint: Some("deploy again".to_owned()),
                    excerpt: None,
                };
                inner.give_up(&build, outcome).await;
            }
        }
        Ok(())
    }

    /// Records a build, hands it to the org's builder (which is made and woken if need be), and follows it. Returns when
    /// the builder has accepted it.
    ///
    /// # Errors
    /// [`BuildError`]; the build is then recorded as failed.
    pub async fn start_build(
        &self,
        key: &BuilderKey,
        app: &AppId,
        request: BuildRequest,
    ) -> Result<Build, BuildError> {
        let inner = &self.0;
        inner.check_room(&key.org).await?;
        let builder = inner.farm.ensure_builder(key).await?;
        if request.until.is_cancelled() {
            return Err(BuildError::Ended);
        }
        let id = BuildId::from_entropy(entropy().map_err(FarmError::from)?);
        let live = inner.make_live(&id);
        let new = NewBuild {
            id: id.clone(),
            app: app.clone(),
            machine: builder.machine,
            spec: request.spec.clone(),
            source: BuildSource::Deploy,
            asked_by: request.asked_by.clone(),
            at: now(),
        };
        let build = inner.store.create_build(&key.org, &new).await?;
        match inner.hand_over(key, &build, request).await {
            Ok(guard) => {
                let running = Build {
                    state: BuildState::Running,
                    ..build
                };
                let known = Arc::clone(&live.live);
                let (accepted, recorded) = oneshot::channel();
                // The builder has it: from here on it is followed, whatever becomes of the rest.
                inner.spawn_follower(running.clone(), key.clone(), live, guard, accepted);
                let _ = recorded.await;
                if known.cancelled.load(Ordering::SeqCst) {
                    self.cancel(&key.org, &id).await?;
                }
                Ok(running)
            }
            Err(error) => {
                if let BuildError::Guest(_) = &error {
                    inner.cancel_unheard(key, &id);
                }
                tracing::warn!(build = %id, why = ?chain(&error), "build not handed over");
                // What its owner may read; the log has the rest.
                let told = Problem::from(&error);
                let outcome = BuildOutcome::Failed {
                    fault: told.code.fault(),
                    message: told.message.into_owned(),
                    hint: told.hint.map(Cow::into_owned),
                    excerpt: None,
                };
                inner.give_up(&build, outcome).await;
                Err(error)
            }
        }
    }

    /// Cancels a build. Ended already is fine. Its end is told by its events.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a build that this org does not have, or the builder's.
    pub async fn cancel(&self, org: &OrgId, id: &BuildId) -> Result<(), BuildError> {
        let build = self.0.store.build(org, id).await?;
        if build.ended_at.is_some() {
            return Ok(());
        }
        match build.source {
            BuildSource::Deploy => {}
            BuildSource::Docker | BuildSource::Buildkit => return Err(BuildError::OfClient),
        }
        if let Some(live) = self.0.live().get(id) {
            live.cancelled.store(true, Ordering::SeqCst);
        }
        let machine = self.0.store.machine(org, &build.machine).await?;
        let (region, arch) = (machine.region, machine.arch);
        let key = BuilderKey {
            org: org.clone(),
            region,
            arch,
        };
        let mut guest = match self.0.farm.guest_if_running(&key).await {
            Ok(guest) => guest,
            // Then the build is over too, and its follower finds out.
            Err(FarmError::NotRunning) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match guest.cancel_build(id).await {
            // It has not arrived yet, and is cancelled on arrival; or the guest is another one, as the follower finds out.
            Err(GuestError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Deletes the ended builds, with their events, that their orgs keep no longer at `at`. It is done every
    /// [`RETENTION_EVERY`](crate::limits::RETENTION_EVERY) anyway. Gives how many.
    ///
    /// # Errors
    /// The store's; what was deleted before it stays deleted.
    pub async fn delete_old(&self, at: Timestamp) -> Result<u64, BuildError> {
        let most = &self.0.farm.shared().ceilings;
        Ok(retention::sweep(&*self.0.store, most, at).await?)
    }

    /// The events of a build after number `after`, in order and each once: those recorded, then live ones until its end.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a build that this org does not have; the store's in the stream.
    pub async fn events(
        &self,
        org: &OrgId,
        id: &BuildId,
        after: u64,
    ) -> Result<impl Stream<Item = Result<NumberedEvent, StoreError>> + Send + use<>, BuildError>
    {
        self.0.store.build(org, id).await?;
        let more = self.0.live().get(id).map(|live| live.recorded.subscribe());
        let reader = EventReader {
            store: Arc::clone(&self.0.store),
            org: org.clone(),
            id: id.clone(),
            after,
            page: VecDeque::new(),
            more,
        };
        Ok(futures_util::stream::try_unfold(
            reader,
            |mut reader| async move { Ok(reader.next().await?.map(|event| (event, reader))) },
        ))
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, HashMap<BuildId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for the events of one more build.
    async fn check_room(&self, org: &OrgId) -> Result<(), BuildError> {
        let most = &self.farm.shared().ceilings;
        let (_, have) = retention::make_room(&*self.store, most, org).await?;
        if have > most.build_events {
            let most = most.build_events;
            return Err(StoreError::Quota(QuotaError::BuildEvents { have, most }).into());
        }
        Ok(())
    }

    fn make_live(self: &Arc<Self>, id: &BuildId) -> LiveEntry {
        LiveEntry {
            inner: Arc::clone(self),
            id: id.clone(),
            live: Arc::clone(self.live().entry(id.clone()).or_default()),
        }
    }

    fn publish(&self, build: &Build) {
        let events = &self.farm.shared().events;
        events.publish(&build.org, || FarmEvent::Build(Box::new(build.clone())));
    }

    async fn hand_over(
        &self,
        key: &BuilderKey,
        build: &Build,
        request: BuildRequest,
    ) -> Result<ActivityGuard, BuildError> {
        let BuildRequest {
            session,
            spec,
            credential,
            tag_credentials,
            lent,
            asked_by: _,
            until,
        } = request;
        let (stream, guard) = tokio::select! {
            connected = self.farm.connect(key, EndpointPort::Guest) => connected?,
            () = until.cancelled() => return Err(BuildError::Ended),
        };
        let mut guest = GuestClient::new(stream).await?;
        if until.is_cancelled() {
            return Err(BuildError::Ended);
        }
        guest
            .start_build(&StartBuild {
                id: build.id.clone(),
                session,
                spec,
                credential,
                tag_credentials,
                lent,
            })
            .await?;
        Ok(guard)
    }

    /// A builder did not say whether it has taken a build. If it has, it ends it.
    fn cancel_unheard(&self, key: &BuilderKey, id: &BuildId) {
        let (farm, key, id) = (self.farm.clone(), key.clone(), id.clone());
        let cancel = self.farm.shared().cancel.clone();
        self.farm.shared().tasks.spawn(async move {
            let cancelled = async {
                farm.guest_if_running(&key).await?.cancel_build(&id).await?;
                Ok::<_, FarmError>(())
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                done = cancelled => if let Err(error) = done {
                    tracing::debug!(build = %id, why = ?chain(&error), "build not cancelled");
                }
            }
        });
    }

    /// Records that the builder has accepted a build.
    async fn accept(&self, build: &Build) {
        if let Err(error) = self.store.mark_build_running(&build.org, &build.id).await {
            // Its end is recorded all the same.
            tracing::error!(build = %build.id, why = ?chain(&error), "build not recorded as running");
        }
        if build.state == BuildState::Running {
            self.publish(build);
        }
    }

    /// `accepted` is told when the record says that the build runs.
    fn spawn_follower(
        self: &Arc<Self>,
        build: Build,
        key: BuilderKey,
        live: LiveEntry,
        guard: ActivityGuard,
        accepted: oneshot::Sender<()>,
    ) {
        let (inner, shared) = (Arc::clone(self), Arc::clone(self.farm.shared()));
        shared.clone().tasks.spawn(async move {
            let follow = async {
                inner.accept(&build).await;
                let _ = accepted.send(());
                // One of an earlier life may have been lent something too: its guest knows.
                let lending = inner.lend(&build, &key);
                tokio::select! {
                    () = inner.follow(build.clone(), &key, &live.live) => {}
                    never = lending => match never {},
                }
            };
            tokio::select! {
                () = shared.cancel.cancelled() => {}
                () = follow => {}
            }
            drop((live, guard));
        });
    }
}

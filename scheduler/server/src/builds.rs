//! Builds: recorded, handed to the guest, followed to their end, and told to whoever asks.
//!
//! The guest owns a running build. This side keeps what the guest says, in order, from the last number it has; so it may
//! be killed at any moment and goes on where it was. Readers read from the store alone and are only told when there is
//! more, so there is neither a gap nor a duplicate between what was and what comes.
//!
//! Must not know: how a builder is woken, BuildKit, who may see which build.

use crate::farm::{ActivityGuard, BuilderKey, Farm, FarmError, FarmEvent, chain, entropy, now};
use crate::guest_client::GuestError;
use crate::limits::{
    BUILD_GONE_WAIT, BUILD_SILENCE_MAX, CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, EVENT_BATCH_MAX,
};
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use slipway_core::build::{
    BuildEvent, BuildOutcome, BuildSpec, Fault, NumberedEvent, RegistryCredential,
};
use slipway_core::guest_api::StartBuild;
use slipway_core::host_api::EndpointPort;
use slipway_core::id::{AppId, BuildId, OrgId};
use slipway_core::limits::{BUILD_DURATION_MAX, BUILD_EVENTS_BYTES_MAX, BUILD_LOG_CHUNK_BYTES_MAX};
use slipway_store::{Build, ErrorKind, NewBuild, Store, StoreError};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

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
                ErrorKind::NotFound | ErrorKind::Conflict => Fault::User,
                ErrorKind::NoSpace | ErrorKind::Unavailable | ErrorKind::Internal => Fault::System,
            },
            Self::Refused { status, .. } if status.is_client_error() => Fault::User,
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
            Self::Store(_) | Self::Refused { .. } | Self::Guest(_) => None,
        }
    }
}

impl From<GuestError> for BuildError {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Refused { status, message } => Self::Refused { status, message },
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
}

/// A handle to the builds; clones are the same.
#[derive(Debug, Clone)]
pub struct BuildService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    farm: Farm,
    store: Arc<dyn Store>,
    /// Builds that are followed now.
    live: Mutex<HashMap<BuildId, Arc<Live>>>,
}

#[derive(Debug, Default)]
struct Live {
    /// Grows when the store has more of it.
    recorded: watch::Sender<u64>,
    cancelled: AtomicBool,
}

impl BuildService {
    /// Adopts all builds that have not ended, and follows each. Their tasks end with the farm's.
    ///
    /// # Errors
    /// The store's.
    pub async fn start(farm: &Farm) -> Result<Self, BuildError> {
        let store = Arc::clone(&farm.shared().store);
        let unfinished = store.unfinished_builds().await?;
        let inner = Inner {
            farm: farm.clone(),
            store,
            live: Mutex::default(),
        };
        let service = Self(Arc::new(inner));
        for build in unfinished {
            let machine = service.0.store.machine(&build.org, &build.machine).await?;
            let (org, region, arch) = (machine.org, machine.region, machine.arch);
            let key = BuilderKey { org, region, arch };
            tracing::info!(build = %build.id, after = build.last_seq, "build adopted");
            let live = service.0.make_live(&build.id);
            let guard = service.0.farm.activity(&key)?;
            service.0.spawn_follower(build, key, live, guard);
        }
        Ok(service)
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
        let builder = inner.farm.ensure_builder(key).await?;
        let id = BuildId::from_entropy(entropy()?);
        let live = inner.make_live(&id);
        let new = NewBuild {
            id: id.clone(),
            app: app.clone(),
            machine: builder.machine,
            spec: request.spec.clone(),
            at: now(),
        };
        let build = match inner.store.create_build(&key.org, &new).await {
            Ok(build) => build,
            Err(error) => {
                inner.live().remove(&id);
                return Err(error.into());
            }
        };
        let handed = inner.hand_over(key, &build, request).await;
        match handed {
            Ok(guard) => {
                inner.store.mark_build_running(&key.org, &id).await?;
                let running = inner.store.build(&key.org, &id).await?;
                inner.publish(&running);
                let was_cancelled = live.cancelled.load(Ordering::SeqCst);
                inner.spawn_follower(running.clone(), key.clone(), live, guard);
                if was_cancelled {
                    self.cancel(&key.org, &id).await?;
                }
                Ok(running)
            }
            Err(error) => {
                let (fault, message) = (error.fault(), chain(&error));
                let hint = error.hint().map(str::to_owned);
                inner
                    .give_up(
                        &build,
                        BuildOutcome::Failed {
                            fault,
                            message,
                            hint,
                        },
                    )
                    .await;
                inner.live().remove(&id);
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

/// Reads a build's events from the store, page by page.
struct EventReader {
    store: Arc<dyn Store>,
    org: OrgId,
    id: BuildId,
    after: u64,
    page: VecDeque<NumberedEvent>,
    /// Absent when nobody follows the build any more: what is in the store is all there is.
    more: Option<watch::Receiver<u64>>,
}

impl EventReader {
    async fn next(&mut self) -> Result<Option<NumberedEvent>, StoreError> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.after = event.seq;
                return Ok(Some(event));
            }
            // Marked before the read, so that what is recorded during it is not missed.
            let last = match &mut self.more {
                Some(more) => {
                    more.mark_unchanged();
                    false
                }
                None => true,
            };
            self.page = self
                .store
                .build_events(&self.org, &self.id, self.after)
                .await?
                .into();
            if !self.page.is_empty() {
                continue;
            }
            if last {
                return Ok(None);
            }
            if let Some(more) = &mut self.more
                && more.changed().await.is_err()
            {
                self.more = None;
            }
        }
    }
}

/// Why one try to follow a build ended without its end.
#[derive(Debug)]
enum Lost {
    /// The guest does not know the build, or there is no guest: it will not come back.
    Build(String),
    /// There is no machine to ask; perhaps in a moment.
    Machine(String),
    /// Nobody could be asked.
    Contact(String),
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, HashMap<BuildId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_live(&self, id: &BuildId) -> Arc<Live> {
        Arc::clone(self.live().entry(id.clone()).or_default())
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
        let (stream, guard) = self.farm.connect(key, EndpointPort::Guest).await?;
        let mut guest = crate::guest_client::GuestClient::new(stream).await?;
        let BuildRequest {
            session,
            spec,
            credential,
        } = request;
        guest
            .start_build(&StartBuild {
                id: build.id.clone(),
                session,
                spec,
                credential,
            })
            .await?;
        Ok(guard)
    }

    fn spawn_follower(
        self: &Arc<Self>,
        build: Build,
        key: BuilderKey,
        live: Arc<Live>,
        guard: ActivityGuard,
    ) {
        let (inner, shared) = (Arc::clone(self), Arc::clone(self.farm.shared()));
        shared.clone().tasks.spawn(async move {
            let id = build.id.clone();
            tokio::select! {
                () = shared.cancel.cancelled() => {}
                () = inner.follow(build, &key, &live) => {}
            }
            inner.live().remove(&id);
            drop(guard);
        });
    }

    /// Follows a build to its end.
    async fn follow(&self, build: Build, key: &BuilderKey, live: &Live) {
        let mut reader = Follower {
            last_seq: build.last_seq,
            bytes: build.event_bytes,
            heard: Instant::now(),
            missing_since: None,
        };
        let mut pause = CONNECT_RETRY_MIN;
        loop {
            let before = reader.last_seq;
            let lost = match self.follow_once(&build, key, live, &mut reader).await {
                Ok(outcome) => return self.finish(&build, outcome).await,
                Err(lost) => lost,
            };
            if let Some(why) = reader.judge(lost, now().since(build.created_at)) {
                let outcome = BuildOutcome::Failed {
                    fault: Fault::System,
                    message: why,
                    hint: Some("deploy again; the cache has what was finished".to_owned()),
                };
                return self.give_up(&build, outcome).await;
            }
            pause = if reader.last_seq > before {
                CONNECT_RETRY_MIN
            } else {
                CONNECT_RETRY_MAX.min(pause * 2)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes events until the build has ended, or the guest cannot be heard any more.
    async fn follow_once(
        &self,
        build: &Build,
        key: &BuilderKey,
        live: &Live,
        reader: &mut Follower,
    ) -> Result<BuildOutcome, Lost> {
        let guest = match self.farm.guest_if_running(key).await {
            Ok(guest) => guest,
            Err(FarmError::NotRunning) => {
                return Err(Lost::Machine(
                    "the builder ended during the build".to_owned(),
                ));
            }
            Err(error) => return Err(Lost::Contact(chain(&error))),
        };
        let events = match guest.events(&build.id, reader.last_seq).await {
            Ok(events) => events,
            Err(GuestError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => {
                return Err(Lost::Build(
                    "the builder was started anew during the build".to_owned(),
                ));
            }
            Err(error) => return Err(Lost::Contact(chain(&error))),
        };
        (reader.heard, reader.missing_since) = (Instant::now(), None);
        let mut batches = std::pin::pin!(events.ready_chunks(EVENT_BATCH_MAX));
        while let Some(batch) = batches.next().await {
            let mut events = Vec::with_capacity(batch.len());
            let mut broken = None;
            for event in batch {
                match event {
                    Ok(event) => events.push(event),
                    Err(error) => broken = Some(Lost::Contact(chain(&error))),
                }
            }
            let outcome = events.iter().rev().find_map(|event| match &event.event {
                BuildEvent::Ended(outcome) => Some(outcome.clone()),
                BuildEvent::Queued { .. }
                | BuildEvent::Started
                | BuildEvent::Step(_)
                | BuildEvent::Log { .. }
                | BuildEvent::Progress { .. }
                | BuildEvent::Warning { .. }
                | BuildEvent::Push(_)
                | BuildEvent::LogTruncated => None,
            });
            reader.bound(&mut events);
            self.record(build, live, reader, &events).await?;
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
            if let Some(lost) = broken {
                return Err(lost);
            }
            reader.heard = Instant::now();
        }
        Err(Lost::Contact(
            "the builder stopped telling of the build".to_owned(),
        ))
    }

    async fn record(
        &self,
        build: &Build,
        live: &Live,
        reader: &mut Follower,
        events: &[NumberedEvent],
    ) -> Result<(), Lost> {
        match self
            .store
            .append_build_events(&build.org, &build.id, events)
            .await
        {
            Ok(last) => {
                reader.last_seq = last;
                live.recorded.send_modify(|seq| *seq = last);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::error!(build = %build.id, why = chain(&error), "events not recorded");
                Err(Lost::Contact(chain(&error)))
            }
            Err(error) => Err(Lost::Build(chain(&error))),
        }
    }

    /// Records the end that the guest told.
    async fn finish(&self, build: &Build, outcome: BuildOutcome) {
        let mut pause = CONNECT_RETRY_MIN;
        loop {
            match self
                .store
                .finish_build(&build.org, &build.id, &outcome, now())
                .await
            {
                Ok(ended) => {
                    tracing::info!(build = %build.id, state = ended.state.as_str(), "build ended");
                    return self.publish(&ended);
                }
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tracing::error!(build = %build.id, why = chain(&error), "end not recorded");
                }
                Err(error) => {
                    tracing::error!(build = %build.id, why = chain(&error), "end lost");
                    return;
                }
            }
            tokio::time::sleep(pause).await;
            pause = CONNECT_RETRY_MAX.min(pause * 2);
        }
    }

    /// Ends a build that the guest will not tell the end of.
    async fn give_up(&self, build: &Build, outcome: BuildOutcome) {
        tracing::warn!(build = %build.id, ?outcome, "build given up");
        let last = self
            .store
            .build(&build.org, &build.id)
            .await
            .map(|b| b.last_seq);
        if let Ok(last) = last {
            let at_ms = u64::try_from(now().since(build.created_at).as_millis());
            let event = NumberedEvent {
                seq: last + 1,
                at_ms: at_ms.unwrap_or(u64::MAX),
                event: BuildEvent::Ended(outcome.clone()),
            };
            if let Err(error) = self
                .store
                .append_build_events(&build.org, &build.id, &[event])
                .await
            {
                tracing::error!(build = %build.id, why = chain(&error), "end not told");
            }
        }
        self.finish(build, outcome).await;
    }
}

/// How far a build was followed.
struct Follower {
    last_seq: u64,
    bytes: u64,
    /// When the guest was heard last.
    heard: Instant,
    /// Since when there is no machine to ask.
    missing_since: Option<Instant>,
}

impl Follower {
    /// Drops what goes over the bound, except the end. The guest keeps the same bound, so this is for one that does not;
    /// one chunk above it is room for the guest's own word that the log was cut.
    fn bound(&mut self, events: &mut Vec<NumberedEvent>) {
        const BYTES_MAX: u64 = (BUILD_EVENTS_BYTES_MAX + BUILD_LOG_CHUNK_BYTES_MAX) as u64;
        events.retain(|event| {
            let size = serde_json::to_vec(event).map_or(0, |json| json.len() as u64);
            let kept =
                self.bytes + size <= BYTES_MAX || matches!(event.event, BuildEvent::Ended(_));
            if kept {
                self.bytes += size;
            }
            kept
        });
    }

    /// Whether to give up, and why.
    fn judge(&mut self, lost: Lost, age: Duration) -> Option<String> {
        let over = age > BUILD_DURATION_MAX + BUILD_SILENCE_MAX;
        match lost {
            Lost::Build(why) => Some(why),
            Lost::Machine(why) => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                (since.elapsed() > BUILD_GONE_WAIT).then_some(why)
            }
            Lost::Contact(why) => {
                let silent = self.heard.elapsed() > BUILD_SILENCE_MAX;
                (silent || over).then(|| format!("the builder cannot be reached: {why}"))
            }
        }
    }
}

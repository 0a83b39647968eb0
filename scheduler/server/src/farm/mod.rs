//! The farm: every builder of every org, woken when wanted, ended when idle, restarted when it crashes.
//!
//! Owns: what is in memory of each builder, one driver task per builder, one watch per host, the guards that tell the
//! reaper what is in flight. The store is the truth about what is wanted, the hosts about what runs; this is neither, and
//! is built anew from both at each start.
//!
//! Must not know: Docker, GraphQL, who may do what.

mod builder;
mod drive;
mod error;
mod host;
#[cfg(test)]
mod tests;
mod view;

pub use builder::ActivityGuard;
pub(crate) use builder::now;
pub use error::FarmError;
pub use host::HostSettings;
pub(crate) use host::chain;
pub use view::{BuilderKey, BuilderView, FarmEvent, NextEvent, Subscription};

use crate::guest_client::GuestClient;
use crate::limits::{
    CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, HOST_FIRST_WORD_WAIT, SHUTDOWN_WAIT_MAX, STOP_WAIT_MAX,
    WAKE_WAIT_MAX,
};
use builder::{Attempt, Builder};
use host::HostLink;
use slipway_core::host_api::{EndpointPort, HostErrorCode};
use slipway_core::id::{AppId, HostId, ID_ENTROPY_BYTES, MachineId, OrgId, VolumeId};
use slipway_core::machine::MachineState;
use slipway_core::placement::{HostLoad, PlacementRequest, place};
use slipway_core::quota::{check_builder_size, check_one_more_builder};
use slipway_core::units::ByteSize;
use slipway_store::{Ensured, Intent, Machine, NewBuilder, Org, Store, StoreError, VolumeState};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use view::Events;

/// A placement is tried again so often when the pool it chose has filled up meanwhile.
const PLACEMENT_TRIES: usize = 3;
/// A connection gives up when it has seen so many generations crash.
const CRASHES_SEEN_MAX: u32 = 6;

/// What the farm is made of.
#[derive(Debug, Clone)]
pub struct FarmSettings {
    /// The hosts that run builders.
    pub hosts: Vec<HostSettings>,
}

/// A handle to the farm; clones are the same farm.
#[derive(Debug, Clone)]
pub struct Farm(Arc<Shared>);

/// The farm's tasks; whoever ends the control plane ends them.
#[derive(Debug)]
#[must_use = "the farm's tasks are ended by `shutdown`"]
pub struct FarmTasks(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) store: Arc<dyn Store>,
    builders: RwLock<HashMap<BuilderKey, Arc<Builder>>>,
    hosts: RwLock<HashMap<HostId, Arc<HostLink>>>,
    /// Held while a builder is made: ensure is single-flight.
    making: tokio::sync::Mutex<()>,
    pub(crate) events: Arc<Events>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl FarmTasks {
    /// Ends all tasks of the farm, and of what runs on it. Builders and builds go on; the next start adopts them.
    pub async fn shutdown(self) {
        self.0.cancel.cancel();
        self.0.tasks.close();
        if timeout(SHUTDOWN_WAIT_MAX, self.0.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some tasks did not end in time");
        }
    }
}

impl Farm {
    /// Adopts what the store knows and what the hosts run, and begins to drive it. Waits a little for the first word of
    /// each host; a silent one joins later.
    ///
    /// # Errors
    /// The store's.
    pub async fn start(
        store: Arc<dyn Store>,
        settings: FarmSettings,
    ) -> Result<(Self, FarmTasks), FarmError> {
        let shared = Arc::new(Shared {
            builders: RwLock::default(),
            hosts: RwLock::default(),
            making: tokio::sync::Mutex::default(),
            events: Arc::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            store,
        });
        let links = shared.adopt(settings.hosts).await?;
        for link in &links {
            shared
                .tasks
                .spawn(host::watch_host(Arc::clone(&shared), Arc::clone(link)));
        }
        let first_words = async {
            for link in links.iter().filter(|link| link.placeable) {
                // The sender lives as long as the link.
                let _ = link.reachable.subscribe().wait_for(|there| *there).await;
            }
        };
        if timeout(HOST_FIRST_WORD_WAIT, first_words).await.is_err() {
            tracing::warn!("not every host answers yet");
        }
        Ok((Self(Arc::clone(&shared)), FarmTasks(shared)))
    }

    /// The builder of this org, region and architecture, made if there is none, and wanted from now on. Returns when that
    /// is recorded, not when it is up. A thousand callers at once make one.
    ///
    /// # Errors
    /// [`FarmError::Place`], [`FarmError::Quota`], or the store's.
    pub async fn ensure_builder(&self, key: &BuilderKey) -> Result<BuilderView, FarmError> {
        self.0.ensure(key).await.map(|builder| builder.view())
    }

    /// A stream to the builder's dockerd or guest, and a guard that counts as activity until dropped. Makes and wakes the
    /// builder if need be, and waits until it takes connections (dockerd's are taken before it is up, and wait in the
    /// backlog).
    ///
    /// # Errors
    /// As [`Self::ensure_builder`]; [`FarmError::WontStart`] as soon as that is known, [`FarmError::TimedOut`] after
    /// [`WAKE_WAIT_MAX`], [`FarmError::TooManyConnections`].
    pub async fn connect(
        &self,
        key: &BuilderKey,
        port: EndpointPort,
    ) -> Result<(UnixStream, ActivityGuard), FarmError> {
        let builder = match self.0.builder(key) {
            Some(builder) => builder,
            None => self.0.ensure(key).await?,
        };
        let guard = begin(&builder)?;
        let stream = self.0.open(&builder, port).await?;
        Ok((stream, guard))
    }

    /// A client of the builder's guest, if the builder runs now. Neither wakes it nor counts as activity.
    ///
    /// # Errors
    /// [`FarmError::NoBuilder`], [`FarmError::NotRunning`], or the host's.
    pub async fn guest_if_running(&self, key: &BuilderKey) -> Result<GuestClient, FarmError> {
        let builder = self.0.known(key)?;
        let generation = builder.running().ok_or(FarmError::NotRunning)?;
        let machine = builder.view().machine;
        let client = &builder.host.client;
        match client
            .open_endpoint(machine, generation, EndpointPort::Guest)
            .await
        {
            Ok(stream) => Ok(GuestClient::new(stream).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts as activity of the builder until the guard is dropped, without connecting. Does not wake it.
    ///
    /// # Errors
    /// [`FarmError::NoBuilder`], [`FarmError::TooManyConnections`].
    pub fn activity(&self, key: &BuilderKey) -> Result<ActivityGuard, FarmError> {
        begin(&self.0.known(key)?)
    }

    /// The builder as it is now.
    ///
    /// # Errors
    /// [`FarmError::NoBuilder`].
    pub fn builder(&self, key: &BuilderKey) -> Result<BuilderView, FarmError> {
        Ok(self.0.known(key)?.view())
    }

    /// All builders of an org as they are now, by region and architecture.
    pub fn builders(&self, org: &OrgId) -> Vec<BuilderView> {
        let builders = self
            .0
            .builders
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut views: Vec<_> = builders
            .values()
            .filter(|b| b.key.org == *org)
            .map(|b| b.view())
            .collect();
        views.sort_by(|a, b| a.key.cmp(&b.key));
        views
    }

    /// Ends the builder, busy or not, and waits for its end. Stopped already is fine. A later connection wakes it.
    ///
    /// # Errors
    /// [`FarmError::NoBuilder`], [`FarmError::TimedOut`].
    pub async fn stop_builder(&self, key: &BuilderKey) -> Result<BuilderView, FarmError> {
        let builder = self.0.known(key)?;
        stop_and_wait(&builder).await?;
        self.0.persist(&builder).await?;
        Ok(builder.view())
    }

    /// Ends the builder and empties its cache volume, for good. A later connection wakes it.
    ///
    /// # Errors
    /// [`FarmError::InUse`] while anything is connected, [`FarmError::NoBuilder`], [`FarmError::TimedOut`], or the host's.
    pub async fn reset_cache(&self, key: &BuilderKey) -> Result<BuilderView, FarmError> {
        let builder = self.0.known(key)?;
        let (told, done) = oneshot::channel();
        let in_flight = builder.change(|inner| {
            if inner.in_flight == 0 && inner.reset.is_none() {
                inner.reset = Some(told);
                inner.machine.intent = Intent::Stopped;
                0
            } else {
                inner.in_flight.max(1)
            }
        });
        if in_flight > 0 {
            return Err(FarmError::InUse { in_flight });
        }
        match timeout(STOP_WAIT_MAX, done).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(FarmError::Closed),
            Err(_) => {
                builder.change(|inner| inner.reset = None);
                return Err(timed_out(&builder, STOP_WAIT_MAX));
            }
        }
        self.0.persist(&builder).await?;
        Ok(builder.view())
    }

    /// Destroys a volume that no builder has (one that was kept aside), and gives its size back to the pool.
    ///
    /// # Errors
    /// [`FarmError::VolumeAttached`], or the store's or the host's.
    pub async fn destroy_volume(&self, org: &OrgId, volume: &VolumeId) -> Result<(), FarmError> {
        let known = self.0.store.volume(org, volume).await?;
        match known.state {
            VolumeState::Planned | VolumeState::Ready => return Err(FarmError::VolumeAttached),
            VolumeState::Aside | VolumeState::Condemned => {}
        }
        let link = self.0.link(&known.host).ok_or(FarmError::NotRunning)?;
        self.0
            .store
            .set_volume_state(org, volume, VolumeState::Condemned)
            .await?;
        self.0.destroy(&link, org, volume).await
    }

    /// Bytes taken on disk by the volumes on the hosts of an org's builders; a host that does not answer is left out.
    pub async fn volume_use(&self, org: &OrgId) -> HashMap<VolumeId, u64> {
        let hosts: std::collections::HashSet<_> =
            self.builders(org).into_iter().map(|builder| builder.host).collect();
        let mut used = HashMap::new();
        for link in hosts.iter().filter_map(|host| self.0.link(host)) {
            if let Ok(volumes) = link.client.volumes().await {
                used.extend(volumes.into_iter().map(|volume| (volume.volume, volume.used_bytes)));
            }
        }
        used
    }

    /// Takes over what was changed of an org's settings. Call it after the store's `update_org`.
    pub fn org_changed(&self, org: &Org) {
        let builders = self
            .0
            .builders
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for builder in builders.values().filter(|b| b.key.org == org.id) {
            builder.change(|inner| {
                inner.idle = org.idle;
                inner.ask_not_before = slipway_core::time::Timestamp(0);
            });
        }
    }

    /// The changes of one org's builders and builds from now on.
    pub fn subscribe(&self, org: &OrgId) -> Subscription {
        self.0.events.subscribe(org)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

fn begin(builder: &Arc<Builder>) -> Result<ActivityGuard, FarmError> {
    builder
        .begin()
        .map_err(|max| FarmError::TooManyConnections { max })
}

fn timed_out(builder: &Builder, waited: Duration) -> FarmError {
    FarmError::TimedOut {
        waited,
        state: builder.lock().machine.state.name(),
    }
}

async fn stop_and_wait(builder: &Builder) -> Result<(), FarmError> {
    let mut changes = builder.changes();
    let mut live = builder.change(|inner| {
        inner.machine.intent = Intent::Stopped;
        inner.machine.state.live_generation()
    });
    let deadline = Instant::now() + STOP_WAIT_MAX;
    while live.is_some() {
        if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return Err(timed_out(builder, STOP_WAIT_MAX));
        }
        // Somebody may have woken it anew, which is another generation.
        live = live.filter(|g| builder.lock().machine.state.live_generation() == Some(*g));
    }
    Ok(())
}

impl Shared {
    fn builder(&self, key: &BuilderKey) -> Option<Arc<Builder>> {
        self.builders
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    fn known(&self, key: &BuilderKey) -> Result<Arc<Builder>, FarmError> {
        self.builder(key).ok_or_else(|| FarmError::NoBuilder {
            region: key.region.clone(),
            arch: key.arch.clone(),
        })
    }

    fn link(&self, host: &HostId) -> Option<Arc<HostLink>> {
        self.hosts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(host)
            .cloned()
    }

    /// A host has said who it is.
    pub(super) fn know_host(&self, host: &HostId, link: &Arc<HostLink>) {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        hosts
            .entry(host.clone())
            .or_insert_with(|| Arc::clone(link));
    }

    /// Gives each builder of a host what the host says now.
    pub(super) fn observe_host(&self, link: &Arc<HostLink>) {
        let builders = self.builders.read().unwrap_or_else(PoisonError::into_inner);
        for builder in builders.values().filter(|b| Arc::ptr_eq(&b.host, link)) {
            builder.observe();
        }
    }

    /// Links to all hosts of the settings, and to those that still have builders; drivers for all machines.
    async fn adopt(
        self: &Arc<Self>,
        settings: Vec<HostSettings>,
    ) -> Result<Vec<Arc<HostLink>>, FarmError> {
        let known = self.store.hosts().await?;
        let machines = self.store.all_machines().await?;
        let mut links = Vec::new();
        for settings in settings {
            let link = Arc::new(HostLink::new(settings, true));
            if let Some(row) = known.iter().find(|h| h.host.name == link.settings.name) {
                self.know_host(&row.host.id, &link);
            }
            links.push(link);
        }
        for row in known.into_iter().map(|h| h.host) {
            if self.link(&row.id).is_none() && machines.iter().any(|m| m.host == row.id) {
                tracing::warn!(
                    host = row.name,
                    "host has builders but is not in the settings"
                );
                let (name, region, socket) = (row.name, row.region, row.socket);
                let settings = HostSettings {
                    name,
                    region,
                    socket,
                };
                let link = Arc::new(HostLink::new(settings, false));
                self.know_host(&row.id, &link);
                links.push(link);
            }
        }
        let idle: HashMap<OrgId, Duration> = self
            .store
            .all_orgs()
            .await?
            .into_iter()
            .map(|org| (org.id, org.idle))
            .collect();
        for machine in machines {
            let idle = idle.get(&machine.org).copied().unwrap_or_default();
            self.drive(machine, idle).await?;
        }
        Ok(links)
    }

    /// Begins to drive a machine.
    async fn drive(
        self: &Arc<Self>,
        machine: Machine,
        idle: Duration,
    ) -> Result<Arc<Builder>, FarmError> {
        let link = self
            .link(&machine.host)
            .ok_or(StoreError::NotFound(slipway_store::What::Host))?;
        let volume = self.store.volume(&machine.org, &machine.volume).await?;
        let builder = Arc::new(Builder::new(machine, idle, link, Arc::clone(&self.events)));
        {
            let mut inner = builder.lock();
            inner.volume_ready = volume.state == VolumeState::Ready;
            inner.recorded = Some(inner.record());
        }
        self.builders
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(builder.key.clone(), Arc::clone(&builder));
        builder.observe();
        // Its first sight is a change for those who listen.
        builder.change(|_| ());
        self.tasks
            .spawn(drive::drive(Arc::clone(self), Arc::clone(&builder)));
        Ok(builder)
    }

    async fn ensure(self: &Arc<Self>, key: &BuilderKey) -> Result<Arc<Builder>, FarmError> {
        if let Some(builder) = self.builder(key) {
            self.want(&builder).await?;
            return Ok(builder);
        }
        let _making = self.making.lock().await;
        if let Some(builder) = self.builder(key) {
            self.want(&builder).await?;
            return Ok(builder);
        }
        let org = self.store.org(&key.org).await?;
        check_builder_size(&org.builder_size)?;
        let have = self.store.builders(&key.org).await?.len();
        check_one_more_builder(u32::try_from(have).unwrap_or(u32::MAX))?;
        let mut full = None;
        for _ in 0..PLACEMENT_TRIES {
            match self.make(key, &org).await {
                Err(FarmError::Store(error @ StoreError::PoolFull { .. })) => full = Some(error),
                done => return done,
            }
        }
        Err(full.map_or(FarmError::Closed, FarmError::Store))
    }

    /// Wants a builder that is there, and records it.
    async fn want(&self, builder: &Builder) -> Result<(), FarmError> {
        let wanted = {
            let mut inner = builder.lock();
            inner.quiet_since = now();
            let recorded = inner.recorded.as_ref().map(|r| r.intent);
            inner.machine.intent == Intent::Wanted && recorded == Some(Intent::Wanted)
        };
        if !wanted {
            builder.change(|inner| inner.machine.intent = Intent::Wanted);
            self.persist(builder).await?;
        }
        Ok(())
    }

    async fn make(
        self: &Arc<Self>,
        key: &BuilderKey,
        org: &Org,
    ) -> Result<Arc<Builder>, FarmError> {
        let loads = self.loads().await?;
        let request = PlacementRequest {
            region: key.region.clone(),
            arch: key.arch.clone(),
            volume: org.builder_size.volume,
            volume_host: None,
        };
        let new = NewBuilder {
            region: key.region.clone(),
            arch: key.arch.clone(),
            host: place(&request, &loads)?,
            size: org.builder_size,
            app: AppId::from_entropy(entropy()?),
            machine: MachineId::from_entropy(entropy()?),
            volume: VolumeId::from_entropy(entropy()?),
            at: now(),
        };
        let (Ensured::Created(machine) | Ensured::Existing(machine)) =
            self.store.ensure_builder(&key.org, &new).await?;
        tracing::info!(org = %key.org, machine = %machine.id, host = %machine.host, "builder placed");
        self.drive(machine, org.idle).await
    }

    async fn loads(&self) -> Result<Vec<HostLoad>, FarmError> {
        let hosts = self.store.hosts().await?;
        let loads = hosts.into_iter().filter_map(|used| {
            let link = self.link(&used.host.id).filter(|link| link.placeable)?;
            let free = used
                .host
                .pool_capacity
                .0
                .saturating_sub(used.pool_promised.0);
            let reachable = *link.reachable.borrow();
            Some(HostLoad {
                host: used.host.id,
                region: used.host.region,
                arch: used.host.arch,
                reachable,
                pool_free: ByteSize(free),
                memory: used.host.memory,
                memory_promised: used.memory_promised,
            })
        });
        Ok(loads.collect())
    }

    /// A stream to a builder, when it takes one.
    async fn open(&self, builder: &Builder, port: EndpointPort) -> Result<UnixStream, FarmError> {
        let mut waiting: Option<Waiting> = None;
        loop {
            // Before looking, so that no change after the look is missed.
            let mut changes = builder.changes();
            match builder.attempt(port) {
                Attempt::Open(generation) => {
                    let machine = builder.lock().machine.id.clone();
                    let client = &builder.host.client;
                    match client.open_endpoint(machine, generation, port).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => {
                            let lost = error.code() == Some(HostErrorCode::NotFound)
                                || error.code() == Some(HostErrorCode::StaleGeneration);
                            tracing::debug!(why = chain(&error), "endpoint not opened");
                            // It ended just now: the list says so, sooner or later.
                            if lost && builder.host.refresh().await.is_ok() {
                                builder.observe();
                            }
                            waiting.get_or_insert_default().refused = true;
                        }
                    }
                }
                Attempt::Wait => {}
                Attempt::WontStart(why) => return Err(FarmError::WontStart(why)),
            }
            let waiting = waiting.get_or_insert_default();
            waiting.look(builder)?;
            tokio::select! {
                () = self.cancel.cancelled() => return Err(FarmError::Closed),
                changed = waiting.pause(&mut changes) => if !changed {
                    return Err(timed_out(builder, WAKE_WAIT_MAX));
                }
            }
        }
    }

    /// Destroys a condemned volume and forgets it.
    pub(super) async fn destroy(
        &self,
        link: &HostLink,
        org: &OrgId,
        volume: &VolumeId,
    ) -> Result<(), FarmError> {
        link.client.destroy_volume(volume.clone()).await?;
        self.store.forget_volume(org, volume).await?;
        Ok(())
    }
}

/// A connection that waits for its builder.
struct Waiting {
    deadline: Instant,
    retry: Duration,
    /// The host has just refused a connection although the builder seems to run: do not count on a change.
    refused: bool,
    crashed: Option<MachineState>,
    crashes: u32,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            deadline: Instant::now() + WAKE_WAIT_MAX,
            retry: CONNECT_RETRY_MIN,
            refused: false,
            crashed: None,
            crashes: 0,
        }
    }
}

impl Waiting {
    /// Counts crashes; enough is enough.
    fn look(&mut self, builder: &Builder) -> Result<(), FarmError> {
        let inner = builder.lock();
        let state = inner.machine.state;
        if matches!(state, MachineState::Crashed { .. }) && self.crashed != Some(state) {
            self.crashed = Some(state);
            self.crashes += 1;
        }
        if self.crashes < CRASHES_SEEN_MAX {
            Ok(())
        } else {
            Err(FarmError::WontStart(inner.last_error()))
        }
    }

    /// Waits for a change. Gives whether there is time left.
    async fn pause(&mut self, changes: &mut tokio::sync::watch::Receiver<u64>) -> bool {
        let mut until = self.deadline;
        if std::mem::take(&mut self.refused) {
            until = until.min(Instant::now() + self.retry);
            self.retry = CONNECT_RETRY_MAX.min(self.retry * 2);
        }
        // The sender lives as long as the builder; a timeout is only the end if it was the last.
        let _ = timeout_at(until, changes.changed()).await;
        Instant::now() < self.deadline
    }
}

pub(crate) fn entropy() -> Result<[u8; ID_ENTROPY_BYTES], FarmError> {
    let mut bytes = [0; ID_ENTROPY_BYTES];
    getrandom::fill(&mut bytes).map_err(FarmError::Entropy)?;
    Ok(bytes)
}

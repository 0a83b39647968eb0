//! The farm: every builder of every org, woken when wanted, ended when idle, restarted when it crashes.
//!
//! Owns: what is in memory of each builder, one driver task per builder, one watch per host, the guards that tell the
//! reaper what is in flight. The store is the truth about what is wanted, the hosts about what runs; this is neither, and
//! is built anew from both at each start.
//!
//! Must not know: Docker, GraphQL, who may do what.

mod builder;
mod cache;
mod deferred;
mod drive;
mod ensure;
mod error;
mod host;
mod identity;
mod index;
mod keys;
mod lend_error;
mod ready;
mod reap;
mod reason;
mod starts;
mod view;
mod volume_error;
mod volumes;
mod wake;

pub use builder::ActivityGuard;
pub use error::FarmError;
pub use host::{HostSettings, ImageAges};
pub use lend_error::LendError;
pub(crate) use view::idle_for;
pub use view::{BuilderKey, BuilderView, FarmEvent, NextEvent, Subscription};
pub use volume_error::VolumeError;
pub use volumes::{
    AskedImport, AskedMove, AskedVolume, BodyEnded, Download, ImportBody, ImportedSoFar,
};

use crate::clock::now;
use crate::guest_client::GuestClient;
use crate::keys::KeyBroker;
use crate::limits::{HOST_FIRST_WORD_WAIT, MOVES_MAX, SHUTDOWN_WAIT_MAX, STOP_WAIT_MAX};
use crate::machine_stream::MachineStream;
use builder::{Builder, Wishes};
use host::HostLink;
use slipway_core::ceilings::Ceilings;
use slipway_core::host_api::EndpointPort;
use slipway_core::id::{HostId, OrgId, VolumeId};
use slipway_core::time::Timestamp;
use slipway_core::volume::MoveStep;
use slipway_store::{HostUse, Intent, Machine, Move, Org, Store, StoreError, Volume, VolumeState};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use view::Events;

/// What the farm is made of.
#[derive(Debug, Clone)]
pub struct FarmSettings {
    /// The hosts that run builders.
    pub hosts: Vec<HostSettings>,
    /// Lends the keys of encrypted volumes; absent: hosts that encrypt cannot be used.
    pub keys: Option<Arc<KeyBroker>>,
    /// The most that any org may have.
    pub ceilings: Ceilings,
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
    pub(super) keys: Option<Arc<KeyBroker>>,
    pub(crate) ceilings: Ceilings,
    builders: index::Builders,
    hosts: RwLock<HashMap<HostId, Arc<HostLink>>>,
    /// Held while a builder is made: ensure is single-flight.
    making: tokio::sync::Mutex<()>,
    volume_locks: volumes::Locks,
    transfers: Arc<volumes::Transfers>,
    moves: Arc<tokio::sync::Semaphore>,
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
            builders: index::Builders::default(),
            hosts: RwLock::default(),
            making: tokio::sync::Mutex::default(),
            volume_locks: volumes::Locks::default(),
            transfers: Arc::default(),
            moves: Arc::new(tokio::sync::Semaphore::new(MOVES_MAX)),
            events: Arc::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            keys: settings.keys,
            ceilings: settings.ceilings,
            store,
        });
        identity::recognise(&*shared.store, &settings.hosts).await?;
        let links = shared.adopt(settings.hosts).await?;
        for link in &links {
            shared
                .tasks
                .spawn(host::watch_host(Arc::clone(&shared), Arc::clone(link)));
            shared
                .tasks
                .spawn(volumes::keep(Arc::clone(&shared), Arc::clone(link)));
            shared
                .tasks
                .spawn(keys::keep_lent(Arc::clone(&shared), Arc::clone(link)));
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
    ) -> Result<(MachineStream, ActivityGuard), FarmError> {
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
        let opened = builder
            .host()
            .client
            .open_endpoint(machine, generation, EndpointPort::Guest)
            .await;
        match opened {
            Ok(stream) => Ok(GuestClient::new(stream).await?),
            Err(error) if wake::has_ended(&error) => {
                builder.look_again().await;
                Err(FarmError::NotRunning)
            }
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
        let builders = self.0.builders.of_org(org);
        builders.iter().map(|builder| builder.view()).collect()
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
        let cache = builder.lock().machine.volume.clone();
        let cache = self.0.store.volume(&key.org, &cache).await?;
        if cache.moving.as_ref().is_some_and(Move::is_under_way) {
            return Err(VolumeError::Moving.into());
        }
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
                return Err(timed_out(&builder, "stopped", STOP_WAIT_MAX));
            }
        }
        self.0.persist(&builder).await?;
        Ok(builder.view())
    }

    /// Takes over what was changed of an org's settings. Call it after the store's `update_org`.
    pub fn org_changed(&self, org: &Org) {
        for builder in self.0.builders.of_org(&org.id) {
            builder.change(|inner| {
                inner.wishes = Wishes::of(org, &self.0.ceilings);
                inner.ask_not_before = slipway_core::time::Timestamp(0);
            });
        }
    }

    /// What is worth knowing about the hosts, in words; each place once.
    pub fn notices(&self) -> Vec<String> {
        let hosts = self.0.hosts.read().unwrap_or_else(PoisonError::into_inner);
        let at = now();
        let mut notices: Vec<String> = hosts.values().flat_map(|link| link.notices(at)).collect();
        notices.sort();
        notices.dedup();
        notices
    }

    /// When the packages of what machines boot were last looked up, by region; each once.
    pub fn images(&self) -> Vec<(String, ImageAges)> {
        let hosts = self.0.hosts.read().unwrap_or_else(PoisonError::into_inner);
        let known = hosts
            .values()
            .map(|link| (link.settings.region.clone(), link.images()));
        let mut images: Vec<_> = known.filter(|(_, ages)| ages.image.is_some()).collect();
        images.sort();
        images.dedup();
        images
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

fn timed_out(builder: &Builder, wanted: &'static str, waited: Duration) -> FarmError {
    let host = builder.host();
    let inner = builder.lock();
    let why = inner.waiting_for(&host, now());
    FarmError::TimedOut {
        wanted,
        waited,
        why: why.unwrap_or_else(|| inner.machine.state.name().to_owned()),
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
            return Err(timed_out(builder, "stopped", STOP_WAIT_MAX));
        }
        // Somebody may have woken it anew, which is another generation.
        live = live.filter(|g| builder.lock().machine.state.live_generation() == Some(*g));
    }
    Ok(())
}

impl Shared {
    fn builder(&self, key: &BuilderKey) -> Option<Arc<Builder>> {
        self.builders.get(key)
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

    /// Has the volumes of all hosts looked at.
    pub(super) fn look_at_volumes(&self) {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        for link in hosts.values() {
            link.volumes.notify_one();
        }
    }

    /// Gives each builder of a host what the host says now.
    pub(super) fn observe_host(&self, link: &Arc<HostLink>) {
        for builder in self.builders.on_host(link) {
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
        for HostUse {
            host: row,
            pool_promised,
            ..
        } in known
        {
            if self.link(&row.id).is_none() && pool_promised.0 > 0 {
                tracing::warn!(
                    host = row.name,
                    "host has volumes but is not in the settings"
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
        let wishes: HashMap<OrgId, Wishes> = self
            .store
            .all_orgs()
            .await?
            .into_iter()
            .map(|org| (org.id.clone(), Wishes::of(&org, &self.ceilings)))
            .collect();
        for machine in machines {
            let wishes = wishes.get(&machine.org).copied().unwrap_or_default();
            self.drive(machine, wishes).await?;
        }
        Ok(links)
    }

    /// Begins to drive a machine.
    async fn drive(
        self: &Arc<Self>,
        machine: Machine,
        wishes: Wishes,
    ) -> Result<Arc<Builder>, FarmError> {
        let link = self
            .link(&machine.host)
            .ok_or(StoreError::NotFound(slipway_store::What::Host))?;
        let volume = self.store.volume(&machine.org, &machine.volume).await?;
        let builder = Arc::new(Builder::new(
            machine,
            wishes,
            link,
            Arc::clone(&self.events),
        ));
        {
            let mut inner = builder.lock();
            inner.volume_ready = volume.state == VolumeState::Ready;
            let catching_up = |moving: &Move| moving.step == MoveStep::CatchingUp;
            let catches_up = volume.moving.as_ref().is_some_and(catching_up);
            inner.moving = catches_up.then(|| volume.id.clone());
            inner.recorded = Some(inner.record());
        }
        self.builders.add(&builder);
        builder.observe();
        // Its first sight is a change for those who listen.
        builder.change(|_| ());
        self.tasks
            .spawn(drive::drive(Arc::clone(self), Arc::clone(&builder)));
        Ok(builder)
    }

    /// The builder that has a volume, if one does.
    fn builder_of(&self, volume: &VolumeId) -> Option<Arc<Builder>> {
        self.builders.of_volume(volume)
    }

    /// A volume of this org has gone: a damaged cache may be replaced now.
    fn look_for_room(&self, org: &OrgId) {
        for builder in self.builders.of_org(org) {
            let waits = builder.lock().replace_not_before > now();
            if waits {
                builder.change(|inner| inner.replace_not_before = Timestamp(0));
            }
        }
    }

    /// Destroys a volume whose deletion has started, and forgets it.
    pub(super) async fn destroy(&self, link: &HostLink, volume: &Volume) -> Result<(), FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        // Its host may know better than the record: then the key stays as well.
        link.client.show_volume(volume.fenced()).await?;
        self.destroy_key(link, org, id).await?;
        link.client.destroy_volume(volume.fenced()).await?;
        self.store.forget_volume(org, id).await?;
        self.builders.forget_volume(id);
        self.look_for_room(org);
        Ok(())
    }
}

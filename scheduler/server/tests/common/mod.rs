//! A host daemon for tests: the real protocol on a real unix socket, real descriptors passed by `SCM_RIGHTS`, real HTTP
//! from its guests; only the machines are missing. It keeps the rules of the real one (generations, one machine per
//! volume, a machine must have ended before it is removed) and notes each breach as a violation.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses its own part"
)]

mod disks;
mod guest;
mod outage;
mod streams;
mod world;

pub use disks::{Disk, Kept};
pub use guest::TestGuest;
pub use outage::Outage;
pub use streams::{HEAD, stream_of};
pub use world::World;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use slipway_core::ceilings::Ceilings;
use slipway_core::host_api::{Cursor, HostReply, HostRequest, HostRequestFrame, Page};
use slipway_core::id::OrgId;
use slipway_core::quota::BuilderSize;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_scheduler::farm::{BuilderKey, Farm, FarmSettings, FarmTasks, HostSettings};
use slipway_scheduler::keys::{EmbeddedKeys, KeyBroker, KeyStore, MasterKeys};
use slipway_store::{Org, SqliteStore, Store, SystemStore};
use std::future::Future;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Longest any test waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// A farm on one test host, in a directory of its own.
pub struct Bed {
    pub dir: tempfile::TempDir,
    pub store: Arc<SqliteStore>,
    pub world: Arc<World>,
    /// A second host, in the same region, where there is one.
    pub other: Option<Arc<World>>,
    /// Cuts the key store off.
    pub outage: Arc<Outage>,
    /// What the first host is called in the settings.
    pub name: &'static str,
    ceilings: Ceilings,
    daemon: Option<JoinHandle<()>>,
    other_daemon: Option<JoinHandle<()>>,
    pub farm: Farm,
    tasks: Option<FarmTasks>,
}

impl Bed {
    pub async fn start() -> Self {
        Self::start_on(World::default(), None, Ceilings::default()).await
    }

    /// On an installation that lets no org have more than this.
    pub async fn start_within(ceilings: Ceilings) -> Self {
        Self::start_on(World::default(), None, ceilings).await
    }

    /// On two hosts, `test` and `other`, which both encrypt volumes or both do not.
    pub async fn start_two(encrypts: bool) -> Self {
        let (world, other) = (World::default(), World::default());
        world.lock().encrypts = encrypts;
        other.lock().encrypts = encrypts;
        Self::start_on(world, Some(Arc::new(other)), Ceilings::default()).await
    }

    /// On one host that has two sockets, and is in the settings as `test` and as `other`.
    pub async fn start_twice() -> Self {
        let world = Arc::new(World::default());
        let other = Arc::clone(&world);
        Self::start_with(world, Some(other), Ceilings::default()).await
    }

    /// On a host that encrypts volumes.
    pub async fn start_encrypting() -> Self {
        let world = World::default();
        world.lock().encrypts = true;
        Self::start_on(world, None, Ceilings::default()).await
    }

    async fn start_on(world: World, other: Option<Arc<World>>, ceilings: Ceilings) -> Self {
        Self::start_with(Arc::new(world), other, ceilings).await
    }

    async fn start_with(world: Arc<World>, other: Option<Arc<World>>, ceilings: Ceilings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = SqliteStore::open(&dir.path().join("store.db"))
            .await
            .expect("a store");
        let store = Arc::new(store);
        let daemon = Some(daemon(dir.path().join("host.sock"), Arc::clone(&world)));
        let beside = other.as_ref().map(Arc::clone);
        let other_daemon = beside.map(|other| daemon_of(&dir, "other.sock", other));
        let outage = Arc::new(Outage::default());
        let (farm, tasks) =
            start_farm(&dir, &store, &outage, ("test", other.is_some(), ceilings)).await;
        Self {
            name: "test",
            dir,
            store,
            world,
            other,
            outage,
            ceilings,
            daemon,
            other_daemon,
            farm,
            tasks: Some(tasks),
        }
    }

    /// The keys of encrypted volumes.
    pub fn keys(&self) -> impl KeyStore {
        keys(&self.dir, &self.store)
    }

    /// SIGKILL, as far as a task can be: connections break, machines go on, revisions start anew.
    pub async fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.abort();
            let _ = daemon.await;
        }
        self.world.new_life();
    }

    /// The same of the second host.
    pub async fn kill_other_daemon(&mut self) {
        if let Some(daemon) = self.other_daemon.take() {
            daemon.abort();
            let _ = daemon.await;
        }
    }

    pub fn start_daemon(&mut self) {
        let socket = self.dir.path().join("host.sock");
        self.daemon = Some(daemon(socket, Arc::clone(&self.world)));
    }

    /// Ends the control plane and starts another on the same store.
    pub async fn restart_farm(&mut self) {
        self.stop_farm().await;
        let two = self.other.is_some();
        let (farm, tasks) = start_farm(
            &self.dir,
            &self.store,
            &self.outage,
            (self.name, two, self.ceilings),
        )
        .await;
        (self.farm, self.tasks) = (farm, Some(tasks));
    }

    pub async fn stop_farm(&mut self) {
        if let Some(tasks) = self.tasks.take() {
            tasks.shutdown().await;
        }
    }

    /// An org with this idle time, and the key of its builder.
    pub async fn org(&self, idle: Duration) -> BuilderKey {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let id = OrgId::from_entropy(bytes);
        let org = Org {
            slug: id.as_str().replace('_', "-"),
            name: "an org".into(),
            idle,
            default_region: "local".into(),
            default_arch: "amd64".into(),
            isolation: slipway_core::isolation::Isolation::Auto,
            retention: slipway_core::quota::BuildRetention::default(),
            builder_size: BuilderSize {
                cpu_millis: 1000,
                memory: ByteSize::gib(1),
                volume: ByteSize::gib(1),
            },
            created_at: Timestamp(1),
            id: id.clone(),
        };
        self.store.create_org(&org).await.expect("an org");
        BuilderKey {
            org: id,
            region: "local".into(),
            arch: "amd64".into(),
        }
    }

    /// Ends everything and fails if the host has noted a violation.
    pub async fn end(mut self) {
        self.stop_farm().await;
        self.kill_daemon().await;
        if let Some(other) = self.other_daemon.take() {
            other.abort();
        }
        let mut violations = self.world.violations();
        violations.extend(self.other.iter().flat_map(|other| other.violations()));
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

fn keys(dir: &tempfile::TempDir, store: &Arc<SqliteStore>) -> EmbeddedKeys {
    let master = MasterKeys::open(dir.path(), None, &[]).expect("a master key");
    EmbeddedKeys::new(store.clone(), master)
}

/// How long keys are lent for: short, so that tests see leases renewed.
const LEASE: Duration = Duration::from_millis(600);

async fn start_farm(
    dir: &tempfile::TempDir,
    store: &Arc<SqliteStore>,
    outage: &Arc<Outage>,
    (first, two, ceilings): (&str, bool, Ceilings),
) -> (Farm, FarmTasks) {
    let keys = outage::Keys {
        kept: keys(dir, store),
        outage: Arc::clone(outage),
    };
    let broker = KeyBroker::new(store.clone(), Arc::new(keys));
    let host = |(name, socket): (&str, &str)| HostSettings {
        name: name.into(),
        region: "local".into(),
        socket: dir.path().join(socket),
    };
    let hosts = [(first, "host.sock"), ("other", "other.sock")];
    let settings = FarmSettings {
        hosts: hosts
            .into_iter()
            .take(if two { 2 } else { 1 })
            .map(host)
            .collect(),
        keys: Some(Arc::new(broker.lending_for(LEASE))),
        ceilings,
    };
    let store: Arc<dyn Store> = store.clone();
    Farm::start(store, settings).await.expect("a farm")
}

/// The machines that the store has.
pub async fn recorded(bed: &Bed) -> Vec<slipway_store::Machine> {
    bed.store.all_machines().await.expect("listed")
}

/// Polls until `condition` gives something, and fails with `what` when that takes too long.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let start = SystemTime::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        let waited = start.elapsed().unwrap_or_default();
        assert!(waited < DEADLINE, "still not after {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn daemon_of(dir: &tempfile::TempDir, socket: &str, world: Arc<World>) -> JoinHandle<()> {
    daemon(dir.path().join(socket), world)
}

fn daemon(socket: PathBuf, world: Arc<World>) -> JoinHandle<()> {
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move {
        // Aborted together with this task.
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            connections.spawn(serve(stream, Arc::clone(&world)));
            while connections.try_join_next().is_some() {}
        }
    })
}

async fn serve(mut stream: UnixStream, world: Arc<World>) {
    loop {
        let mut head = [0; 4];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let mut body = vec![0; u32::from_be_bytes(head) as usize];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let frame: HostRequestFrame = serde_json::from_slice(&body).expect("a request");
        if world.hangs(&frame) {
            std::future::pending::<()>().await;
        }
        let answered = match (world.admit(&frame), frame.lease) {
            (Err(stale), _) => Some((HostReply::Error(stale), None)),
            (Ok(()), Some(lease)) => Some((world.lend(lease), None)),
            (Ok(()), None) => answer(&world, frame.request, frame.page.as_ref()).await,
        };
        let Some((reply, passed)) = answered else {
            return;
        };
        let body = serde_json::to_vec(&reply).expect("a reply");
        let mut frame = u32::try_from(body.len())
            .expect("small")
            .to_be_bytes()
            .to_vec();
        frame.extend_from_slice(&body);
        if send(&stream, &frame, passed.as_ref()).await.is_err() {
            return;
        }
    }
}

async fn answer(
    world: &Arc<World>,
    request: HostRequest,
    page: Option<&Page>,
) -> Option<(HostReply, Option<std::os::unix::net::UnixStream>)> {
    Some(match request {
        HostRequest::WatchMachines {
            epoch,
            after: revision,
            wait_ms,
        } => {
            let seen = Cursor { epoch, revision };
            let wait = Duration::from_millis(wait_ms);
            (world.watch(seen, wait, page).await, None)
        }
        HostRequest::OpenEndpoint {
            machine,
            generation,
            port,
        } => match world.open(&machine, generation, port) {
            Ok(stream) => (HostReply::Endpoint, Some(stream)),
            Err(error) => (HostReply::Error(error), None),
        },
        HostRequest::EnsureMachine(spec) => {
            let pause = world.start_pause();
            tokio::time::sleep(pause).await;
            (world.ensure_machine(&spec).await, None)
        }
        disks @ (HostRequest::EnsureVolume { .. }
        | HostRequest::ExtendVolume { .. }
        | HostRequest::DestroyVolume { .. }
        | HostRequest::ListVolumes
        | HostRequest::ShowVolume { .. }
        | HostRequest::CreateSnapshot { .. }
        | HostRequest::DeleteSnapshot { .. }
        | HostRequest::ListSnapshots) => (world.disk_verb(disks, page)?, None),
        HostRequest::ExportSnapshot {
            snapshot,
            offset_bytes,
            sealed,
        } => world.export(&snapshot, offset_bytes, sealed),
        HostRequest::ImportVolume {
            volume,
            size_bytes,
            sealed,
            part,
        } => world.import(volume, size_bytes, sealed, part),
        // All of the one, which the taker puts over what it has of the other.
        HostRequest::ExportDifference { base: _, snapshot } => world.export(&snapshot, 0, true),
        other @ (HostRequest::Info
        | HostRequest::StopMachine { .. }
        | HostRequest::RemoveMachine { .. }
        | HostRequest::LendKey
        | HostRequest::RevokeKey { .. }) => (world.answer(other), None),
    })
}

async fn send(
    stream: &UnixStream,
    frame: &[u8],
    passed: Option<&std::os::unix::net::UnixStream>,
) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < frame.len() {
        stream.writable().await?;
        let done = stream.try_io(Interest::WRITABLE, || {
            let parts = [IoSlice::new(&frame[sent..])];
            let fds = passed.map(|p| [p.as_raw_fd()]);
            let controls: Vec<ControlMessage<'_>> = match &fds {
                Some(fds) if sent == 0 => vec![ControlMessage::ScmRights(fds)],
                Some(_) | None => vec![],
            };
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sendmsg::<()>(
                stream.as_raw_fd(),
                &parts,
                &controls,
                flags,
                None,
            )?)
        });
        match done {
            Ok(n) => sent += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

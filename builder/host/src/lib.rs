//! `slipwayd host`: makes volumes, networks and machines on one computer, and decides nothing.
//!
//! Owns: the host API's server, the machine drivers, the machine network, machine records and their adoption after a
//! restart. Must not know: orgs, tokens, SQL, or why a machine is wanted.
//!
//! ```text
//! server ─▶ machines ─▶ drivers: sandbox ─▶ runc, mounts, cgroups
//!    │          │                  vm ─▶ QEMU, cgroups
//!    │          ├─────▶ record              network ─▶ ip, nft
//!    └─▶ slipway_volumes ◀──┘               image ─▶ builder image and layer
//! ```
//!
//! Everything below `machines` blocks and runs on blocking threads.

mod address;
mod cgroup;
mod disk;
mod driver;
mod drivers;
mod endpoint;
mod files;
mod freshness;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod image;
mod keys;
pub mod limits;
mod machine_log;
mod machines;
mod mirrors;
mod mounts;
mod network;
mod process;
mod program;
mod purge;
mod rate;
mod record;
mod rlimits;
mod room;
mod sandbox;
mod server;
pub mod settings;
#[cfg(test)]
mod snapshot;
mod subids;
mod sys;
mod udev;
mod undo;
mod vm;
mod volume_fences;
mod wire;

pub use address::{Allowed, InvalidAddress, Ipv4Net, Transport};
pub use mirrors::{InvalidMirror, Mirrors};
pub use purge::{Purged, purge};
pub use rate::{BitRate, InvalidRate};
pub use settings::{HostSettings, InvalidSettings};

use driver::DriverError;
use drivers::{DriverKind, Drivers, Offer, VmSupport};
use files::make_dir;
use image::Images;
use limits::{HOST_MEMORY_MIN, HOST_MEMORY_PART};
use machines::{Machines, VerbError};
use network::{Network, NetworkError};
use nix::fcntl::{Flock, FlockArg};
use record::{RecordError, Records};
use settings::{EncryptionSetting, IsolationSetting};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
use slipway_volumes::{Capacity, Encryption, SharedDisk, ThinPool, VolumeDriver, VolumeError};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use volume_fences::VolumeFences;

/// Why the host daemon cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostRunError {
    /// Not root.
    #[error("the host daemon makes mounts and networks, so it must be run as root")]
    NotRoot,
    /// The settings cannot work.
    #[error("the settings cannot be used")]
    Settings(#[from] InvalidSettings),
    /// Another daemon has the same state directory.
    #[error("another host daemon is using {}", state_dir.display())]
    AlreadyRunning {
        /// Which.
        state_dir: PathBuf,
    },
    /// Another daemon, of other settings perhaps, has its machines below the same cgroup.
    #[error(
        "another host daemon has its machines below the cgroup '{cgroup_parent}' (hint: end that daemon, or set another cgroup_parent)"
    )]
    CgroupTaken {
        /// Which.
        cgroup_parent: String,
    },
    /// A directory or the socket.
    #[error("{action} {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A machine's root could not get to its own root file system.
    #[error("{} must let everybody pass (hint: chmod o+x, or set run_dir elsewhere)", path.display())]
    Unsearchable {
        /// Which directory above `run_dir`.
        path: PathBuf,
    },
    /// The pool of volumes cannot be opened.
    #[error("open the pool")]
    Pool(#[source] VolumeError),
    /// A further certificate that machines would trust cannot be used.
    #[error("read the certificates of ca_files")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The machines' network cannot be set up.
    #[error("set up the network")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The machine driver cannot be set up.
    #[error("set up the machine drivers")]
    Driver(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The settings want virtual machines, and there can be none.
    #[error("isolation is \"vm\", but there can be no virtual machines here: {why}")]
    NoVms {
        /// Why.
        why: String,
    },
    /// What an earlier daemon left can neither be adopted nor cleared away.
    #[error("take over what an earlier daemon left")]
    Recover(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Machines were killed, and live.
    #[error(
        "killed, but has not ended: {} (hint: call it again; the host's log says what is in the way)",
        list(machines)
    )]
    WouldNotEnd {
        /// Which.
        machines: Vec<MachineId>,
    },
    /// The builder image cannot be read.
    #[error("prepare the builder image (hint: `make setup` builds it)")]
    Image(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn list(machines: &[MachineId]) -> String {
    let names: Vec<_> = machines.iter().map(MachineId::as_str).collect();
    names.join(", ")
}

impl From<NetworkError> for HostRunError {
    fn from(error: NetworkError) -> Self {
        Self::Network(error.into())
    }
}

impl From<DriverError> for HostRunError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error.into())
    }
}

impl From<VerbError> for HostRunError {
    fn from(error: VerbError) -> Self {
        Self::Recover(error.into())
    }
}

impl From<RecordError> for HostRunError {
    fn from(error: RecordError) -> Self {
        Self::Recover(error.into())
    }
}

/// Runs the host daemon until `shutdown` is ready: takes over what an earlier one left, then serves the host API.
/// Machines go on running afterwards; the next daemon adopts them.
///
/// # Errors
/// [`HostRunError`]; nothing of the world was changed then that the next run would not bring in line.
pub async fn run(
    settings: HostSettings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), HostRunError> {
    settings.check()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(HostRunError::NotRoot);
    }
    rlimits::raise();
    let settings = Arc::new(settings);
    let prepared = {
        let settings = Arc::clone(&settings);
        tokio::task::spawn_blocking(move || prepare(&settings)).await
    };
    let (_locks, service, network) =
        prepared.map_err(|error| HostRunError::Recover(error.into()))??;
    let (keys, volumes) = (Arc::clone(&service.keys), Arc::clone(&service.volumes));
    let (images, kernel_dir) = (Arc::clone(&service.images), service.kernel_dir.clone());
    let listener = server::bind(&settings).map_err(at("listen at", &settings.socket))?;
    tracing::info!(socket = %settings.socket.display(), "host ready");
    let stop = CancellationToken::new();
    let machines = Arc::clone(&service.machines);
    let serving = server::serve(listener, Arc::new(service), stop.clone());
    let stopping = async {
        shutdown.await;
        stop.cancel();
    };
    let keeping = keep_network(&network, &stop);
    let wiping = wipe_keys(&keys, &stop);
    let rests = settings.pause_after_s.is_some() || settings.kept_memory.is_some();
    let resting = rest_machines(&machines, rests, &stop);
    let written = written(&settings);
    let watching = watch_pool(&volumes, &written, &stop);
    let watched = freshness::Watched {
        images,
        network: Arc::clone(&network),
        machines: Arc::clone(&machines),
        kernel_dir,
    };
    let looking = freshness::watch(&watched, &stop);
    tokio::join!(
        serving, stopping, keeping, wiping, resting, watching, looking
    );
    Ok(())
}

/// Brings the firewall table back when something else on the host took it away, and in line when resolvers change.
async fn keep_network(network: &Arc<Network>, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(limits::NETWORK_CHECK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let checked = {
            let network = Arc::clone(network);
            tokio::task::spawn_blocking(move || network.keep()).await
        };
        if let Ok(Err(error)) = checked {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "machines may be without network, or with too much"
            );
        }
    }
}

/// Wipes the keys whose leases are over.
async fn wipe_keys(keys: &keys::Keys, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(limits::KEYS_CHECK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        keys.forget_expired(std::time::Instant::now());
    }
}

/// Lets machines that nobody uses rest; once in any case.
async fn rest_machines(machines: &Arc<Machines>, wanted: bool, stop: &CancellationToken) {
    if !wanted {
        return machines.rest().await;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(limits::REST_CHECK_EVERY) => machines.rest().await,
            () = stop.cancelled() => return,
        }
    }
}

/// Says what the pool's operator must see to, once each time it changes, and at first how its disk is shared.
async fn watch_pool(
    volumes: &Arc<dyn VolumeDriver>,
    written: &[PathBuf],
    stop: &CancellationToken,
) {
    let (mut told, mut sharing_told) = (Vec::new(), false);
    loop {
        let pool = {
            let (volumes, written) = (Arc::clone(volumes), written.to_vec());
            let look = move || {
                volumes.pool().map(|mut pool| {
                    pool.notices.extend(room::full_disks(&written));
                    pool
                })
            };
            tokio::task::spawn_blocking(look).await
        };
        if let Ok(Ok(pool)) = pool {
            if !std::mem::replace(&mut sharing_told, true) {
                tell_of_sharing(pool.disk);
            }
            if pool.notices != told {
                for notice in &pool.notices {
                    tracing::warn!(notice, "the pool needs its operator");
                }
                told = pool.notices;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(limits::POOL_CHECK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostRunError {
    let path = path.to_owned();
    move |source| HostRunError::System {
        action,
        path,
        source,
    }
}

/// What an earlier daemon left, taken over.
struct Held {
    locks: Locks,
    machines: Arc<Machines>,
    volumes: Arc<dyn VolumeDriver>,
    fences: Arc<VolumeFences>,
    keys: Arc<keys::Keys>,
    network: Arc<Network>,
    images: Arc<Images>,
}

/// Adopts or clears away what an earlier daemon left. Blocks.
fn take_over(
    settings: &HostSettings,
    make_drivers: impl FnOnce(&Arc<Network>, &Arc<dyn VolumeDriver>) -> Result<Drivers, HostRunError>,
) -> Result<Held, HostRunError> {
    make_dir(&settings.state_dir, 0o700).map_err(at("make", &settings.state_dir))?;
    make_dir(&settings.run_dir, 0o755).map_err(at("make", &settings.run_dir))?;
    let locks = Locks {
        _state_dir: lock_state_dir(&settings.state_dir)?,
        _cgroup_parent: lock_cgroup_parent(&settings.cgroup_parent)?,
    };
    check_searchable(&settings.run_dir)?;
    if let Err(error) = process::number_as_many_as_there_can_be() {
        tracing::warn!(%error, "kernel.pid_max cannot be raised: machines share the host's numbers of processes");
    }
    udev::warn_if_it_looks_into_volumes();
    let volumes = open_pool(settings).map_err(HostRunError::Pool)?;
    let network = Arc::new(Network::set_up(settings)?);
    let images = Arc::new(Images::new(settings));
    images
        .ca_pem()
        .map_err(|error| HostRunError::Certificates(Box::new(error)))?;
    let drivers = make_drivers(&network, &volumes)?;
    let records = Records::open(&settings.state_dir, &settings.run_dir)?;
    let fences = open_fences(settings, &volumes)?;
    let keys = Arc::new(keys::Keys::default());
    let machines = Machines::recover(
        drivers,
        machines::Pool {
            volumes: Arc::clone(&volumes),
            keys: Arc::clone(&keys),
        },
        Arc::clone(&network),
        Arc::clone(&images),
        records,
        settings.machines_max,
    )?;
    Ok(Held {
        locks,
        machines,
        volumes,
        fences,
        keys,
        network,
        images,
    })
}

fn open_fences(
    settings: &HostSettings,
    volumes: &Arc<dyn VolumeDriver>,
) -> Result<Arc<VolumeFences>, HostRunError> {
    let there = volumes.list().map_err(HostRunError::Pool)?;
    let there: HashSet<VolumeId> = there.into_iter().map(|report| report.volume).collect();
    let fences = VolumeFences::open(&settings.pool_dir, |volume| there.contains(volume));
    fences
        .map(Arc::new)
        .map_err(|error| HostRunError::Recover(error.into()))
}

/// Everything up to the socket. Blocks.
fn prepare(
    settings: &HostSettings,
) -> Result<(Locks, server::Service, Arc<Network>), HostRunError> {
    let allowed_uids = server::allowed_uids(settings)?;
    subids::warn_of_shared(&settings.machine_ids());
    let (mut names, mut kinds, mut vm_accelerator) = (Vec::new(), Vec::new(), None);
    let held = take_over(settings, |network, volumes| {
        let (drivers, accelerator) = make_drivers(settings, network, volumes)?;
        (names, kinds, vm_accelerator) = (drivers.names(), drivers.offer.told(), accelerator);
        Ok(drivers)
    })?;
    let Held {
        locks,
        machines,
        volumes,
        fences,
        keys,
        network,
        images,
    } = held;
    // Now rather than within the first start: it is read and mounted once, which takes a while.
    images
        .current(&network)
        .map_err(|error| HostRunError::Image(error.into()))?;
    machines.keep_images_pruned();
    let service = server::Service {
        machines,
        volumes,
        fences,
        keys,
        transfers: server::transfers(),
        images,
        kernel_dir: vm_accelerator
            .is_some()
            .then(|| settings.kernel_dir.clone()),
        drivers: names,
        kinds,
        vm_accelerator,
        cpu_millis: settings.cpu_millis.unwrap_or_else(all_cpu_millis),
        memory: settings.memory.unwrap_or_else(spare_memory),
        allowed_uids,
        written: written(settings),
    };
    Ok((locks, service, network))
}

/// The directories that the daemon writes to.
fn written(settings: &HostSettings) -> Vec<PathBuf> {
    vec![
        settings.state_dir.clone(),
        settings.pool_dir.clone(),
        settings.run_dir.clone(),
    ]
}

/// Says whether one machine can take a whole disk from the others.
fn tell_of_sharing(disk: Option<SharedDisk>) {
    match disk.map_or(disk::Sharing::Unknown, |disk| disk::sharing(disk.device)) {
        disk::Sharing::Equal => tracing::info!("machines share the disk of the pool equally"),
        disk::Sharing::Unequal(disks) => tracing::warn!(
            ?disks,
            "one machine can take most of what the disk of the pool does (hint: echo bfq >/sys/block/DISK/queue/scheduler shares it by machine; machine_disk_rate caps each)"
        ),
        disk::Sharing::Unknown => tracing::info!(
            "it is not known whether machines share the disk of the pool equally: its devices are not to be seen"
        ),
    }
}

/// Both drivers, and what virtual machines run on if they are to be had.
fn make_drivers(
    settings: &HostSettings,
    network: &Arc<Network>,
    volumes: &Arc<dyn VolumeDriver>,
) -> Result<(Drivers, Option<&'static str>), HostRunError> {
    let sandbox = sandbox::Sandbox::new(settings, Arc::clone(network))?;
    let vm = vm::VirtualMachines::new(
        settings,
        Arc::clone(network),
        Arc::clone(volumes),
        vm::find(settings),
    )?;
    let support = match vm.found() {
        vm::Found::Kvm => VmSupport::Fast,
        vm::Found::Emulated { why } => {
            if settings.isolation != IsolationSetting::Sandbox {
                tracing::warn!(
                    why,
                    "KVM does not work here: virtual machines are emulated, which is many times slower"
                );
            }
            VmSupport::Emulated
        }
        vm::Found::Nothing { why } => {
            match settings.isolation {
                IsolationSetting::Vm => return Err(HostRunError::NoVms { why: why.clone() }),
                IsolationSetting::Auto => tracing::info!(why, "no virtual machines here"),
                IsolationSetting::Sandbox => {}
            }
            VmSupport::None
        }
    };
    let accelerator = vm.found().accelerator().map(vm::Accelerator::name);
    let drivers = Drivers {
        sandbox: Arc::new(sandbox),
        vm: Arc::new(vm),
        offer: Offer::new(settings.isolation, support),
    };
    let offered = drivers.offer.kinds().contains(&DriverKind::Vm);
    Ok((drivers, accelerator.filter(|_| offered)))
}

/// Both drivers, to clear machines away and start none: it is not asked what virtual machines would run on.
fn clearing_drivers(
    settings: &HostSettings,
    network: &Arc<Network>,
    volumes: &Arc<dyn VolumeDriver>,
) -> Result<Drivers, HostRunError> {
    let nothing = vm::Found::Nothing {
        why: "nothing is started".to_owned(),
    };
    Ok(Drivers {
        sandbox: Arc::new(sandbox::Sandbox::new(settings, Arc::clone(network))?),
        vm: Arc::new(vm::VirtualMachines::new(
            settings,
            Arc::clone(network),
            Arc::clone(volumes),
            nothing,
        )?),
        offer: Offer::new(settings.isolation, VmSupport::None),
    })
}

/// The pool of volumes that the settings name.
fn open_pool(settings: &HostSettings) -> Result<Arc<dyn VolumeDriver>, VolumeError> {
    let encryption = match settings.encryption {
        EncryptionSetting::Off => Encryption::Off,
        EncryptionSetting::Required => Encryption::Required,
    };
    match &settings.lvm {
        None => {
            let capacity = Capacity {
                set: settings.pool_capacity,
                owed_to_others: owed_beside(settings),
            };
            slipway_volumes::open_file_pool(&settings.pool_dir, capacity, encryption)
        }
        Some(lvm) => slipway_volumes::open_thin_pool(
            &settings.pool_dir,
            ThinPool {
                volume_group: lvm.volume_group.clone(),
                thin_pool: lvm.thin_pool.clone(),
                capacity: settings.pool_capacity,
                oversubscription: lvm.oversubscription,
            },
            encryption,
        ),
    }
}

/// What of the disk that images of volumes lie on was promised to kept memory, and is not taken yet.
fn owed_beside(settings: &HostSettings) -> ByteSize {
    let device = |path: &Path| {
        let there = path.ancestors().find_map(|path| fs::metadata(path).ok());
        there.map(|metadata| metadata.dev())
    };
    let shared = device(&settings.pool_dir) == device(&settings.state_dir);
    match settings.kept_memory {
        Some(limit) if shared => vm::still_owed(&vm::memory_dir(&settings.state_dir), limit),
        Some(_) | None => ByteSize(0),
    }
}

/// The runtime finds a machine's root file system with the rights of the machine's root, who is nobody on the host.
fn check_searchable(run_dir: &Path) -> Result<(), HostRunError> {
    for dir in run_dir.ancestors() {
        let mode = fs::metadata(dir)
            .map_err(at("examine", dir))?
            .permissions()
            .mode();
        if mode & 0o001 == 0 {
            return Err(HostRunError::Unsearchable {
                path: dir.to_owned(),
            });
        }
    }
    Ok(())
}

/// Held for as long as the daemon lives; the kernel gives them back however it ends.
struct Locks {
    _state_dir: Flock<File>,
    _cgroup_parent: Flock<File>,
}

fn lock_state_dir(state_dir: &Path) -> Result<Flock<File>, HostRunError> {
    let taken = || HostRunError::AlreadyRunning {
        state_dir: state_dir.to_owned(),
    };
    lock(&state_dir.join("lock"), taken)
}

/// What is killed, is killed by its cgroup: settings that differ in all paths may have the same one, so this lock is where every daemon of
/// the computer finds it.
fn lock_cgroup_parent(cgroup_parent: &str) -> Result<Flock<File>, HostRunError> {
    let path = format!("/run/{cgroup_parent}.cgroup.lock");
    let taken = || HostRunError::CgroupTaken {
        cgroup_parent: cgroup_parent.to_owned(),
    };
    lock(Path::new(&path), taken)
}

fn lock(path: &Path, taken: impl FnOnce() -> HostRunError) -> Result<Flock<File>, HostRunError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    let file = file.map_err(at("open", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            taken()
        } else {
            at("lock", path)(errno.into())
        }
    })
}

fn all_cpu_millis() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(processors)
        .unwrap_or(u32::MAX)
        .saturating_mul(1000)
}

/// What machines may have: all but what the host needs for itself.
fn spare_memory() -> ByteSize {
    let ByteSize(all) = all_memory();
    ByteSize(all.saturating_sub(HOST_MEMORY_MIN.max(all / HOST_MEMORY_PART)))
}

/// `MemTotal` of `/proc/meminfo` (in KiB).
fn all_memory() -> ByteSize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    ByteSize(kib.unwrap_or(0) << 10)
}

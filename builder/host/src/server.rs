//! The host API on its socket: who may speak, how many at once, how long each request may take, and which verb answers it.
//!
//! Must not know: how any verb is done.

use crate::endpoint;
use crate::files::{is_full, remove_all};
use crate::image::{self, Images};
use crate::keys::{Keys, LeaseError};
use crate::limits::{
    CONNECTIONS_MAX, FRAME_WAIT_MAX, REFUSALS_MAX, REQUEST_WAIT_MAX, SHUTDOWN_WAIT_MAX,
};
use crate::machines::{Machines, VerbError};
use crate::room::full_disks;
use crate::settings::{HostSettings, InvalidSettings};
use crate::volume_fences::{FenceError, VolumeFences};
use crate::wire::{self, FrameError};
use slipway_core::fence::VolumeFence;
use slipway_core::host_api::{
    Cursor, FENCED_SINCE, HOST_API_VERSIONS, HostError, HostErrorCode, HostInfo, HostReply,
    HostRequest, HostRequestFrame, MachineKind, MachineSpec, Page,
};
use slipway_core::key::KeyLease;
use slipway_core::limits::HOST_API_WATCH_WAIT_MAX;
use slipway_core::units::ByteSize;
use slipway_volumes::VolumeDriver;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

const ROOT: u32 = 0;

mod volumes;

pub(crate) use volumes::transfers;

/// Everything a request may need.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) machines: Arc<Machines>,
    pub(crate) volumes: Arc<dyn VolumeDriver>,
    pub(crate) fences: Arc<VolumeFences>,
    pub(crate) keys: Arc<Keys>,
    /// Room for exports and imports.
    pub(crate) transfers: Arc<Semaphore>,
    pub(crate) images: Arc<Images>,
    pub(crate) drivers: Vec<String>,
    pub(crate) kinds: Vec<MachineKind>,
    /// What virtual machines run on; absent if they are not to be had.
    pub(crate) vm_accelerator: Option<&'static str>,
    /// What virtual machines boot; none where they cannot be had.
    pub(crate) kernel_dir: Option<PathBuf>,
    pub(crate) cpu_millis: u32,
    pub(crate) memory: ByteSize,
    pub(crate) allowed_uids: Vec<u32>,
    /// Directories that are written to.
    pub(crate) written: Vec<PathBuf>,
}

/// A reply and the descriptor that goes with it.
struct Answer {
    reply: HostReply,
    descriptor: Option<OwnedFd>,
}

impl From<HostReply> for Answer {
    fn from(reply: HostReply) -> Self {
        Self {
            reply,
            descriptor: None,
        }
    }
}

/// Binds the socket in the place of any before it, for root and a group alone.
///
/// # Errors
/// What the system said.
pub(crate) fn bind(settings: &HostSettings) -> io::Result<UnixListener> {
    let group = nix::unistd::Group::from_name(&settings.socket_group)?.ok_or_else(|| {
        io::Error::other(format!("there is no group '{}'", settings.socket_group))
    })?;
    if let Some(dir) = settings.socket.parent() {
        fs::create_dir_all(dir)?;
    }
    remove_all(&settings.socket)?;
    let listener = UnixListener::bind(&settings.socket)?;
    // A peer that is no user of it must not be able to block the thread that refuses it.
    endpoint::refuse_descriptors(&listener)?;
    chown(&settings.socket, Some(ROOT), Some(group.gid.as_raw()))?;
    fs::set_permissions(&settings.socket, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// The ids of everybody whom the settings let speak, besides root.
///
/// # Errors
/// [`InvalidSettings::User`] for a name that the system does not know.
pub(crate) fn allowed_uids(settings: &HostSettings) -> Result<Vec<u32>, InvalidSettings> {
    let mut uids = settings.allowed_uids.clone();
    for name in &settings.allowed_users {
        // An unreadable user database knows nobody.
        let user = nix::unistd::User::from_name(name).ok().flatten();
        let user = user.ok_or_else(|| InvalidSettings::User(name.clone()))?;
        uids.push(user.uid.as_raw());
    }
    Ok(uids)
}

/// Serves until `stop`; then finishes what is in hand.
pub(crate) async fn serve(listener: UnixListener, service: Arc<Service>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Before anything else: whoever may not speak takes no place from those who may.
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                if !uid.is_some_and(|uid| uid == ROOT || service.allowed_uids.contains(&uid)) {
                    if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                        connections.spawn(async move {
                            refuse(stream, uid).await;
                            drop(place);
                        });
                    }
                    continue;
                }
                let place = tokio::select! {
                    place = Arc::clone(&places).acquire_owned() => place,
                    () = stop.cancelled() => break,
                };
                let (service, stop) = (Arc::clone(&service), stop.clone());
                connections.spawn(async move {
                    connection(stream, &service, &stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: some will come back.
                tracing::error!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(SHUTDOWN_WAIT_MAX, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("requests are still in hand; the next start clears up after them");
    }
}

async fn refuse(mut stream: UnixStream, uid: Option<u32>) {
    tracing::warn!(uid, "refused a peer");
    let message =
        "this user may not speak to the host daemon (hint: allowed_users in its settings)";
    // Its request is read first: to close on unread bytes would lose the answer. It may have gone already.
    let _ = tokio::time::timeout(FRAME_WAIT_MAX, wire::read(&mut stream)).await;
    let _ = send(&mut stream, &refusal(HostErrorCode::Denied, message)).await;
}

async fn connection(mut stream: UnixStream, service: &Arc<Service>, stop: &CancellationToken) {
    loop {
        let frame = tokio::select! {
            frame = wire::read(&mut stream) => frame,
            () = stop.cancelled() => return,
        };
        let answer = match frame {
            // It may have a key in it.
            Ok(frame) => answer_within(service, &Zeroizing::new(frame), stop).await,
            Err(FrameError::Closed) => return,
            Err(error) => {
                // The stream's place is lost, so this is the last answer.
                let _ = send(
                    &mut stream,
                    &refusal(HostErrorCode::BadRequest, &error.to_string()),
                )
                .await;
                return;
            }
        };
        match send(&mut stream, &answer).await {
            Ok(()) => {}
            Err(FrameError::TooLong(bytes)) => {
                tracing::error!(bytes, "a reply does not fit in a frame");
                let message = "the reply is too long for a frame";
                if send(&mut stream, &refusal(HostErrorCode::Failed, message))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a reply was not taken");
                return;
            }
        }
    }
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> Result<(), FrameError> {
    let json = serde_json::to_vec(&answer.reply).map_err(io::Error::other)?;
    wire::write(stream, &json, answer.descriptor.as_ref()).await
}

fn refusal(code: HostErrorCode, message: &str) -> Answer {
    HostReply::Error(HostError::new(code, message)).into()
}

/// The version alone, so that a request of another version is told apart from nonsense.
#[derive(serde::Deserialize)]
struct Version {
    version: u32,
}

async fn answer_within(service: &Arc<Service>, frame: &[u8], stop: &CancellationToken) -> Answer {
    match serde_json::from_slice::<Version>(frame) {
        Ok(Version { version }) if !HOST_API_VERSIONS.has(version) => {
            return HostReply::Error(HostError::other_version(version)).into();
        }
        Ok(_) | Err(_) => {}
    }
    let HostRequestFrame {
        version,
        request,
        lease,
        fence,
        page,
    } = match serde_json::from_slice(frame) {
        Ok(frame) => frame,
        Err(error) => {
            return refusal(
                HostErrorCode::BadRequest,
                &format!("not a request: {error}"),
            );
        }
    };
    let name = verb(&request);
    // A task of its own: what was begun is ended even if the peer goes away or the time is up.
    let (work, stop) = (Arc::clone(service), stop.clone());
    let beside = Beside { lease, fence, page };
    let work = tokio::spawn(async move { answer(&work, request, beside, &stop).await });
    match tokio::time::timeout(REQUEST_WAIT_MAX, work).await {
        Ok(Ok(Ok(answer))) => answer,
        Ok(Ok(Err(error))) => {
            let (code, message) = (code(&error), chain(&error));
            let code = in_version(version, code);
            if matches!(code, HostErrorCode::Failed | HostErrorCode::DiskFull) {
                tracing::error!(verb = name, message, "failed");
            }
            refusal(code, &message)
        }
        Ok(Err(error)) => {
            tracing::error!(verb = name, %error, "the work on a request broke off");
            refusal(
                HostErrorCode::Failed,
                "the work on this request broke off; the host's log says why",
            )
        }
        Err(_) => refusal(
            HostErrorCode::InProgress,
            &format!(
                "it takes more than {} s; it goes on, so ask again",
                REQUEST_WAIT_MAX.as_secs()
            ),
        ),
    }
}

/// What a caller of this version is told of a refusal: one of version 2 does not know the newer words.
fn in_version(version: u32, code: HostErrorCode) -> HostErrorCode {
    if version >= FENCED_SINCE {
        code
    } else if code == HostErrorCode::StaleFence {
        HostErrorCode::StaleGeneration
    } else if code == HostErrorCode::DiskFull {
        HostErrorCode::Failed
    } else if code == HostErrorCode::VolumeForeign {
        HostErrorCode::VolumeDamaged
    } else {
        code
    }
}

/// What may come with a request.
struct Beside {
    lease: Option<KeyLease>,
    fence: Option<VolumeFence>,
    page: Option<Page>,
}

async fn answer(
    service: &Arc<Service>,
    request: HostRequest,
    beside: Beside,
    stop: &CancellationToken,
) -> Result<Answer, VerbError> {
    let machines = &service.machines;
    let Beside { lease, fence, page } = beside;
    Ok(match request {
        HostRequest::Info => blocking(service, |s| info(s).map(Answer::from)).await?,
        volume_verb @ (HostRequest::EnsureVolume { .. }
        | HostRequest::ExtendVolume { .. }
        | HostRequest::DestroyVolume { .. }
        | HostRequest::ListVolumes
        | HostRequest::ShowVolume { .. }
        | HostRequest::CreateSnapshot { .. }
        | HostRequest::DeleteSnapshot { .. }
        | HostRequest::ListSnapshots
        | HostRequest::ExportSnapshot { .. }
        | HostRequest::ExportDifference { .. }
        | HostRequest::ImportVolume { .. }
        | HostRequest::RevokeKey { .. }) => {
            blocking(service, move |s| {
                s.volume_verb(volume_verb, fence, page.as_ref())
            })
            .await?
        }
        HostRequest::LendKey => {
            let lease = lease.ok_or(VerbError::NoLease)?;
            service.keys.lend(lease, std::time::Instant::now())?;
            HostReply::Done.into()
        }
        HostRequest::EnsureMachine(spec) => {
            let request = HostRequest::EnsureMachine(spec.clone());
            // Until the machine has its volume: nothing is decided about that meanwhile.
            let turn = blocking(service, move |s| s.turn(&request, fence)).await;
            if let Err(VerbError::Fence(busy @ FenceError::Busy { .. })) = &turn {
                // It may be this start, asked for once more: it has not failed.
                return Ok(refusal(HostErrorCode::InProgress, &chain(busy)));
            }
            let _turn = turn?;
            let spec = within(spec, service.cpu_millis, service.memory);
            HostReply::Machine(machines.ensure(spec).await?).into()
        }
        HostRequest::StopMachine {
            machine,
            generation,
            grace_ms,
        } => {
            let grace = Duration::from_millis(grace_ms);
            HostReply::Machine(machines.stop(&machine, generation, grace).await?).into()
        }
        HostRequest::RemoveMachine {
            machine,
            generation,
        } => {
            machines.remove(&machine, generation).await?;
            HostReply::Done.into()
        }
        HostRequest::WatchMachines {
            epoch,
            after: revision,
            wait_ms,
        } => {
            let seen = Cursor { epoch, revision };
            let wait = Duration::from_millis(wait_ms).min(HOST_API_WATCH_WAIT_MAX);
            let (now, machines) = tokio::select! {
                changed = machines.watch(seen, wait) => changed,
                () = stop.cancelled() => machines.watch(seen, Duration::ZERO).await,
            };
            let (machines, more) = part(page.as_ref(), machines, |m| m.machine.as_str());
            HostReply::Machines {
                epoch: now.epoch,
                revision: now.revision,
                machines,
                more,
            }
            .into()
        }
        HostRequest::OpenEndpoint {
            machine,
            generation,
            port,
        } => {
            let descriptor = Some(machines.connect(&machine, generation, port).await?);
            Answer {
                reply: HostReply::Endpoint,
                descriptor,
            }
        }
    })
}

/// The part of a list that is asked for, and whether there is more; all of it for who does not say.
fn part<T>(page: Option<&Page>, list: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, bool) {
    match page {
        Some(page) => page.cut(list, id),
        None => (list, false),
    }
}

/// A machine gets no more than there is: a limit above that would be none.
fn within(spec: MachineSpec, cpu_millis: u32, memory: ByteSize) -> MachineSpec {
    MachineSpec {
        cpu_millis: spec.cpu_millis.min(cpu_millis),
        memory_bytes: spec.memory_bytes.min(memory.0),
        ..spec
    }
}

/// Runs work on a blocking thread.
async fn blocking<T: Send + 'static>(
    service: &Arc<Service>,
    work: impl FnOnce(&Arc<Service>) -> Result<T, VerbError> + Send + 'static,
) -> Result<T, VerbError> {
    let service = Arc::clone(service);
    let done = tokio::task::spawn_blocking(move || work(&service));
    done.await.map_err(|_| VerbError::CutOff)?
}

fn info(service: &Service) -> Result<HostReply, VerbError> {
    let pool = service.volumes.pool()?;
    let full = full_disks(&service.written);
    let disk_full = !full.is_empty();
    let capabilities = service.volumes.capabilities();
    Ok(HostReply::Info(HostInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: arch().to_owned(),
        drivers: service.drivers.clone(),
        kinds: service.kinds.clone(),
        vm_accelerator: service.vm_accelerator.map(str::to_owned),
        cpu_millis: service.cpu_millis,
        memory_bytes: service.memory.0,
        pool_capacity_bytes: pool.capacity.0,
        pool_promised_bytes: pool.promised.0,
        pool_used_bytes: pool.used.0,
        encrypts: capabilities.encryption,
        cloning: capabilities.cloning,
        pool_notices: [full, pool.notices].concat(),
        disk_full,
        pool: pool.id,
        image: service.images.hash()?,
        image_made_at: service.images.made_at(),
        kernel_made_at: service.kernel_dir.as_deref().and_then(image::made_at),
    }))
}

/// As Docker names architectures.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn verb(request: &HostRequest) -> &'static str {
    match request {
        HostRequest::Info => "info",
        HostRequest::EnsureVolume { .. } => "ensure_volume",
        HostRequest::ExtendVolume { .. } => "extend_volume",
        HostRequest::CreateSnapshot { .. } => "create_snapshot",
        HostRequest::DeleteSnapshot { .. } => "delete_snapshot",
        HostRequest::ListSnapshots => "list_snapshots",
        HostRequest::ExportSnapshot { .. } => "export_snapshot",
        HostRequest::ExportDifference { .. } => "export_difference",
        HostRequest::ImportVolume { .. } => "import_volume",
        HostRequest::LendKey => "lend_key",
        HostRequest::RevokeKey { .. } => "revoke_key",
        HostRequest::DestroyVolume { .. } => "destroy_volume",
        HostRequest::ListVolumes => "list_volumes",
        HostRequest::ShowVolume { .. } => "show_volume",
        HostRequest::EnsureMachine(_) => "ensure_machine",
        HostRequest::StopMachine { .. } => "stop_machine",
        HostRequest::RemoveMachine { .. } => "remove_machine",
        HostRequest::WatchMachines { .. } => "watch_machines",
        HostRequest::OpenEndpoint { .. } => "open_endpoint",
    }
}

fn code(error: &VerbError) -> HostErrorCode {
    let code = kind(error);
    if code == HostErrorCode::Failed && is_full(error) {
        HostErrorCode::DiskFull
    } else {
        code
    }
}

fn kind(error: &VerbError) -> HostErrorCode {
    use crate::driver::DriverError;
    match error {
        VerbError::Stale(_) => HostErrorCode::StaleGeneration,
        VerbError::Fence(FenceError::Stale { .. }) => HostErrorCode::StaleFence,
        VerbError::Fence(FenceError::Busy { .. }) => HostErrorCode::Busy,
        VerbError::Fence(FenceError::File { .. } | FenceError::Unreadable { .. }) => {
            HostErrorCode::Failed
        }
        VerbError::NotRunning(_) | VerbError::NotFound(_) => HostErrorCode::NotFound,
        VerbError::Running(_) | VerbError::WouldNotEnd { .. } | VerbError::Opening(_) => {
            HostErrorCode::Busy
        }
        VerbError::Full(_) => HostErrorCode::NoSpace,
        VerbError::NotOffered(_) => HostErrorCode::Unsupported,
        VerbError::Volume(error) => volumes::code(error),
        VerbError::Lease(LeaseError::Stale(_)) => HostErrorCode::StaleGeneration,
        VerbError::TransfersFull | VerbError::Lease(LeaseError::TooMany) => HostErrorCode::Busy,
        VerbError::NoLease | VerbError::OthersFence => HostErrorCode::BadRequest,
        VerbError::Driver(DriverError::Endpoint { source, .. }) => match source.raw_os_error() {
            // Nobody listens any more: it is ending.
            Some(nix::libc::ECONNREFUSED | nix::libc::ENOENT) => HostErrorCode::NotFound,
            Some(nix::libc::EAGAIN) => HostErrorCode::Busy,
            Some(_) | None => HostErrorCode::Failed,
        },
        VerbError::Driver(_)
        | VerbError::Record(_)
        | VerbError::Network(_)
        | VerbError::Image(_)
        | VerbError::Process { .. }
        | VerbError::CutOff => HostErrorCode::Failed,
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::generation::Generation;
    use slipway_core::id::{MachineId, VolumeId};
    use slipway_core::isolation::Isolation;

    #[test]
    fn a_caller_of_version_2_is_told_nothing_that_it_does_not_know() {
        for (code, known) in [
            (HostErrorCode::StaleFence, HostErrorCode::StaleGeneration),
            (HostErrorCode::DiskFull, HostErrorCode::Failed),
            (HostErrorCode::VolumeForeign, HostErrorCode::VolumeDamaged),
            (HostErrorCode::VolumeDamaged, HostErrorCode::VolumeDamaged),
        ] {
            assert_eq!(in_version(2, code), known);
            assert_eq!(in_version(FENCED_SINCE, code), code);
        }
    }

    #[test]
    fn a_machine_is_limited_to_what_the_host_has() {
        let asked = |cpu_millis, memory_bytes| MachineSpec {
            machine: MachineId::from_entropy([1; 10]),
            generation: Generation(1),
            volume: VolumeId::from_entropy([2; 10]),
            cpu_millis,
            memory_bytes,
            pids_max: 3,
            isolation: Isolation::Auto,
        };
        let cut = |cpu, memory| within(asked(cpu, memory), 4000, ByteSize::gib(8));
        assert_eq!(cut(4_000_000_000, 1 << 50), asked(4000, 8 << 30));
        assert_eq!(cut(4000, 8 << 30), asked(4000, 8 << 30));
        assert_eq!(cut(100, 1 << 30), asked(100, 1 << 30));
    }
}

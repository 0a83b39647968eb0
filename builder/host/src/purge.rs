//! `slipwayd host purge`: ends every machine of this host and removes all it made.
//!
//! Must not know: how machines or volumes are ended; it asks for it as the host API's callers do.

use crate::machines::Machines;
use crate::settings::HostSettings;
use crate::{HostRunError, at, clearing_drivers, files, mounts, take_over};
use slipway_core::host_api::MachineRunState;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest a purge waits for machines to end; then it says so, and may be called again.
const PURGE_WAIT_MAX: Duration = Duration::from_secs(120);

/// How often a purge that waits tells what for.
const PURGE_TELL_EVERY: Duration = Duration::from_secs(5);

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// Machines ended.
    pub machines: usize,
    /// Volumes destroyed.
    pub volumes: usize,
}

/// Ends every machine at once (builds that run are lost), destroys every volume and snapshot of the pool, and removes the network, the
/// mounts and the directories. The daemon must have ended. A host that was never set up is fine.
///
/// # Errors
/// [`HostRunError`]: a daemon runs, or something does not go away; calling it again goes on.
pub async fn purge(settings: HostSettings) -> Result<Purged, HostRunError> {
    settings.check()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(HostRunError::NotRoot);
    }
    if !settings.state_dir.exists() {
        return Ok(Purged {
            machines: 0,
            volumes: 0,
        });
    }
    let settings = Arc::new(settings);
    let shared = Arc::clone(&settings);
    let taken = tokio::task::spawn_blocking(move || {
        take_over(&shared, |network, volumes| {
            clearing_drivers(&shared, network, volumes)
        })
    })
    .await;
    let held = taken.map_err(|error| HostRunError::Recover(error.into()))??;

    let machines = end_machines(&held.machines).await?;
    for snapshot in held.volumes.snapshots().map_err(HostRunError::Pool)? {
        held.volumes
            .delete_snapshot(&snapshot.snapshot)
            .map_err(HostRunError::Pool)?;
    }
    let volumes = held.volumes.list().map_err(HostRunError::Pool)?;
    for volume in &volumes {
        held.volumes
            .destroy(&volume.volume)
            .map_err(HostRunError::Pool)?;
    }
    for half_made in held.volumes.unfinished().map_err(HostRunError::Pool)? {
        held.volumes
            .destroy(&half_made)
            .map_err(HostRunError::Pool)?;
    }
    held.network.remove()?;
    drop(held);
    remove_traces(&settings)?;
    Ok(Purged {
        machines,
        volumes: volumes.len(),
    })
}

/// Ends and forgets every machine; gives how many there were.
async fn end_machines(all: &Arc<Machines>) -> Result<usize, HostRunError> {
    let deadline = Instant::now() + PURGE_WAIT_MAX;
    let (mut revision, mut machines) = all.watch(0, Duration::ZERO).await;
    let n_machines = machines.len();
    while !machines.is_empty() {
        if Instant::now() >= deadline {
            let machines = machines.into_iter().map(|machine| machine.machine);
            return Err(HostRunError::WouldNotEnd {
                machines: machines.collect(),
            });
        }
        for machine in &machines {
            let (id, generation) = (&machine.machine, machine.generation);
            match machine.state {
                MachineRunState::Running => {
                    all.stop(id, generation, Duration::ZERO).await.map(drop)?;
                }
                MachineRunState::Exited { .. } => all.remove(id, generation).await?,
            }
        }
        (revision, machines) = all.watch(revision, PURGE_TELL_EVERY).await;
        let left = machines.len();
        if left > 0 {
            tracing::info!(left, "waiting for machines to end");
        }
    }
    Ok(n_machines)
}

fn remove_traces(settings: &HostSettings) -> Result<(), HostRunError> {
    for below in [&settings.run_dir, &settings.pool_dir] {
        mounts::unmount_below(below)?;
    }
    for dir in [&settings.run_dir, &settings.pool_dir, &settings.state_dir] {
        files::remove_all(dir).map_err(at("remove", dir))?;
    }
    files::remove_all(&settings.socket).map_err(at("remove", &settings.socket))
}

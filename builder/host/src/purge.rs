//! `slipwayd host purge`: ends every machine of this host and removes all it made.
//!
//! Must not know: how machines or volumes are ended; it asks for it as the host API's callers do.

use crate::machines::Machines;
use crate::settings::HostSettings;
use crate::{
    HostRunError, at, cgroup, clearing_drivers, files, lock_cgroup_parent, mounts, take_over,
};
use slipway_core::host_api::{Cursor, MachineRunState};
use slipway_core::id::MachineId;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
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
/// mounts and the directories. The daemon must have ended, and every other with the same `cgroup_parent`. A host that was never set up
/// is fine.
///
/// # Errors
/// [`HostRunError`]: a daemon runs, or something does not go away; calling it again goes on.
pub async fn purge(settings: HostSettings) -> Result<Purged, HostRunError> {
    settings.check()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(HostRunError::NotRoot);
    }
    let dirs = [&settings.state_dir, &settings.run_dir, &settings.pool_dir];
    let is_set_up = dirs.iter().any(|dir| dir.exists());
    let settings = Arc::new(settings);
    let shared = Arc::clone(&settings);
    if !is_set_up {
        return blocking(move || purge_cgroups(&shared.cgroup_parent)).await;
    }
    let taken = blocking(move || {
        let mut killed = BTreeSet::new();
        let held = take_over(&shared, |network, volumes| {
            // Now that no daemon runs. One that no record names would keep its volume, and whoever looks for it waits.
            killed = kill_all(&shared.cgroup_parent)?;
            clearing_drivers(&shared, network, volumes)
        });
        held.map(|held| (held, killed))
    });
    let (held, mut machines) = taken.await?;

    machines.extend(end_machines(&held.machines).await?);
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
    remove_cgroup(&settings.cgroup_parent)?;
    Ok(Purged {
        machines: machines.len(),
        volumes: volumes.len(),
    })
}

/// Of a host that has no directories, which leaves machines that nothing but their cgroups tells of.
fn purge_cgroups(cgroup_parent: &str) -> Result<Purged, HostRunError> {
    let _lock = lock_cgroup_parent(cgroup_parent)?;
    let killed = kill_all(cgroup_parent)?;
    remove_cgroup(cgroup_parent)?;
    Ok(Purged {
        machines: killed.len(),
        volumes: 0,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostRunError> + Send + 'static,
) -> Result<T, HostRunError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| HostRunError::Recover(error.into()))?
}

fn remove_cgroup(parent: &str) -> Result<(), HostRunError> {
    cgroup::remove_parent(parent).map_err(at("remove the cgroup", Path::new(parent)))
}

/// Ends and forgets every machine; gives which there were.
async fn end_machines(all: &Arc<Machines>) -> Result<Vec<MachineId>, HostRunError> {
    let deadline = Instant::now() + PURGE_WAIT_MAX;
    let nothing_seen = Cursor {
        epoch: None,
        revision: 0,
    };
    let (mut seen, mut machines) = all.watch(nothing_seen, Duration::ZERO).await;
    let there_were: Vec<_> = machines.iter().map(|m| m.machine.clone()).collect();
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
        (seen, machines) = all.watch(seen, PURGE_TELL_EVERY).await;
        let left = machines.len();
        if left > 0 {
            tracing::info!(left, "waiting for machines to end");
        }
    }
    Ok(there_were)
}

/// Kills every machine, those that no record names too; gives which there were.
fn kill_all(cgroup_parent: &str) -> Result<BTreeSet<MachineId>, HostRunError> {
    cgroup::kill_below(cgroup_parent, |name| name.parse().ok())
        .map_err(at("kill what is in the cgroup", Path::new(cgroup_parent)))
}

fn remove_traces(settings: &HostSettings) -> Result<(), HostRunError> {
    for below in [&settings.run_dir, &settings.pool_dir] {
        mounts::unmount_inside(below)?;
    }
    for dir in [&settings.run_dir, &settings.pool_dir, &settings.state_dir] {
        match files::remove_all(dir) {
            // A mount point is the operator's, who may give each directory a disk of its own; what was in it is gone.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && is_empty(dir) => {}
            removed => removed.map_err(at("remove", dir))?,
        }
    }
    files::remove_all(&settings.socket).map_err(at("remove", &settings.socket))
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

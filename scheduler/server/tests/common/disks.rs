//! The test host's volumes and snapshots: sizes and names without blocks. It keeps the rules of a real pool: what is there is
//! not made over, nothing gets smaller, nothing is destroyed while it is attached.

use super::world::{World, refuse};
use slipway_core::host_api::{
    HostErrorCode, HostReply, HostRequest, Page, SnapshotReport, VolumeReport, VolumeSource,
};
use slipway_core::id::{SnapshotId, VolumeId};

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub size: u64,
    pub used: u64,
    /// What it was made from.
    pub source: Option<VolumeSource>,
    pub encrypted: bool,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub volume: VolumeId,
    pub size: u64,
    pub used: u64,
    pub encrypted: bool,
}

impl World {
    /// Answers a verb on volumes; nothing if the answer is lost.
    pub(super) fn disk_verb(&self, request: HostRequest, page: Option<&Page>) -> Option<HostReply> {
        match &request {
            HostRequest::ListVolumes | HostRequest::ListSnapshots => {
                return Some(self.disk_list(&request, page));
            }
            HostRequest::ShowVolume { volume } => {
                let inner = self.lock();
                let shown = inner.volumes.get(volume).map(|disk| disk.report(volume));
                let shown = shown.ok_or(HostErrorCode::NotFound).map(HostReply::Volume);
                return Some(shown.unwrap_or_else(|code| HostReply::Error(refuse(code))));
            }
            HostRequest::Info
            | HostRequest::EnsureVolume { .. }
            | HostRequest::ExtendVolume { .. }
            | HostRequest::DestroyVolume { .. }
            | HostRequest::CreateSnapshot { .. }
            | HostRequest::DeleteSnapshot { .. }
            | HostRequest::ExportSnapshot { .. }
            | HostRequest::ExportDifference { .. }
            | HostRequest::ImportVolume { .. }
            | HostRequest::LendKey
            | HostRequest::RevokeKey { .. }
            | HostRequest::EnsureMachine(_)
            | HostRequest::StopMachine { .. }
            | HostRequest::RemoveMachine { .. }
            | HostRequest::WatchMachines { .. }
            | HostRequest::OpenEndpoint { .. } => {}
        }
        {
            let mut inner = self.lock();
            inner.disk_verbs += 1;
            if let Some(code) = inner.refuse_volumes.pop_front() {
                return Some(HostReply::Error(refuse(code)));
            }
        }
        let reply = self.disk_done(request);
        let mut inner = self.lock();
        if inner.lose_answers > 0 {
            inner.lose_answers -= 1;
            return None;
        }
        Some(reply.unwrap_or_else(|code| HostReply::Error(refuse(code))))
    }

    fn disk_list(&self, request: &HostRequest, page: Option<&Page>) -> HostReply {
        let inner = self.lock();
        let page = page.expect("every list is asked for by pages");
        if let HostRequest::ListVolumes = request {
            let volumes = inner.volumes.iter();
            let volumes = volumes.map(|(id, disk)| disk.report(id)).collect();
            let (volumes, more) = page.cut(volumes, |report: &VolumeReport| report.volume.as_str());
            return HostReply::Volumes { volumes, more };
        }
        let snapshots = inner.snapshots.iter();
        let snapshots = snapshots.map(|(id, kept)| kept.report(id)).collect();
        let (snapshots, more) = page.cut(snapshots, |report: &SnapshotReport| {
            report.snapshot.as_str()
        });
        HostReply::Snapshots { snapshots, more }
    }

    fn disk_done(&self, request: HostRequest) -> Result<HostReply, HostErrorCode> {
        match request {
            HostRequest::EnsureVolume {
                volume,
                size_bytes,
                source,
            } => self.ensure_disk(&volume, size_bytes, source),
            HostRequest::ExtendVolume { volume, size_bytes } => {
                let mut inner = self.lock();
                let disk = inner.volumes.get_mut(&volume);
                let disk = disk.ok_or(HostErrorCode::NotFound)?;
                if size_bytes < disk.size {
                    return Err(HostErrorCode::BadRequest);
                }
                disk.size = size_bytes;
                Ok(HostReply::Volume(disk.report(&volume)))
            }
            HostRequest::DestroyVolume { volume } => {
                let mut inner = self.lock();
                if inner.machines.values().any(|m| m.volume == volume) {
                    let what = format!("{volume} destroyed while attached");
                    inner.violations.push(what);
                    return Err(HostErrorCode::Busy);
                }
                inner.volumes.remove(&volume);
                inner.imports.remove(&volume);
                inner.bases.remove(&volume);
                inner.contents.remove(volume.as_str());
                inner.damaged.remove(&volume);
                Ok(HostReply::Done)
            }
            HostRequest::CreateSnapshot { volume, snapshot } => {
                let mut inner = self.lock();
                let disk = inner.volumes.get(&volume).cloned();
                let disk = disk.ok_or(HostErrorCode::NotFound)?;
                if let Some(holds) = inner.contents.get(volume.as_str()).cloned() {
                    inner.contents.entry(snapshot.to_string()).or_insert(holds);
                }
                let kept = inner.snapshots.entry(snapshot.clone()).or_insert(Kept {
                    volume,
                    size: disk.size,
                    used: disk.used,
                    encrypted: disk.encrypted,
                });
                Ok(HostReply::Snapshot(kept.report(&snapshot)))
            }
            HostRequest::DeleteSnapshot { snapshot } => {
                let mut inner = self.lock();
                inner.snapshots.remove(&snapshot);
                inner.contents.remove(snapshot.as_str());
                Ok(HostReply::Done)
            }
            HostRequest::Info
            | HostRequest::ListVolumes
            | HostRequest::ShowVolume { .. }
            | HostRequest::ListSnapshots
            | HostRequest::ExportSnapshot { .. }
            | HostRequest::ExportDifference { .. }
            | HostRequest::ImportVolume { .. }
            | HostRequest::LendKey
            | HostRequest::RevokeKey { .. }
            | HostRequest::EnsureMachine(_)
            | HostRequest::StopMachine { .. }
            | HostRequest::RemoveMachine { .. }
            | HostRequest::WatchMachines { .. }
            | HostRequest::OpenEndpoint { .. } => panic!("answered elsewhere"),
        }
    }

    fn ensure_disk(
        &self,
        id: &VolumeId,
        size: u64,
        source: Option<VolumeSource>,
    ) -> Result<HostReply, HostErrorCode> {
        let mut inner = self.lock();
        if let Some(there) = inner.volumes.get(id) {
            return if there.size == size {
                Ok(HostReply::Volume(there.report(id)))
            } else {
                Err(HostErrorCode::BadRequest)
            };
        }
        let from = match &source {
            None => Some((id, 0, 0, inner.encrypts)),
            Some(VolumeSource::Volume { volume }) => {
                let disk = inner.volumes.get(volume);
                disk.map(|disk| (volume, disk.size, disk.used, disk.encrypted))
            }
            Some(VolumeSource::Snapshot { snapshot }) => {
                let kept = inner.snapshots.get(snapshot);
                kept.map(|kept| (&kept.volume, kept.size, kept.used, kept.encrypted))
            }
        };
        let (opens, least, used, encrypted) = from.ok_or(HostErrorCode::NotFound)?;
        if encrypted && ![id, opens].iter().all(|id| inner.leases.contains(*id)) {
            return Err(HostErrorCode::KeyNeeded);
        }
        if size < least {
            return Err(HostErrorCode::BadRequest);
        }
        let disk = Disk {
            size,
            used,
            source,
            encrypted,
        };
        let report = disk.report(id);
        inner.volumes.insert(id.clone(), disk);
        Ok(HostReply::Volume(report))
    }
}

impl Disk {
    pub(super) fn report(&self, id: &VolumeId) -> VolumeReport {
        VolumeReport {
            volume: id.clone(),
            size_bytes: self.size,
            used_bytes: self.used,
            attached_to: None,
            encrypted: self.encrypted,
        }
    }
}

impl Kept {
    fn report(&self, id: &SnapshotId) -> SnapshotReport {
        SnapshotReport {
            snapshot: id.clone(),
            volume: self.volume.clone(),
            size_bytes: self.size,
            stored_bytes: self.used,
            created_at_ms: 1,
            encrypted: self.encrypted,
        }
    }
}

//! The test host's exports and imports, over the descriptors of the real protocol. Its stream is of its own kind: where it
//! begins and how long the contents are (both u64, big-endian), then the contents. What arrives is durable at once.

use super::DEADLINE;
use super::disks::Disk;
use super::world::{World, refuse};
use slipway_core::host_api::{HostErrorCode, HostReply, ImportPart, StreamFault};
use slipway_core::id::{SnapshotId, VolumeId};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes before the contents.
pub const HEAD: usize = 16;

/// A stream of these contents from `start` on.
pub fn stream_of(contents: &[u8], start: usize) -> Vec<u8> {
    let number = |n: usize| u64::try_from(n).expect("small").to_be_bytes();
    let head = [number(start), number(contents.len())].concat();
    [&head[..], &contents[start..]].concat()
}

impl World {
    pub(super) fn export(
        &self,
        snapshot: &SnapshotId,
        offset: u64,
        sealed: bool,
    ) -> (HostReply, Option<UnixStream>) {
        let mut inner = self.lock();
        inner.disk_verbs += 1;
        let Some(kept) = inner.snapshots.get(snapshot) else {
            return (HostReply::Error(refuse(HostErrorCode::NotFound)), None);
        };
        if kept.encrypted && !sealed && !inner.leases.contains(&kept.volume) {
            return (HostReply::Error(refuse(HostErrorCode::KeyNeeded)), None);
        }
        let contents = inner.contents.get(snapshot.as_str());
        let contents = contents.cloned().unwrap_or_default();
        let start = usize::try_from(offset).expect("small").min(contents.len());
        let (theirs, mut ours) = UnixStream::pair().expect("a pair");
        let (held, stream) = (Arc::clone(&inner.hold_exports), stream_of(&contents, start));
        // Its reader may go away.
        std::thread::spawn(move || {
            let (first, rest) = stream.split_at(HEAD + (stream.len() - HEAD) / 2);
            ours.write_all(first)?;
            let until = Instant::now() + DEADLINE;
            while held.load(Ordering::SeqCst) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            ours.write_all(rest)
        });
        let offset_bytes = offset;
        (HostReply::Stream { offset_bytes }, Some(theirs))
    }

    pub(super) fn import(
        self: &Arc<Self>,
        volume: VolumeId,
        size: u64,
        sealed: bool,
        part: ImportPart,
    ) -> (HostReply, Option<UnixStream>) {
        let mut inner = self.lock();
        inner.disk_verbs += 1;
        if let Some(code) = inner.refuse_volumes.pop_front() {
            return (HostReply::Error(refuse(code)), None);
        }
        if inner.encrypts && !sealed && !inner.leases.contains(&volume) {
            return (HostReply::Error(refuse(HostErrorCode::KeyNeeded)), None);
        }
        let has = inner.imports.get(&volume).map_or(0, |has| has.len() as u64);
        let offset_bytes = match part {
            ImportPart::Whole | ImportPart::Base { .. } => has,
            ImportPart::Difference { .. } => 0,
        };
        drop(inner);
        let (theirs, mut ours) = UnixStream::pair().expect("a pair");
        let world = Arc::clone(self);
        std::thread::spawn(move || {
            let taken = world.take(&volume, size, &part, &mut ours);
            let reply = taken.unwrap_or_else(|code| {
                let mut refusal = refuse(code);
                // The stream is the only thing here that can be wrong.
                refusal.stream =
                    (code == HostErrorCode::BadRequest).then_some(StreamFault::Malformed);
                HostReply::Error(refusal)
            });
            let reply = serde_json::to_vec(&reply).expect("json");
            let _gone = ours.write_all(&reply);
            let _gone = ours.shutdown(Shutdown::Both);
        });
        (HostReply::Stream { offset_bytes }, Some(theirs))
    }

    fn take(
        &self,
        volume: &VolumeId,
        size: u64,
        part: &ImportPart,
        from: &mut UnixStream,
    ) -> Result<HostReply, HostErrorCode> {
        if let Some(report) = self.report(volume) {
            return Ok(report);
        }
        let bad = |_| HostErrorCode::BadRequest;
        let mut number = || {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes)
                .map(|()| u64::from_be_bytes(bytes))
        };
        let (start, length) = (number().map_err(bad)?, number().map_err(bad)?);
        if let ImportPart::Difference { base, .. } = part
            && self.lock().bases.get(volume) != Some(base)
        {
            return Err(HostErrorCode::BadRequest);
        }
        let has = self.lock().imports.get(volume).map_or(0, Vec::len) as u64;
        if start > has || length > size {
            return Err(HostErrorCode::BadRequest);
        }
        let mut at = usize::try_from(start).expect("small");
        let mut piece = [0; 4096];
        while (at as u64) < length {
            let read = from.read(&mut piece).map_err(bad)?;
            if read == 0 {
                return Err(HostErrorCode::BadRequest);
            }
            let mut inner = self.lock();
            let has = inner.imports.entry(volume.clone()).or_default();
            has.truncate(at);
            has.extend_from_slice(&piece[..read]);
            at += read;
        }
        let mut inner = self.lock();
        if let ImportPart::Base { snapshot } = part {
            inner.bases.insert(volume.clone(), snapshot.clone());
            return Ok(HostReply::Done);
        }
        inner.bases.remove(volume);
        let contents = inner.imports.remove(volume).unwrap_or_default();
        let disk = Disk {
            size,
            used: length,
            source: None,
            encrypted: inner.encrypts,
        };
        inner.volumes.insert(volume.clone(), disk);
        inner.contents.insert(volume.to_string(), contents);
        drop(inner);
        self.report(volume).ok_or(HostErrorCode::Failed)
    }

    fn report(&self, volume: &VolumeId) -> Option<HostReply> {
        let inner = self.lock();
        let disk = inner.volumes.get(volume)?;
        Some(HostReply::Volume(disk.report(volume)))
    }
}

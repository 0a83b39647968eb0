//! Where a new volume is made, how large it is, and that it may be: up to its record.
//!
//! Must not know: how it is made.

use super::AskedVolume;
use crate::clock::now;
use crate::entropy::entropy;
use crate::farm::volume_error::VolumeError;
use crate::farm::{FarmError, Shared};
use crate::limits::{IMPORT_KEPT_FOR, PLACEMENT_TRIES_MAX};
use slipway_core::host_api::VolumeSource;
use slipway_core::id::{HostId, OrgId, VolumeId};
use slipway_core::placement::{VolumeRequest, place_volume};
use slipway_core::quota::{VOLUME_SIZE_MIN, check_one_more_volume, check_volume_size};
use slipway_core::units::ByteSize;
use slipway_store::{
    Import, NewVolume, SnapshotState, StoreError, Volume, VolumePurpose, VolumeState, What,
};

/// What a new volume is made from, as it is recorded.
struct Source {
    host: HostId,
    size: ByteSize,
    encrypted: Option<bool>,
}

impl Shared {
    /// Places a volume and promises it.
    pub(super) async fn plan_volume(
        &self,
        org: &OrgId,
        asked: AskedVolume,
    ) -> Result<Volume, FarmError> {
        asked.policy.check()?;
        let source = match &asked.source {
            Some(source) => Some(self.find_source(org, source).await?),
            None => None,
        };
        let size = match (asked.size, &source) {
            (Some(size), Some(from)) if size < from.size => {
                return Err(VolumeError::SmallerThanSource { need: from.size }.into());
            }
            (Some(size), _) => size,
            (None, Some(from)) => from.size,
            (None, None) => VOLUME_SIZE_MIN,
        };
        check_volume_size(size)?;
        // So that two requests at once do not both see room for one more.
        let _making = self.making.lock().await;
        let volumes = self.store.volumes(org).await?;
        let own = volumes.iter().filter(|v| v.purpose == VolumePurpose::Data);
        check_one_more_volume(u32::try_from(own.count()).unwrap_or(u32::MAX))?;
        let namesakes = volumes.iter().filter(|v| v.name == asked.name);
        let taken: Vec<HostId> = namesakes.map(|v| v.host.clone()).collect();
        let mut full = None;
        for _ in 0..PLACEMENT_TRIES_MAX {
            let host = match &source {
                Some(source) => self.beside(&asked, source).await?,
                None => {
                    let request = VolumeRequest {
                        region: asked.region.clone().unwrap_or_default(),
                        size,
                        encrypted: asked.encrypted,
                        taken: taken.clone(),
                        unique: asked.unique,
                    };
                    place_volume(&request, &self.loads().await?)?
                }
            };
            let new = NewVolume {
                id: VolumeId::from_entropy(entropy()?),
                host,
                name: asked.name.clone(),
                size,
                source: asked.source.clone(),
                import: asked.import.as_ref().map(|import| Import {
                    until: now().after(IMPORT_KEPT_FOR),
                    digest: import.digest.clone(),
                }),
                policy: asked.policy,
                at: now(),
            };
            match self.store.create_volume(org, &new).await {
                Err(error @ StoreError::PoolFull { .. }) => full = Some(error),
                done => return Ok(done?),
            }
        }
        Err(full.map_or(FarmError::Closed, FarmError::Store))
    }

    async fn find_source(&self, org: &OrgId, source: &VolumeSource) -> Result<Source, FarmError> {
        match source {
            VolumeSource::Volume { volume } => {
                let from = self.store.volume(org, volume).await?;
                match from.state {
                    VolumeState::Ready | VolumeState::Aside => Ok(Source {
                        host: from.host,
                        size: from.made,
                        encrypted: from.encrypted,
                    }),
                    state @ (VolumeState::Planned | VolumeState::Deleting) => {
                        Err(VolumeError::State(state).into())
                    }
                }
            }
            VolumeSource::Snapshot { snapshot } => {
                let from = self.store.snapshot(org, snapshot).await?;
                if from.state != SnapshotState::Ready {
                    return Err(VolumeError::SnapshotNotReady.into());
                }
                Ok(Source {
                    host: from.host,
                    size: from.size,
                    encrypted: Some(from.encrypted),
                })
            }
        }
    }

    /// The host of what a volume is made from: the only place where it can be made.
    async fn beside(&self, asked: &AskedVolume, source: &Source) -> Result<HostId, FarmError> {
        let hosts = self.store.hosts().await?;
        let host = hosts.into_iter().find(|used| used.host.id == source.host);
        let region = host
            .map(|used| used.host.region)
            .ok_or(StoreError::NotFound(What::Host))?;
        if asked
            .region
            .as_ref()
            .is_some_and(|wanted| *wanted != region)
        {
            return Err(VolumeError::SourceElsewhere { region }.into());
        }
        if let (Some(wanted), Some(encrypted)) = (asked.encrypted, source.encrypted)
            && wanted != encrypted
        {
            return Err(VolumeError::SourceEncryption { encrypted }.into());
        }
        let link = self.link(&source.host);
        if link.is_none_or(|link| !*link.reachable.borrow()) {
            return Err(VolumeError::HostAway.into());
        }
        Ok(source.host.clone())
    }
}

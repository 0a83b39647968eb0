//! Moves that are halted: the host that the record names does not have the volume, so the other copy may be the only one. Nothing is
//! destroyed until somebody has looked and says which copy is the volume.
//!
//! Must not know: how copies are made, who may choose.

use super::notice::told;
use crate::farm::volume_error::VolumeError;
use crate::farm::{Farm, FarmError, Shared};
use slipway_core::id::{HostId, OrgId, VolumeId};
use slipway_store::{Move, Volume};

impl Farm {
    /// Says which of the two copies of a volume counts, of a move that is halted, or that has left a copy on a host that does not
    /// answer: the one on the host `zone`, which must have it. The other copy is destroyed. With `forget_other` it is only forgotten
    /// if its host does not answer, for hosts that will never come back.
    ///
    /// # Errors
    /// [`VolumeError::NotMoving`], [`VolumeError::NoSuchZone`], [`VolumeError::NoCopy`], [`VolumeError::HostAway`],
    /// [`VolumeError::Attached`] while the volume's builder runs elsewhere, or the store's.
    pub async fn keep_copy(
        &self,
        org: &OrgId,
        id: &VolumeId,
        zone: &str,
        forget_other: bool,
    ) -> Result<Volume, FarmError> {
        let chosen = self.0.choose(org, id, zone).await?;
        let other = chosen.moving.as_ref().map(|moving| &moving.copy);
        if forget_other && other.is_some_and(|host| self.0.reachable(host).is_err()) {
            tracing::warn!(%org, volume = %id, ?other, "copy on a host that does not answer is forgotten");
            self.0.store.forget_move(org, id).await?;
            return Ok(self.0.store.volume(org, id).await?);
        }
        self.0.finish(&chosen).await
    }
}

impl Shared {
    async fn choose(&self, org: &OrgId, id: &VolumeId, zone: &str) -> Result<Volume, FarmError> {
        let _held = self.volume_locks.hold(id).await;
        let volume = self.store.volume(org, id).await?;
        let decided = volume.moving.as_ref().filter(|m| !m.is_under_way());
        let moving = decided.ok_or(VolumeError::NotMoving)?;
        let host = self.one_of(&volume, moving, zone).await?;
        if !self.has_copy(&host, &volume).await? {
            let zone = zone.to_owned();
            return Err(VolumeError::NoCopy { zone }.into());
        }
        if host != volume.host
            && let Some(builder) = self.builder_of(id)
            && !builder.stand_still(id)
        {
            return Err(VolumeError::Attached.into());
        }
        let chosen = self.store.choose_copy(org, id, &host).await;
        let fenced = match &chosen {
            Ok(chosen) => self.fence_off(&host, chosen).await,
            Err(_) => Ok(()),
        };
        self.release(org, id).await;
        let chosen = chosen?;
        tracing::warn!(%org, volume = %id, %host, "copy of a volume chosen");
        fenced.map(|()| chosen)
    }

    /// Has the host do nothing to a copy any more that was decided before the copy was chosen, such as its destruction.
    async fn fence_off(&self, host: &HostId, chosen: &Volume) -> Result<(), FarmError> {
        if self.has_copy(host, chosen).await? {
            return Ok(());
        }
        // It was faster. The other copy is still there.
        self.halt(chosen).await?;
        Err(VolumeError::Halted.into())
    }

    /// The host of that name, if it is one of the two.
    async fn one_of(
        &self,
        volume: &Volume,
        moving: &Move,
        zone: &str,
    ) -> Result<HostId, FarmError> {
        let mut hosts = self.store.hosts().await?;
        hosts.retain(|used| [&volume.host, &moving.copy].contains(&&used.host.id));
        if let Some(used) = hosts.iter().find(|used| used.host.name == zone) {
            return Ok(used.host.id.clone());
        }
        let known: Vec<&str> = hosts.iter().map(|used| used.host.name.as_str()).collect();
        Err(VolumeError::NoSuchZone {
            zone: zone.to_owned(),
            known: known.join(", "),
        }
        .into())
    }

    /// Whether a host has a volume whole, by its record.
    pub(super) async fn has_copy(&self, host: &HostId, volume: &Volume) -> Result<bool, FarmError> {
        let link = self.reachable(host)?;
        let shown = link.client.show_volume(volume.fenced()).await?;
        Ok(shown.is_some())
    }

    /// Leaves both copies as they are from now on.
    pub(super) async fn halt(&self, volume: &Volume) -> Result<(), FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        self.store.halt_move(org, id).await?;
        let notice = told(&VolumeError::Halted.into());
        self.tell(org, id, Some(&notice)).await;
        tracing::error!(%org, volume = %id, host = %volume.host, "host does not have a volume that is moved; both copies are left as they are");
        Ok(())
    }
}

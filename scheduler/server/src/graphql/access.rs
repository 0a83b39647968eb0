//! The one place that says who may see and do what. Every resolver passes here before it touches anything of an org.
//!
//! Must not know: what is done after.

use super::Result;
use super::running::Running;
use crate::auth::{Entered, Principal};
use crate::parts::Parts;
use crate::problem::{Code, Problem};
use async_graphql::Context;
use slipway_core::id::{AppId, BuildId, OrgId, SnapshotId, VolumeId};
use slipway_store::{App, Build, Org, Owned, Snapshot, Store, StoreError, TokenRole, Volume, What};
use std::sync::Arc;

/// Who asks, and with what it can be answered.
pub(crate) struct Access<'a> {
    pub(crate) parts: &'a Arc<Parts>,
    pub(crate) principal: &'a Principal,
}

impl<'a> Access<'a> {
    /// Of this request, if it may go on.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] if its token has been revoked or has expired since it began, [`Code::Unavailable`] if its time is
    /// over, [`Code::Limit`] if its answer is full.
    pub(super) fn of(context: &Context<'a>) -> Result<Self> {
        Running::of(context)?.check()?;
        let parts = context.data_opt::<Arc<Parts>>();
        let principal = context.data_opt::<Principal>();
        match (parts, principal) {
            (Some(parts), Some(principal)) => Ok(Self { parts, principal }),
            (None | Some(_), None | Some(_)) => {
                Err(Problem::new(Code::Unauthenticated, "authentication is required").into())
            }
        }
    }

    pub(super) fn store(&self) -> &'a dyn Store {
        &*self.parts.store
    }

    /// Enters an org with at least this role.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::NotFound`].
    pub(super) async fn enter(&self, org: Option<&str>, role: TokenRole) -> Result<Scope> {
        self.principal.require(role)?;
        let entered = self.parts.authenticator.enter(self.principal, org).await?;
        Ok(Scope(entered))
    }

    /// The same for what concerns the whole org: a token of one app does not reach that far.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::NotFound`].
    pub(crate) async fn enter_whole(&self, org: Option<&str>, role: TokenRole) -> Result<Org> {
        self.enter(org, role).await?.whole()
    }

    /// An app of an org, by name, if the token may touch it.
    ///
    /// # Errors
    /// [`Code::AppNotFound`], [`Code::Forbidden`].
    pub(super) async fn app(&self, scope: &Scope, name: &str) -> Result<App> {
        let app = self.store().app_by_name(&scope.0.org.id, name).await?;
        scope.0.check_app(&app)?;
        Ok(app)
    }

    /// A build by its id alone, and the org it was found in. The administrator finds every org's.
    ///
    /// # Errors
    /// [`Code::NotFound`], for those of others too.
    pub(super) async fn build(&self, id: &BuildId, role: TokenRole) -> Result<(OrgId, Build)> {
        let missing = || StoreError::NotFound(What::Build);
        let org = self.owner(Owned::Build(id)).await?.ok_or_else(missing)?;
        let build = self.store().build(&org, id).await?;
        match self.enter(Some(org.as_str()), role).await?.only() {
            Some(only) if *only != build.app => Err(missing().into()),
            Some(_) | None => Ok((org, build)),
        }
    }

    /// A volume by its id alone, and the org it was found in.
    ///
    /// # Errors
    /// [`Code::NotFound`], for those of others too.
    pub(crate) async fn volume(&self, id: &VolumeId, role: TokenRole) -> Result<(Org, Volume)> {
        let owner = self.owner(Owned::Volume(id)).await?;
        let org = owner.ok_or(StoreError::NotFound(What::Volume))?;
        let volume = self.store().volume(&org, id).await?;
        Ok((self.enter_whole(Some(org.as_str()), role).await?, volume))
    }

    /// A snapshot by its id alone, and the org it was found in.
    ///
    /// # Errors
    /// [`Code::NotFound`], for those of others too.
    pub(crate) async fn snapshot(
        &self,
        id: &SnapshotId,
        role: TokenRole,
    ) -> Result<(Org, Snapshot)> {
        let owner = self.owner(Owned::Snapshot(id)).await?;
        let org = owner.ok_or(StoreError::NotFound(What::Snapshot))?;
        let snapshot = self.store().snapshot(&org, id).await?;
        Ok((self.enter_whole(Some(org.as_str()), role).await?, snapshot))
    }

    /// The snapshots of a volume, which may be gone, by its id alone.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is neither the volume nor a snapshot of it, for those of others too.
    pub(super) async fn snapshots(&self, volume: &VolumeId) -> Result<Vec<Snapshot>> {
        if let Some(org) = self.owner(Owned::SnapshotsOf(volume)).await? {
            let snapshots = self.store().snapshots(&org, volume).await?;
            if !snapshots.is_empty() {
                self.enter_whole(Some(org.as_str()), TokenRole::Read)
                    .await?;
                return Ok(snapshots);
            }
        }
        self.volume(volume, TokenRole::Read).await?;
        Ok(vec![])
    }

    /// The org to look for something in: the credential's own, or for the administrator the one that has it.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn owner(&self, of: Owned<'_>) -> Result<Option<OrgId>> {
        match self.principal.org() {
            Some(own) => Ok(Some(own.clone())),
            None => Ok(self.store().owner(of).await?),
        }
    }
}

/// An org that was entered with a token that may be good for one app of it only. Nothing of the org can be had before it is said
/// whether that matters.
pub(super) struct Scope(Entered);

impl Scope {
    /// For what belongs to no app: the org's own record, and its builders, which all tokens share.
    pub(super) fn shared(&self) -> &Org {
        &self.0.org
    }

    /// For what belongs to the org as a whole.
    ///
    /// # Errors
    /// [`Code::Forbidden`] for a token of one app.
    pub(super) fn whole(self) -> Result<Org> {
        match self.0.app {
            None => Ok(self.0.org),
            Some(_) => {
                Err(Problem::new(Code::Forbidden, "the token is good for one app only").into())
            }
        }
    }

    /// For lists of what belongs to apps: the org, and the one app whose things may be in it.
    pub(super) fn filtered(self) -> (OrgId, Option<AppId>) {
        (self.0.org.id, self.0.app)
    }

    /// The one app that the token is good for.
    fn only(&self) -> Option<&AppId> {
        self.0.app.as_ref()
    }
}

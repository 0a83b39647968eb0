//! The one place that says who may see and do what. Every resolver passes here before it touches anything of an org.
//!
//! Must not know: what is done after.

use super::Result;
use super::running::Running;
use crate::api::Parts;
use crate::auth::{Entered, Principal};
use crate::problem::{Code, Problem};
use async_graphql::Context;
use slipway_core::id::{BuildId, OrgId, SnapshotId, VolumeId};
use slipway_store::{App, Build, ErrorKind, Snapshot, Store, StoreError, TokenRole, Volume, What};
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
    pub(super) async fn enter(&self, org: Option<&str>, role: TokenRole) -> Result<Entered> {
        self.principal.require(role)?;
        Ok(self.parts.authenticator.enter(self.principal, org).await?)
    }

    /// The same for what concerns the whole org: a token of one app does not reach that far.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::NotFound`].
    pub(super) async fn enter_whole(&self, org: Option<&str>, role: TokenRole) -> Result<Entered> {
        let entered = self.enter(org, role).await?;
        match entered.app {
            None => Ok(entered),
            Some(_) => {
                Err(Problem::new(Code::Forbidden, "the token is good for one app only").into())
            }
        }
    }

    /// An app of an org, by name, if the token may touch it.
    ///
    /// # Errors
    /// [`Code::AppNotFound`], [`Code::Forbidden`].
    pub(super) async fn app(&self, entered: &Entered, name: &str) -> Result<App> {
        let app = self.store().app_by_name(&entered.org.id, name).await?;
        entered.check_app(&app)?;
        Ok(app)
    }

    /// A build by its id alone, and the org it was found in. The administrator finds every org's.
    ///
    /// # Errors
    /// [`Code::NotFound`], for those of others too.
    pub(super) async fn build(&self, id: &BuildId, role: TokenRole) -> Result<(Entered, Build)> {
        for org in self.reachable_orgs().await? {
            match self.store().build(&org, id).await {
                Ok(build) => {
                    let entered = self.enter(Some(org.as_str()), role).await?;
                    if entered.app.as_ref().is_some_and(|only| *only != build.app) {
                        break;
                    }
                    return Ok((entered, build));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::NotFound(What::Build).into())
    }

    /// A volume by its id alone.
    ///
    /// # Errors
    /// [`Code::NotFound`], for those of others too.
    pub(crate) async fn volume(&self, id: &VolumeId, role: TokenRole) -> Result<(Entered, Volume)> {
        for org in self.reachable_orgs().await? {
            match self.store().volume(&org, id).await {
                Ok(volume) => {
                    return Ok((self.enter_whole(Some(org.as_str()), role).await?, volume));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::NotFound(What::Volume).into())
    }

    /// A snapshot by its id alone.
    ///
    /// # Errors
    /// [`Code::NotFound`], for those of others too.
    pub(crate) async fn snapshot(
        &self,
        id: &SnapshotId,
        role: TokenRole,
    ) -> Result<(Entered, Snapshot)> {
        for org in self.reachable_orgs().await? {
            match self.store().snapshot(&org, id).await {
                Ok(snapshot) => {
                    return Ok((self.enter_whole(Some(org.as_str()), role).await?, snapshot));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::NotFound(What::Snapshot).into())
    }

    /// The snapshots of a volume, which may be gone, by its id alone.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is neither the volume nor a snapshot of it, for those of others too.
    pub(super) async fn snapshots(&self, volume: &VolumeId) -> Result<Vec<Snapshot>> {
        for org in self.reachable_orgs().await? {
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

    /// The credential's own org, or all of them for the administrator.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn reachable_orgs(&self) -> Result<Vec<OrgId>> {
        match self.principal.org() {
            Some(own) => Ok(vec![own.clone()]),
            None => {
                let orgs = self.store().all_orgs().await?;
                Ok(orgs.into_iter().map(|org| org.id).collect())
            }
        }
    }
}

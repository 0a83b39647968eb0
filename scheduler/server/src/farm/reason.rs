//! Why a builder does not run although somebody wants it, in words for whoever waits for it: no path of a host, no name of
//! another org, nothing of the database or the key store but that it is away. The operator's log has the rest.
//!
//! Must not know: what is done about it.

use super::builder::Inner;
use super::error::FarmError;
use super::host::HostLink;
use super::lend_error::LendError;
use super::volume_error::VolumeError;
use crate::host_client::HostClientError;
use crate::keys::{KeyStoreError, LeaseError};
use slipway_core::host_api::HostErrorCode;
use slipway_core::machine::{IllegalTransition, MachineState};
use slipway_core::planner::Observed;
use slipway_core::time::Timestamp;
use slipway_store::{Intent, StoreError};

/// An error that has words for the owner of a builder.
pub(super) trait Told: std::error::Error {
    /// What its owner may read. It goes on after "the builder does not run: ".
    fn told(&self) -> String;
}

impl Told for HostClientError {
    fn told(&self) -> String {
        match self {
            Self::Refused(refusal) => of_code(refusal.code),
            Self::Unreachable { .. }
            | Self::TimedOut(_)
            | Self::Protocol(_)
            | Self::OtherVersion(_) => HOST_AWAY,
        }
        .to_owned()
    }
}

impl Told for LendError {
    fn told(&self) -> String {
        match self {
            Self::Host(error) => error.told(),
            Self::NoKeys => "its host encrypts volumes, and this farm keeps no keys".to_owned(),
            Self::UnknownHost => HOST_AWAY.to_owned(),
            Self::Lease(LeaseError::KeyStore(KeyStoreError::Unavailable(_)))
            | Self::KeyStore(KeyStoreError::Unavailable(_)) => {
                "the key store does not answer".to_owned()
            }
            Self::Lease(LeaseError::Lost { .. }) => {
                "the key of its cache is lost, and with it what the cache holds: empty it \
                 (`slipway builders reset-cache`)"
                    .to_owned()
            }
            Self::Lease(_) | Self::KeyStore(_) => "the key of its cache cannot be had".to_owned(),
        }
    }
}

impl Told for StoreError {
    fn told(&self) -> String {
        "the server's database does not answer".to_owned()
    }
}

impl Told for IllegalTransition {
    fn told(&self) -> String {
        "something went wrong on the server".to_owned()
    }
}

impl Told for FarmError {
    fn told(&self) -> String {
        match self {
            Self::Host(error) => error.told(),
            Self::Key(error) => error.told(),
            Self::Store(error) => error.told(),
            Self::Volume(VolumeError::Moving) => MOVING.to_owned(),
            Self::HostAway | Self::OneHost { .. } => HOST_AWAY.to_owned(),
            Self::Place(_)
            | Self::Quota(_)
            | Self::NoBuilder { .. }
            | Self::NotRunning
            | Self::WontStart(_)
            | Self::TimedOut { .. }
            | Self::TooManyConnections { .. }
            | Self::TakesNone { .. }
            | Self::InUse { .. }
            | Self::Volume(_)
            | Self::Guest(_)
            | Self::Entropy(_)
            | Self::Closed => "something went wrong on the server".to_owned(),
        }
    }
}

const HOST_AWAY: &str = "its host does not answer";
const MOVING: &str = "its cache is being moved to another host";

fn of_code(code: HostErrorCode) -> &'static str {
    match code {
        HostErrorCode::Busy => "something on its host still holds its cache",
        HostErrorCode::NoSpace => "its host has no room for it",
        HostErrorCode::DiskFull => {
            "a disk of its host is full: it starts by itself once its operator has freed space there (the host's log names \
             the disk and what helps)"
        }
        HostErrorCode::VolumeDamaged => "its cache is damaged",
        HostErrorCode::VolumeForeign => {
            "a virtual machine has written its cache, which a sandbox cannot use: empty it (`slipway builders reset-cache`), or \
             demand virtual machines (`slipway orgs update --isolation vm`)"
        }
        HostErrorCode::KeyNeeded => "its host waits for the key of its cache",
        HostErrorCode::InProgress => "its host is still working on it",
        HostErrorCode::NotFound => "its host does not have its cache, which is made anew",
        HostErrorCode::Unsupported => {
            "its host makes no machines of the isolation that the org demands: take what the host has \
             (`slipway orgs update --isolation auto`), or have its operator change `isolation` in the host's settings"
        }
        HostErrorCode::StaleGeneration => "another start of it came first",
        HostErrorCode::StaleFence => {
            "its host has seen later orders about its cache than this server knows of"
        }
        HostErrorCode::Failed => "its host could not start it, and the host's log says why",
        HostErrorCode::Denied | HostErrorCode::BadRequest => {
            "its host does not take requests of this server"
        }
    }
}

impl Inner {
    /// What it waits for, if somebody wants it and it is not up. Nothing for a start that takes its usual course.
    pub(super) fn waiting_for(&self, link: &HostLink, now: Timestamp) -> Option<String> {
        if self.machine.intent != Intent::Wanted {
            return None;
        }
        if matches!(self.machine.state, MachineState::Running { .. }) {
            return None;
        }
        if !*link.reachable.borrow() {
            return Some(HOST_AWAY.to_owned());
        }
        if self.moving.is_some() {
            return Some(MOVING.to_owned());
        }
        if self.reset.is_some() {
            return Some("its cache is being emptied".to_owned());
        }
        if let Some(number) = self.queued {
            let others = link.starts.ahead(number);
            return Some(format!(
                "its turn to start on its host comes after {others} others"
            ));
        }
        let failed = self.machine.last_error.clone();
        if now < self.hold_until {
            return failed;
        }
        match self.machine.state {
            MachineState::Crashed { .. } if self.volume_damaged => {
                self.machine.notice.clone().or(failed)
            }
            MachineState::Crashed { .. } => failed,
            MachineState::Ending { .. } => Some("its last run is still ending".to_owned()),
            MachineState::Stopped => match self.observed {
                Observed::Present { .. } => {
                    Some("what its last run has left is being cleared away".to_owned())
                }
                Observed::Unknown | Observed::Absent => None,
            },
            MachineState::Starting { .. } if self.in_progress.is_some() => failed,
            MachineState::Starting { .. }
            | MachineState::Booting { .. }
            | MachineState::Running { .. } => None,
        }
    }
}

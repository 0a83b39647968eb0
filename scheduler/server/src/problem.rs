//! One form for everything that is told to a caller: a stable code, a message, a hint. Docker's and GraphQL's edges
//! print it each in its own way.
//!
//! What is only for the operator (paths, the database's words) is logged where the problem is made, and is not in it.

use crate::chain::chain;
use crate::entropy::NoEntropy;
use http::StatusCode;
use slipway_core::build::Fault;
use slipway_store::{ErrorKind, StoreError, What};
use std::borrow::Cow;

/// What kind of problem, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// No credential, or not a good one.
    Unauthenticated,
    /// A good credential that may not do this.
    Forbidden,
    /// There is no such thing, or none that this caller may see.
    NotFound,
    /// There is no such app: it can be made, and the request tried again.
    AppNotFound,
    /// The request makes no sense.
    Invalid,
    /// It is at odds with what there is.
    Conflict,
    /// A bound was reached; later is fine.
    Limit,
    /// The pool or a disk is full.
    NoSpace,
    /// Not now; nobody asked for anything wrong.
    Unavailable,
    /// Our bug.
    Internal,
}

impl Code {
    /// As programs see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::AppNotFound => "APP_NOT_FOUND",
            Self::Invalid => "INVALID",
            Self::Conflict => "CONFLICT",
            Self::Limit => "LIMIT",
            Self::NoSpace => "NO_SPACE",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL",
        }
    }

    /// Whose fault it is, which chooses a client's exit code.
    pub fn fault(self) -> Fault {
        match self {
            Self::Unauthenticated
            | Self::Forbidden
            | Self::NotFound
            | Self::AppNotFound
            | Self::Invalid
            | Self::Conflict
            | Self::Limit => Fault::User,
            Self::NoSpace | Self::Unavailable | Self::Internal => Fault::System,
        }
    }

    /// As HTTP says it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::AppNotFound => StatusCode::NOT_FOUND,
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Limit => StatusCode::TOO_MANY_REQUESTS,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Something that went wrong, as its caller may know it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// For programs.
    pub code: Code,
    /// For people: one line, no final period.
    pub message: Cow<'static, str>,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A bug of ours, or a system without randomness: told to the operator in full, and to the caller not at all.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(why = ?chain(error), "internal error");
        Self::new(Code::Internal, "something went wrong on the server")
            .hint("tell the operator; the server's log says more")
    }

    /// Message and hint in one line, for clients that show one line.
    pub fn line(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{} ({hint})", self.message),
            None => self.message.to_string(),
        }
    }
}

/// Which command lists what was not found.
fn where_to_look(error: &StoreError) -> Option<&'static str> {
    let StoreError::NotFound(what) = error else {
        return None;
    };
    match what {
        What::Org => Some("`slipway orgs list` shows the orgs your token is good for"),
        What::App => Some("`slipway apps list` shows the apps there are"),
        What::Token => Some("`slipway tokens list` shows the tokens there are"),
        What::Volume => Some("`slipway volumes list` shows the volumes there are"),
        What::Snapshot => {
            Some("`slipway volumes snapshots list VOLUME` shows the snapshots there are")
        }
        What::Machine => Some("`slipway builders list` shows the builders there are"),
        What::Build => Some("`slipway builds list` shows the last builds"),
        What::Credential => Some("`slipway registry list` shows the credentials there are"),
        What::Host => None,
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<&StoreError> for Problem {
    fn from(error: &StoreError) -> Self {
        match error.kind() {
            ErrorKind::NotFound => {
                let code = if matches!(error, StoreError::NotFound(What::App)) {
                    Code::AppNotFound
                } else {
                    Code::NotFound
                };
                let problem = Self::new(code, error.to_string());
                match where_to_look(error) {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                }
            }
            ErrorKind::Conflict => Self::new(Code::Conflict, error.to_string()),
            ErrorKind::Limit => {
                let problem = Self::new(Code::Limit, error.to_string());
                let StoreError::Quota(quota) = error else {
                    return problem;
                };
                match quota.hint() {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                }
            }
            // How much the pool of everybody has left is the operator's.
            ErrorKind::NoSpace => Self::new(Code::NoSpace, "the host's pool has no room for that").hint(
                "ask for less, destroy volumes and snapshots that you do not need, or have the operator add space",
            ),
            ErrorKind::Unavailable if error.is_disk_full() => {
                tracing::error!(why = ?chain(error), "the disk of the database is full (hint: free space on the disk of `data_dir` in the server's settings)");
                Self::new(
                    Code::Unavailable,
                    "the disk of the farm's server is full, and nothing can be recorded",
                )
                .hint("its log says so to the operator, who frees space on the disk of the server's `data_dir`; try again then")
            }
            ErrorKind::Unavailable => {
                tracing::error!(why = ?chain(error), "store unavailable");
                Self::new(Code::Unavailable, "the server's database does not answer")
                    .hint("try again in a minute")
            }
            // A number of the caller's that no column holds.
            ErrorKind::Internal if matches!(error, StoreError::OutOfRange(_)) => {
                Self::new(Code::Invalid, error.to_string()).hint("choose a smaller number")
            }
            ErrorKind::Internal => Self::internal(error),
        }
    }
}

impl From<NoEntropy> for Problem {
    fn from(error: NoEntropy) -> Self {
        Self::internal(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builds::BuildError;
    use crate::farm::{FarmError, VolumeError};
    use crate::guest_client::GuestError;
    use crate::host_client::HostClientError;
    use slipway_core::host_api::{HostError, HostErrorCode};

    /// What a host, the database or the key store says is for the operator. A caller gets words of ours.
    #[test]
    fn nothing_that_is_for_the_operator_reaches_a_caller() {
        let secret = "/var/lib/slipway/pool/vol_7 of vault.internal:8200";
        let refused = |code| HostClientError::Refused(HostError::new(code, secret));
        let database = || StoreError::Corrupt {
            column: "state",
            detail: secret.to_owned(),
        };
        let full = || StoreError::PoolFull {
            free_bytes: 777,
            wanted_bytes: 1,
        };
        let errors = [
            BuildError::Farm(FarmError::Host(refused(HostErrorCode::Failed))),
            BuildError::Farm(FarmError::Host(refused(HostErrorCode::Busy))),
            BuildError::Farm(FarmError::Store(database())),
            BuildError::Farm(FarmError::Store(full())),
            BuildError::Farm(FarmError::Guest(GuestError::Protocol("x"))),
            BuildError::Store(database()),
            BuildError::Store(full()),
            BuildError::Guest(GuestError::TimedOut(std::time::Duration::from_secs(1))),
        ];
        for error in &errors {
            let told = Problem::from(error).line();
            for part in ["/var", "vault", "777", "state"] {
                assert!(!told.contains(part), "{error:?} is told as: {told}");
            }
        }
        // The log has what they do not.
        let error = FarmError::Host(refused(HostErrorCode::Failed));
        assert!(!error.to_string().contains("/var"));
        assert!(chain(&error).for_log().contains(secret));
        let volume = VolumeError::of_host(refused(HostErrorCode::Unsupported)).unwrap();
        let told = Problem::from(FarmError::Volume(volume)).line();
        assert!(!told.contains("/var"), "{told}");
    }
}

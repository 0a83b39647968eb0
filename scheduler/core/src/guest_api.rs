//! The guest API: what may be asked of `slipway-guest`, over HTTP/1.1 on the machine's guest endpoint.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status?wait_ready_ms=N` | [`GuestStatus`]; waits up to N ms for dockerd to be ready |
//! | `POST /v1/end` | 202 and the machine ends, or 409 with [`Activity`] if anything is in flight |
//! | `POST /v1/builds` ([`StartBuild`]) | 202; the same id again answers the same |
//! | `GET /v1/builds` | list of [`BuildSummary`] |
//! | `GET /v1/builds/{id}/events?after=SEQ` | JSON lines of [`crate::build::NumberedEvent`], then ends with the build |
//! | `GET /v1/solves` | JSON lines of [`SeenSolve`]: builds that others than this API ask BuildKit for, from some seconds ago on; no end |
//! | `DELETE /v1/builds/{id}` | 202, the build is cancelled |
//! | `POST /v1/push` ([`StartPush`]) | Docker's own JSON progress lines |
//! | `POST /v1/loans/{id}` ([`LoanTurn`]) | [`LoanWish`] when there is one; 204 when there was none for a while, 404 when there will be none |
//! | `POST /v1/collect` | garbage is collected now; [`DiskUse`] after it |
//!
//! Errors are `{"message": "..."}` with a 4xx or 5xx status.

use crate::build::{BuildOutcome, BuildSpec, RegistryCredential};
use crate::id::BuildId;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// How the guest does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Version of the guest.
    pub version: String,
    /// dockerd has answered `/_ping`.
    pub ready: bool,
    /// What is in flight.
    pub activity: Activity,
    /// The cache volume.
    pub disk: DiskUse,
    /// Milliseconds from the guest's start to ready; absent until ready.
    pub ready_after_ms: Option<u64>,
    /// The Docker engine; absent until ready.
    #[serde(default)]
    pub engine: Option<EngineStatus>,
}

/// The Docker engine of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Its version, such as `26.1.5+dfsg1`.
    pub version: String,
    /// Where it keeps images: `classic` or `containerd`.
    pub image_store: String,
    /// Version of the BuildKit in it, such as `v0.13.1`, or what it says instead; absent until it was asked, and from an older guest.
    #[serde(default)]
    pub buildkit: Option<String>,
    /// When the packages of the image that the machine has booted were last looked up; absent if its host does not say.
    #[serde(default)]
    pub image_made_at: Option<Timestamp>,
}

/// What is in flight inside a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Builds of [`StartBuild`] that run or wait.
    pub builds: u32,
    /// Pushes of [`StartPush`] or of a build.
    pub pushes: u32,
    /// Containers that run.
    pub containers: u32,
    /// Steps that BuildKit runs, for whatever build. They keep no machine up: each belongs to a build that the guest or a gateway
    /// counts, or to one that was cancelled in the instant before the step ran, which BuildKit then never ends.
    #[serde(default)]
    pub steps: u32,
    /// Milliseconds since the last of these ended; 0 while one is in flight.
    pub idle_ms: u64,
}

impl Activity {
    /// Nothing is in flight that anybody waits for.
    pub fn is_idle(&self) -> bool {
        self.builds == 0 && self.pushes == 0 && self.containers == 0
    }

    /// Nothing runs at all.
    pub fn is_quiet(&self) -> bool {
        self.is_idle() && self.steps == 0
    }
}

/// Space on the cache volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskUse {
    /// Size of the file system.
    pub total_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
}

/// A build to run. The caller has (or will have within ten seconds) a BuildKit session of this id open at the
/// machine's Docker endpoint, which serves the context.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartBuild {
    /// Chosen by the scheduler.
    pub id: BuildId,
    /// BuildKit session id (the `X-Docker-Expose-Session-Uuid` of the caller's `POST /session`).
    pub session: String,
    /// What to build.
    pub spec: BuildSpec,
    /// For the push alone; never stored, never logged.
    pub credential: Option<RegistryCredential>,
    /// The same for the registries of the build's further names, one for each that is not the first one's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tag_credentials: Vec<RegistryCredential>,
    /// Registries whose credential stays with the control plane. It lends tokens by `POST /v1/loans/{id of the build}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lent: Vec<String>,
}

impl std::fmt::Debug for StartBuild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartBuild")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// One build the guest knows of. Ended ones are kept for a while so that a restarted control plane can adopt them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildSummary {
    /// Which.
    pub id: BuildId,
    /// Absent while it runs or waits.
    pub outcome: Option<BuildOutcome>,
    /// Number of the newest event.
    pub last_seq: u64,
}

/// A build that a Docker client has asked BuildKit for by itself. It has events and a summary as those of [`StartBuild`] have, and ends
/// with its client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeenSolve {
    /// Chosen by the guest, at random.
    pub id: BuildId,
    /// BuildKit's name of it, which its client chose.
    pub reference: String,
    /// What is known of what was asked.
    pub spec: BuildSpec,
}

/// Push an image that dockerd has.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartPush {
    /// Image in dockerd, by name and tag or by id.
    pub image: String,
    /// Reference to push to, with registry host and tag.
    pub target: String,
    /// For this push alone.
    pub credential: Option<RegistryCredential>,
    /// The control plane keeps the registry's credential, and lends tokens by `POST /v1/loans/{this}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loan: Option<String>,
}

impl std::fmt::Debug for StartPush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartPush")
            .field("image", &self.image)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// What a push wants to show to a registry whose credential the control plane keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoanWish {
    /// To be named by the answer.
    pub number: u64,
    /// Registry host, with port if any.
    pub registry: String,
    /// Repository to push to.
    pub repository: String,
    /// Other repository to pull from, for a mount.
    pub mount_from: Option<String>,
}

/// One request of the control plane's: it answers the wish before, if there was one, and waits for the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoanTurn {
    /// The answer.
    pub answer: Option<LoanAnswer>,
}

/// An answer to a [`LoanWish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoanAnswer {
    /// Which wish it answers.
    pub number: u64,
    /// What is lent.
    pub loan: Loan,
}

/// What is lent for a push. `Debug` never prints the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "loan")]
pub enum Loan {
    /// The registry wants nothing, or there is no credential any more.
    Nothing,
    /// A bearer token.
    Token {
        /// As the token server wrote it.
        token: String,
        /// Milliseconds for which it is good.
        lifetime_ms: u64,
    },
    /// The credential itself, where there are no tokens for it.
    Credential(RegistryCredential),
    /// The registry does not accept the credential.
    Refused {
        /// Its words.
        message: String,
    },
    /// There is nothing to lend, by nobody's fault who pushes.
    Failed {
        /// Why.
        message: String,
    },
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Loan::Nothing => "Nothing",
            Loan::Token { .. } => "Token(redacted)",
            Loan::Credential(_) => "Credential(redacted)",
            Loan::Refused { .. } => "Refused",
            Loan::Failed { .. } => "Failed",
        })
    }
}

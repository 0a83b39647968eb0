//! Why a solve failed, and whose fault that is. BuildKit tells most failures as one line of text under the gRPC code
//! `Unknown`, with typed details beside it: the details count first ([`details`]), then the text ([`words`]).
//!
//! It must not know how a failure is shown, nor what is done about it.

mod advice;
mod details;
mod excerpt;
mod tidy;
mod words;

pub(crate) use tidy::tidy;
pub use words::registry_out_of_reach;

use details::Details;
use std::error::Error;
use tonic::{Code, Status};

/// A solve that failed, and the place in the Dockerfile.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SolveFailure {
    /// Why.
    pub error: SolveError,
    /// The lines of the Dockerfile round the fault, with their numbers and a mark at those that failed; absent where BuildKit
    /// does not tell the place. Without control characters, at most
    /// [`EXCERPT_BYTES_MAX`](crate::limits::EXCERPT_BYTES_MAX).
    pub excerpt: Option<String>,
}

/// Why a solve failed. Messages are BuildKit's own, without its wrapping.
#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    /// The Dockerfile is missing, cannot be parsed, or asks for what does not exist in its language.
    #[error("{message}")]
    Dockerfile {
        /// What is wrong.
        message: String,
        /// Line in the Dockerfile, from 1, where BuildKit tells it.
        line: Option<u32>,
    },
    /// A `COPY` or `ADD` names a file that the context does not have (or that the ignore file leaves out).
    #[error("{message}")]
    MissingFile {
        /// What is missing.
        message: String,
    },
    /// A `RUN` step ended with another code than 0.
    #[error("{message}")]
    StepFailed {
        /// Which command, and how it ended.
        message: String,
        /// Its exit code; above 128 it was ended by a signal (137: often for want of memory).
        exit_code: i32,
    },
    /// An instruction asks for what is not there, or for what cannot be done.
    #[error("{message}")]
    Instruction {
        /// Which, and why.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The target stage is not in the Dockerfile.
    #[error("{message}")]
    UnknownTarget {
        /// Which stage.
        message: String,
    },
    /// A base image does not exist, or the registry does not let the caller read it.
    #[error("{message}")]
    ImageUnavailable {
        /// Which image, and the registry's answer.
        message: String,
    },
    /// The registry of a base image, or the way to it, failed.
    #[error("{message}")]
    RegistryUnreachable {
        /// Which image, and what went wrong.
        message: String,
    },
    /// The server of what an `ADD` fetches, or the way to it, failed.
    #[error("{message}")]
    SourceUnreachable {
        /// What is fetched, and what went wrong.
        message: String,
    },
    /// The frontend that the Dockerfile names in its `# syntax=` line cannot be fetched.
    #[error("{message}")]
    FrontendUnavailable {
        /// Which frontend, and the registry's answer.
        message: String,
        /// The registry, or the way to it, failed; otherwise there is no such frontend.
        is_unreachable: bool,
    },
    /// The context holds a device, which a builder without privilege cannot make.
    #[error("{message}")]
    Device {
        /// Which file.
        message: String,
    },
    /// A step mounts a secret that the session does not serve.
    #[error("{message}")]
    MissingSecret {
        /// Which secret.
        message: String,
    },
    /// The caller's side could not give the context: a file could not be read, a pattern is malformed.
    #[error("{message}")]
    Context {
        /// Which file and why.
        message: String,
    },
    /// The caller's side could not write the result: its disk is full, or nobody reads it any more.
    #[error("{message}")]
    Export {
        /// Why.
        message: String,
    },
    /// The frontend does not take the request (an unknown platform, a malformed attribute or image name).
    #[error("{message}")]
    InvalidRequest {
        /// What is wrong.
        message: String,
    },
    /// The builder's disk is full.
    #[error("no space left on the builder: {message}")]
    NoSpace {
        /// Where.
        message: String,
    },
    /// The session that serves the context was never there, or went away.
    #[error("the connection that serves the build context was lost: {message}")]
    SessionLost {
        /// As BuildKit tells it.
        message: String,
    },
    /// Somebody cancelled the solve.
    #[error("the build was cancelled")]
    Cancelled,
    /// The connection to the builder broke.
    #[error("the connection to the builder was lost")]
    Transport(#[source] Box<Status>),
    /// The solve succeeded but the builder named no image.
    #[error("the builder answered without an image id")]
    NoImage,
    /// Any other answer of the builder.
    #[error("{message}")]
    Other {
        /// As BuildKit tells it.
        message: String,
        /// gRPC code of the answer.
        code: Code,
    },
}

impl SolveError {
    /// The caller can mend it by changing what they sent; trying again unchanged is of no use.
    pub fn is_user_fault(&self) -> bool {
        match self {
            SolveError::Dockerfile { .. }
            | SolveError::MissingFile { .. }
            | SolveError::StepFailed { .. }
            | SolveError::Instruction { .. }
            | SolveError::UnknownTarget { .. }
            | SolveError::ImageUnavailable { .. }
            | SolveError::Device { .. }
            | SolveError::MissingSecret { .. }
            | SolveError::Context { .. }
            | SolveError::Export { .. }
            | SolveError::InvalidRequest { .. } => true,
            SolveError::FrontendUnavailable { is_unreachable, .. } => !is_unreachable,
            SolveError::NoSpace { .. }
            | SolveError::RegistryUnreachable { .. }
            | SolveError::SourceUnreachable { .. }
            | SolveError::SessionLost { .. }
            | SolveError::Cancelled
            | SolveError::Transport(_)
            | SolveError::NoImage
            | SolveError::Other { .. } => false,
        }
    }

    /// What to do about it, where there is something to say. One line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SolveError::MissingFile { .. } => Some(
                "paths are relative to the build context; look for a rule in .dockerignore that leaves the file out",
            ),
            SolveError::StepFailed { exit_code: 137, .. } => {
                Some("the step was killed, most often because it ran out of memory")
            }
            SolveError::ImageUnavailable { .. } => {
                Some("check the name and tag, and log in to the registry if the image is private")
            }
            SolveError::RegistryUnreachable { .. } => Some(
                "the registry of a base image does not answer the builder: check its name (after `COPY --from`, the name of the stage), or try again later",
            ),
            SolveError::SourceUnreachable { .. } => Some(
                "the server does not answer the builder: check the address, or try again later; builders reach private addresses only where the operator allows it",
            ),
            SolveError::FrontendUnavailable { .. } => Some(
                "leave out the Dockerfile's `# syntax=` line to use the builder's own frontend, or ask the operator for a mirror that has this one (`registry_mirrors` in the host's settings)",
            ),
            SolveError::Instruction { hint, .. } => Some(hint),
            SolveError::Device { .. } | SolveError::Context { .. } => {
                Some("leave out what the build does not need with a line in .dockerignore")
            }
            SolveError::Export { .. } => {
                Some("look at the place that --output names: the disk there may be full")
            }
            SolveError::UnknownTarget { .. } => {
                Some("the target must be the name of a stage: FROM ... AS NAME")
            }
            SolveError::MissingSecret { .. } => Some("pass it with --secret"),
            SolveError::NoSpace { .. } => {
                Some("collect the builder's garbage or give it a larger cache")
            }
            SolveError::Dockerfile { message, .. } if message.contains("unknown flag: ") => Some(
                "the builder's frontend does not know the flag; a newer one may: `# syntax=docker/dockerfile:1` as the first line",
            ),
            SolveError::Dockerfile { .. } => Some("mend the Dockerfile"),
            SolveError::InvalidRequest { .. } => {
                Some("look at the name of the image and at the platform")
            }
            SolveError::StepFailed { .. }
            | SolveError::SessionLost { .. }
            | SolveError::Cancelled
            | SolveError::Transport(_)
            | SolveError::NoImage
            | SolveError::Other { .. } => None,
        }
    }

    /// Why a call failed that is no solve.
    pub(crate) fn of_status(status: Status) -> SolveError {
        SolveFailure::of_status(status, |_digest| None).error
    }
}

impl SolveFailure {
    /// Reads a builder's answer. `name_of` gives the name of a failed step by its digest, where it is known.
    pub(crate) fn of_status(
        status: Status,
        name_of: impl FnOnce(&str) -> Option<String>,
    ) -> SolveFailure {
        if broke_in_transport(&status) {
            return SolveError::Transport(Box::new(status)).into();
        }
        let details = Details::of(status.details());
        let name = details.step.as_deref().and_then(name_of);
        let error = words::classify(status.code(), status.message(), &details, name.as_deref());
        let excerpt = match &details.source {
            Some(source) if !matches!(error, SolveError::Cancelled) => excerpt::of(source),
            Some(_) | None => None,
        };
        SolveFailure { error, excerpt }
    }
}

impl From<SolveError> for SolveFailure {
    fn from(error: SolveError) -> SolveFailure {
        SolveFailure {
            error,
            excerpt: None,
        }
    }
}

/// tonic makes a status of its own when HTTP/2 fails; it carries the cause, which a builder's answer never does.
fn broke_in_transport(status: &Status) -> bool {
    status.source().is_some_and(|source| {
        let mut cause = Some(source);
        while let Some(error) = cause {
            if error.is::<hyper::Error>() || error.is::<std::io::Error>() {
                return true;
            }
            cause = error.source();
        }
        false
    })
}

#[cfg(test)]
mod tests;

//! Why a solve failed, and whose fault that is. BuildKit tells most failures as one line of text under the gRPC code
//! `Unknown`; this module reads them.
//!
//! It must not know how a failure is shown, nor what is done about it.

use crate::limits;
use std::error::Error;
use tonic::{Code, Status};

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

/// Longest command shown in the message of a failed step, in characters.
const COMMAND_CHARS_MAX: usize = 200;

impl SolveError {
    /// The caller can mend it by changing what they sent; trying again unchanged is of no use.
    pub fn is_user_fault(&self) -> bool {
        match self {
            SolveError::Dockerfile { .. }
            | SolveError::MissingFile { .. }
            | SolveError::StepFailed { .. }
            | SolveError::UnknownTarget { .. }
            | SolveError::ImageUnavailable { .. }
            | SolveError::Device { .. }
            | SolveError::MissingSecret { .. }
            | SolveError::Context { .. }
            | SolveError::InvalidRequest { .. } => true,
            SolveError::NoSpace { .. }
            | SolveError::RegistryUnreachable { .. }
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
                "the registry of a base image does not answer the builder: check its name, or try again later",
            ),
            SolveError::Device { .. } | SolveError::Context { .. } => {
                Some("leave out what the build does not need with a line in .dockerignore")
            }
            SolveError::UnknownTarget { .. } => {
                Some("the target must be the name of a stage: FROM ... AS NAME")
            }
            SolveError::MissingSecret { .. } => Some("pass it with --secret"),
            SolveError::NoSpace { .. } => {
                Some("collect the builder's garbage or give it a larger cache")
            }
            SolveError::Dockerfile { .. }
            | SolveError::StepFailed { .. }
            | SolveError::InvalidRequest { .. }
            | SolveError::SessionLost { .. }
            | SolveError::Cancelled
            | SolveError::Transport(_)
            | SolveError::NoImage
            | SolveError::Other { .. } => None,
        }
    }

    pub(crate) fn of_status(status: Status) -> SolveError {
        if broke_in_transport(&status) {
            return SolveError::Transport(Box::new(status));
        }
        let message = trimmed(status.message());
        classify(status.code(), message)
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

fn classify(code: Code, message: String) -> SolveError {
    let has = |part: &str| message.contains(part);
    // Order matters: a full disk and a lost session show up inside the text of whatever step they hit.
    if has("no space left on device") || has("disk quota exceeded") {
        return SolveError::NoSpace { message };
    }
    if session_lost(&message) {
        return SolveError::SessionLost { message };
    }
    if code == Code::Cancelled || message == "context canceled" || has(": context canceled") {
        return SolveError::Cancelled;
    }
    if let Some((message, exit_code)) = step_failure(&message) {
        return SolveError::StepFailed { message, exit_code };
    }
    if let Some(reason) = message.split_once(crate::filesync::READ_FAILURE) {
        let message = format!("{}{}", crate::filesync::READ_FAILURE, reason.1);
        return SolveError::Context { message };
    }
    if has("excludepatterns") || has("includepatterns") {
        return SolveError::Context { message };
    }
    if has("target stage") && has("could not be found") {
        return SolveError::UnknownTarget { message };
    }
    if dockerfile_is_wrong(&message) {
        let line = line_of(&message);
        return SolveError::Dockerfile { message, line };
    }
    if has("failed to calculate checksum") || has("failed to compute cache key") {
        return missing_file(message, code);
    }
    if secret_is_missing(&message) {
        return SolveError::MissingSecret { message };
    }
    if image_cannot_be_had(&message) {
        return if registry_out_of_reach(&message) {
            SolveError::RegistryUnreachable { message }
        } else {
            SolveError::ImageUnavailable { message }
        };
    }
    if let Some(message) = device_not_made(&message) {
        return SolveError::Device { message };
    }
    if code == Code::InvalidArgument
        || has("invalid reference format")
        || has("failed to parse target platform")
        || has("unknown operating system or architecture")
    {
        return SolveError::InvalidRequest { message };
    }
    SolveError::Other { message, code }
}

fn session_lost(message: &str) -> bool {
    [
        "no active session for",
        "no active sessions",
        "session healthcheck failed",
        "no local sources enabled",
        "error reading from server: EOF",
        "connection error: desc",
        "transport is closing",
        "the client connection is closing",
        "only one connection allowed",
    ]
    .iter()
    .any(|part| message.contains(part))
}

fn dockerfile_is_wrong(message: &str) -> bool {
    [
        "dockerfile parse error",
        "Dockerfile parse error",
        "failed to read dockerfile",
        "the Dockerfile cannot be empty",
        "file with no instructions",
        "no build stage in current context",
        "base name (",
        "circular dependency detected",
        "unknown instruction",
        "failed to parse stage name",
        "invalid from flag value",
        "failed to process \"",
    ]
    .iter()
    .any(|part| message.contains(part))
}

/// `... failed to calculate checksum of ref X::Y: "/path": not found`. The reference is noise.
fn missing_file(message: String, code: Code) -> SolveError {
    let Some(head) = message.strip_suffix(": not found") else {
        return SolveError::Other { message, code };
    };
    let path = head.rsplit_once(": ").map_or(head, |(_, path)| path);
    SolveError::MissingFile {
        message: format!("{path}: not found in the build context or stage"),
    }
}

fn secret_is_missing(message: &str) -> bool {
    message.ends_with(": not found")
        && (message.starts_with("secret ") || message.contains(": secret "))
}

/// `failed to create device .../diff/path: operation not permitted`. Where the builder keeps it is noise.
fn device_not_made(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("failed to create device ")?;
    let path = rest.strip_suffix(": operation not permitted")?;
    let path = path.split_once("/diff/").map_or(path, |(_, path)| path);
    Some(format!(
        "{path} is a device, which no build context can hold"
    ))
}

fn image_cannot_be_had(message: &str) -> bool {
    [
        "pull access denied",
        "failed to resolve source metadata for",
        "insufficient_scope",
        "failed to authorize",
        "manifest unknown",
        "no match for platform in manifest",
        "unexpected status from HEAD request",
    ]
    .iter()
    .any(|part| message.contains(part))
}

/// Whether words of dockerd or BuildKit about a registry say that the network or the registry failed: not the caller's
/// fault.
pub fn registry_out_of_reach(message: &str) -> bool {
    [
        "dial tcp",
        "no such host",
        "connection refused",
        "i/o timeout",
        "TLS handshake timeout",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway",
        "context deadline exceeded",
        "unexpected EOF",
        "connection reset by peer",
    ]
    .iter()
    .any(|part| message.contains(part))
}

/// `process "..." did not complete successfully: exit code: 3`, sometimes with more around it. A long command is cut:
/// the whole of it stands in the Dockerfile.
fn step_failure(message: &str) -> Option<(String, i32)> {
    let (head, end) = message.split_once("did not complete successfully: exit code: ")?;
    let exit_code = leading_number(end)?;
    let head = match head.char_indices().nth(COMMAND_CHARS_MAX) {
        Some((cut, _)) => format!("{}...\" ", &head[..cut]),
        None => head.to_owned(),
    };
    Some((
        format!("{head}did not complete successfully: exit code: {end}"),
        exit_code,
    ))
}

fn leading_number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let digits = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    text[..digits].parse().ok()
}

fn line_of(message: &str) -> Option<u32> {
    leading_number(message.split_once("line ")?.1)
}

/// Drops the wrapping that each layer of BuildKit and gRPC adds, and bounds the length.
fn trimmed(message: &str) -> String {
    const NOISE: [&str; 12] = [
        "failed to solve: ",
        "failed to solve with frontend dockerfile.v0: ",
        "failed to solve with frontend gateway.v0: ",
        "failed to build LLB: ",
        "failed to create LLB definition: ",
        "rpc error: code = Unknown desc = ",
        "rpc error: code = NotFound desc = ",
        "rpc error: code = InvalidArgument desc = ",
        "InvalidArgument: ",
        "FailedPrecondition: ",
        "NotFound: ",
        "Unknown: ",
    ];
    let mut rest = message.trim();
    while let Some(shorter) = NOISE.iter().find_map(|noise| rest.strip_prefix(noise)) {
        rest = shorter.trim_start();
    }
    let mut text = rest.replace("rpc error: code = Unknown desc = ", "");
    if text.len() > limits::ERROR_MESSAGE_BYTES_MAX {
        let mut cut = text.len() - limits::ERROR_MESSAGE_BYTES_MAX;
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        text.replace_range(..cut, "... ");
    }
    text
}

#[cfg(test)]
mod tests;

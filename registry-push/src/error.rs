//! Why a push failed, whose fault that is, and what to do about it.
//!
//! Registry answers appear as the registry's own words, cut and stripped of control characters. No variant holds a
//! credential, a token or a signed URL.

use crate::blame::Blame;
use crate::challenge::ChallengeError;
use crate::digest::Digest;
use crate::source::SourceError;
use crate::target::TargetError;
use http::StatusCode;
use std::time::Duration;

/// A push that did not complete. The tag was not written, or (for the variants that say so) could not be proved.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The image or a layer could not be read as it should be.
    #[error("cannot read the image")]
    Source(#[from] SourceError),
    /// A tag cannot be written.
    #[error("the image cannot be pushed under that name")]
    Target(#[from] TargetError),
    /// The TLS client could not be set up.
    #[error("cannot set up the connection to {host}")]
    Client {
        /// Registry.
        host: String,
        /// From the TLS stack or its certificates.
        #[source]
        source: reqwest::Error,
    },
    /// Compression or reading ended without a result.
    #[error("the compression of layer {layer} ended early")]
    Pipeline {
        /// diffID.
        layer: Digest,
    },
    /// 401 with the credential that was given, or without one.
    #[error("{host} does not accept {}{said}", credential(.anonymous))]
    Unauthorized {
        /// Registry or its token server.
        host: String,
        /// No credential was given.
        anonymous: bool,
        /// What the registry said.
        said: Said,
    },
    /// 403.
    #[error("{host} does not allow this push to {repository}{said}")]
    Forbidden {
        /// Registry.
        host: String,
        /// Repository in it.
        repository: String,
        /// What the registry said.
        said: Said,
    },
    /// 404 where an upload or manifest should have been taken.
    #[error("{host} has no place for {repository}{said}")]
    NotFound {
        /// Registry.
        host: String,
        /// Repository in it.
        repository: String,
        /// What the registry said.
        said: Said,
    },
    /// 413: a layer or the manifest is larger than the registry or a proxy before it takes.
    #[error("{host} refuses {item} as too large{said}")]
    TooLarge {
        /// Registry.
        host: String,
        /// What was being sent.
        item: String,
        /// What the registry said.
        said: Said,
    },
    /// 507, or a refusal that names a quota.
    #[error("{host} has no room left for {repository}{said}")]
    Quota {
        /// Registry.
        host: String,
        /// Repository in it.
        repository: String,
        /// What the registry said.
        said: Said,
    },
    /// Any other 4xx.
    #[error("{host} refuses {item} with {status}{said}")]
    Rejected {
        /// Registry.
        host: String,
        /// What was being done.
        item: String,
        /// The answer's status.
        status: StatusCode,
        /// What the registry said.
        said: Said,
    },
    /// 429 until the attempts ran out, or with a wait that is too long.
    #[error("{host} still limits the rate after {attempts} attempts{said}")]
    RateLimited {
        /// Registry.
        host: String,
        /// Attempts made.
        attempts: u32,
        /// What the registry said.
        said: Said,
    },
    /// 5xx until the attempts ran out.
    #[error("{host} failed with {status} on {item}, {attempts} times{said}")]
    RegistryFailed {
        /// Registry.
        host: String,
        /// What was being done.
        item: String,
        /// The last answer's status.
        status: StatusCode,
        /// Attempts made.
        attempts: u32,
        /// What the registry said.
        said: Said,
    },
    /// No connection: name not known, refused, no route, or TLS refused.
    #[error("cannot connect to {host}")]
    Unreachable {
        /// Registry.
        host: String,
        /// From the connector.
        #[source]
        source: reqwest::Error,
    },
    /// An address that is not to be reached from here.
    #[error("{host} is not to be reached from here")]
    Closed {
        /// Registry, token server, or where one of them redirects to.
        host: String,
    },
    /// Whoever lends tokens lent none.
    #[error("no token was lent for {host}: {reason}")]
    NotLent {
        /// Registry.
        host: String,
        /// The lender's words.
        reason: String,
    },
    /// The connection broke until the attempts ran out.
    #[error("the connection to {host} broke on {item}, {attempts} times")]
    Broken {
        /// Registry.
        host: String,
        /// What was being done.
        item: String,
        /// Attempts made.
        attempts: u32,
        /// The last break.
        #[source]
        source: reqwest::Error,
    },
    /// The registry took or answered nothing for too long, until the attempts ran out.
    #[error("{host} did not move on with {item} for {} s", .after.as_secs())]
    TimedOut {
        /// Registry.
        host: String,
        /// What was being done.
        item: String,
        /// The bound.
        after: Duration,
    },
    /// The registry's answer breaks the distribution specification.
    #[error("{host} answered {item} in a way no registry should: {fault}")]
    Protocol {
        /// Registry.
        host: String,
        /// What was being done.
        item: String,
        /// What was wrong.
        fault: ProtocolFault,
    },
    /// The authentication challenge cannot be followed.
    #[error("cannot authenticate to {host}")]
    Challenge {
        /// Registry.
        host: String,
        /// What was wrong with it.
        #[source]
        source: ChallengeError,
    },
    /// The registry took everything, and then does not have it. The tag may have been written.
    #[error("{host} does not have {item} after the push: {found}")]
    Incomplete {
        /// Registry.
        host: String,
        /// Blob or manifest that is missing or different.
        item: String,
        /// What was found instead.
        found: String,
    },
}

fn credential(anonymous: &bool) -> &'static str {
    if *anonymous {
        "a push without a credential"
    } else {
        "the credential"
    }
}

/// How an answer broke the specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    /// An answer without the `Location` of the upload.
    #[error("no usable upload location")]
    Location,
    /// A location that would send layers in clear although the registry has TLS.
    #[error("the upload location leaves TLS")]
    Downgrade,
    /// More redirects than are followed.
    #[error("too many redirects")]
    Redirects,
    /// A status that has no meaning for the request.
    #[error("unexpected status {0}")]
    Status(StatusCode),
    /// The upload's offset went past what was sent.
    #[error("it claims to have {claimed} bytes of {sent} sent")]
    Offset {
        /// By its `Range`.
        claimed: u64,
        /// By us.
        sent: u64,
    },
    /// It lost the upload again and again.
    #[error("it lost the upload again and again")]
    LostUpload,
    /// A digest that is not that of the content sent.
    #[error("it computed digest {found} for {expected}")]
    Digest {
        /// By the registry.
        found: String,
        /// By us.
        expected: Digest,
    },
    /// The token server's answer holds no token.
    #[error("its token server gave no token")]
    Token,
}

/// A registry's own words, fit for a message: `: denied: quota exceeded`, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// Reads the error document of the distribution specification, or takes the start of the text.
    pub(crate) fn from_body(body: &[u8]) -> Said {
        let parsed: Option<ErrorDocument> = serde_json::from_slice(body).ok();
        let text = match parsed.and_then(|document| document.first()) {
            Some(text) => text,
            None if body.first() == Some(&b'<') => return Said::default(),
            None => String::from_utf8_lossy(body.get(..body.len().min(400)).unwrap_or_default())
                .into_owned(),
        };
        let line: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect();
        Said(line.trim().to_string())
    }

    /// Without the leading colon.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn mentions(&self, word: &str) -> bool {
        self.0.to_ascii_lowercase().contains(word)
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0)
        }
    }
}

#[derive(serde::Deserialize)]
struct ErrorDocument {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
    #[serde(default)]
    details: Option<String>,
}

#[derive(serde::Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl ErrorDocument {
    fn first(self) -> Option<String> {
        match self.errors.into_iter().next() {
            Some(ErrorEntry {
                code: Some(code),
                message: Some(message),
            }) => Some(format!("{}: {message}", code.to_ascii_lowercase())),
            Some(ErrorEntry { code, message }) => message.or(code),
            None => self.details,
        }
    }
}

impl PushError {
    /// Who can mend it.
    pub fn blame(&self) -> Blame {
        match self {
            PushError::Source(source) => source.blame(),
            PushError::Client { .. } | PushError::Pipeline { .. } => Blame::Local,
            PushError::Target(_)
            | PushError::Unauthorized { .. }
            | PushError::Forbidden { .. }
            | PushError::NotFound { .. }
            | PushError::TooLarge { .. }
            | PushError::Quota { .. }
            | PushError::Rejected { .. } => Blame::User,
            PushError::RateLimited { .. }
            | PushError::RegistryFailed { .. }
            | PushError::Protocol { .. }
            | PushError::Challenge { .. }
            | PushError::Incomplete { .. } => Blame::Registry,
            PushError::Unreachable { .. }
            | PushError::Closed { .. }
            | PushError::NotLent { .. }
            | PushError::Broken { .. }
            | PushError::TimedOut { .. } => Blame::Network,
        }
    }

    /// What the caller may do about it, as one sentence without a period.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            PushError::Source(source) => source.hint(),
            PushError::Client { .. } => {
                Some("install the ca-certificates package where the push runs")
            }
            PushError::Target(_) => Some("name it as host/repository:tag"),
            PushError::Pipeline { .. } => None,
            PushError::Unauthorized {
                anonymous: true, ..
            } => Some("add a credential for this registry"),
            PushError::Unauthorized {
                anonymous: false, ..
            } => Some("check the user name and password, and whether the token has expired"),
            PushError::Forbidden { .. } => {
                Some("give the credential the right to write to this repository")
            }
            PushError::NotFound { .. } => {
                Some("check the repository's name; some registries want it created first")
            }
            PushError::TooLarge { .. } => {
                Some("split the layer, or raise the body limit of the proxy before the registry")
            }
            PushError::Quota { .. } => Some("delete old images or raise the registry's quota"),
            PushError::Rejected { .. } => None,
            PushError::RateLimited { .. } => Some("wait and push again"),
            PushError::RegistryFailed { .. } => {
                Some("push again later; what was uploaded is kept by the registry")
            }
            PushError::Unreachable { .. } => Some(
                "check the host and port; a registry without TLS must be named as a plain http registry",
            ),
            PushError::Closed { .. } => None,
            PushError::Broken { .. } | PushError::TimedOut { .. } | PushError::NotLent { .. } => {
                Some("push again; layers that arrived are not sent twice")
            }
            PushError::Protocol { .. } | PushError::Challenge { .. } => {
                Some("check that the host is a registry of the Docker v2 or OCI distribution API")
            }
            PushError::Incomplete { .. } => {
                Some("push again; the registry may be collecting garbage")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_cut_and_cleaned() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"quota exceeded"}]}"#,
                "denied: quota exceeded",
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, "DENIED"),
            (r#"{"errors":[]}"#, "{\"errors\":[]}"),
            (r#"{"details":"incorrect username"}"#, "incorrect username"),
            ("<html><body>nginx</body></html>", ""),
            ("gone\u{1b}[31m away\n", "gone [31m away"),
            ("", ""),
        ] {
            assert_eq!(Said::from_body(body.as_bytes()).as_str(), expected);
        }
        assert!(Said::from_body(&vec![b'x'; 10_000]).as_str().len() <= 300);
    }
}

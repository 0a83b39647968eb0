//! What the guest asks of dockerd, over its unix socket inside the machine.
//!
//! It must not know when or why anything is asked.

use crate::limits;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Why dockerd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DockerError {
    /// The socket takes no connection.
    #[error("connect to dockerd")]
    Connect(#[source] std::io::Error),
    /// The request broke off.
    #[error("ask dockerd for {path}")]
    Request {
        /// What was asked.
        path: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("dockerd did not answer {path} in time")]
    TimedOut {
        /// What was asked.
        path: String,
    },
    /// The answer is not what it should be, or is larger than [`limits::ENGINE_ANSWER_BYTES_MAX`].
    #[error("read dockerd's answer to {path}")]
    Answer {
        /// What was asked.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// dockerd said no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: http::StatusCode,
        /// dockerd's own words.
        message: String,
    },
}

/// An image in dockerd.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Image {
    /// Digest of its config; of its manifest or index where images are in containerd's store.
    pub(crate) id: String,
    /// Sum of its layers, uncompressed, in bytes; as containerd's store has them where they are in that.
    pub(crate) size: u64,
    /// What it runs on, as Go names it.
    #[serde(default)]
    pub(crate) os: String,
    /// The same of the processor.
    #[serde(default)]
    pub(crate) architecture: String,
    /// `v7`, where it matters.
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// A row of dockerd's list of images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageRow {
    /// As [`Image::id`].
    pub(crate) id: String,
    /// When it was made, in seconds since 1970.
    pub(crate) created: i64,
    /// Its names with tags; may be absent.
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
}

impl ImageRow {
    /// Its names with tags; none of an image whose name another one has taken over.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let tags = self.repo_tags.iter().flatten().map(String::as_str);
        // What dockerd before API version 1.43 writes for no name.
        tags.filter(|tag| *tag != "<none>:<none>")
    }
}

/// Which records of the build cache a prune may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unused {
    /// Those that nothing uses, and that are older than this.
    OlderThan(Duration),
    /// Those that nothing uses, whatever their age.
    OfAnyAge,
}

/// dockerd, by its socket. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// A dockerd that listens at `socket`.
    pub(crate) fn at(socket: &Path) -> Docker {
        Docker {
            socket: socket.to_owned(),
        }
    }

    /// A stream to dockerd on which nothing was sent yet.
    pub(crate) async fn connect(&self) -> Result<UnixStream, DockerError> {
        UnixStream::connect(&self.socket)
            .await
            .map_err(DockerError::Connect)
    }

    /// It answers. While it starts its socket may take the connection and keep the request waiting: `wait` bounds that.
    pub(crate) async fn ping(&self, wait: Duration) -> Result<(), DockerError> {
        self.ask("GET", "/_ping", wait).await.map(drop)
    }

    /// dockerd's version. Each of its answers has it, and only `/version` starts programs to find more.
    pub(crate) async fn version(&self) -> Result<String, DockerError> {
        let (path, wait) = ("/_ping", limits::ENGINE_REQUEST_WAIT_MAX);
        let answered = tokio::time::timeout(wait, self.ask_unbounded("GET", path)).await;
        let answer = answered.unwrap_or_else(|_elapsed| {
            Err(DockerError::TimedOut {
                path: path.to_owned(),
            })
        })?;
        let server = answer.headers().get(http::header::SERVER);
        let version = server.and_then(|text| version_of(text.to_str().ok()?));
        version.ok_or_else(|| DockerError::Answer {
            path: path.to_owned(),
            source: "it names no version".into(),
        })
    }

    /// How many containers run.
    pub(crate) async fn containers_running(&self) -> Result<u32, DockerError> {
        let running: Vec<IgnoredAny> = self
            .json("GET", "/containers/json", limits::ENGINE_REQUEST_WAIT_MAX)
            .await?;
        Ok(u32::try_from(running.len()).unwrap_or(u32::MAX))
    }

    /// The image of this name or id.
    pub(crate) async fn image(&self, name: &str) -> Result<Image, DockerError> {
        let name = escape(name);
        self.json(
            "GET",
            &format!("/images/{name}/json"),
            limits::ENGINE_REQUEST_WAIT_MAX,
        )
        .await
    }

    /// Bytes of the build cache, without layers that it shares with images: those come free only with the image.
    pub(crate) async fn build_cache_bytes(&self) -> Result<u64, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Usage {
            build_cache: Option<Vec<Record>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Record {
            size: i64,
            shared: bool,
        }
        let usage: Usage = self
            .json("GET", "/system/df?type=build-cache", limits::PRUNE_WAIT_MAX)
            .await?;
        let records = usage.build_cache.unwrap_or_default().into_iter();
        let sizes = records.filter(|record| !record.shared);
        Ok(sizes
            .map(|record| u64::try_from(record.size).unwrap_or(0))
            .sum())
    }

    /// Prunes the build cache down to `keep_bytes`, the longest unused first; gives the bytes it gave back. What a build
    /// uses is never taken, and neither is what an image shares: `keep_bytes` does not count it
    /// ([`Docker::build_cache_bytes`]).
    pub(crate) async fn prune_build_cache(
        &self,
        keep_bytes: u64,
        unused: Unused,
    ) -> Result<u64, DockerError> {
        let filters = match unused {
            Unused::OlderThan(age) => json!({"until": {age_text(age): true}}),
            Unused::OfAnyAge => json!({}),
        };
        let filters = escape(&filters.to_string());
        let path = format!("/build/prune?keep-storage={keep_bytes}&filters={filters}");
        self.prune(&path).await
    }

    /// All images that have no other built on top of them.
    pub(crate) async fn images(&self) -> Result<Vec<ImageRow>, DockerError> {
        self.json("GET", "/images/json", limits::PRUNE_WAIT_MAX)
            .await
    }

    /// Takes a name away from an image, and the image with its last name. dockerd refuses while a container, running
    /// or not, is of that image.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), DockerError> {
        let path = format!("/images/{}", escape(name));
        self.ask("DELETE", &path, limits::PRUNE_WAIT_MAX)
            .await
            .map(drop)
    }

    async fn prune(&self, path: &str) -> Result<u64, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Pruned {
            space_reclaimed: u64,
        }
        let pruned: Pruned = self.json("POST", path, limits::PRUNE_WAIT_MAX).await?;
        Ok(pruned.space_reclaimed)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        wait: Duration,
    ) -> Result<T, DockerError> {
        let body = self.ask(method, path, wait).await?;
        serde_json::from_slice(&body).map_err(|source| DockerError::Answer {
            path: path.to_owned(),
            source: source.into(),
        })
    }

    async fn ask(&self, method: &str, path: &str, wait: Duration) -> Result<Bytes, DockerError> {
        let asked = self.ask_unbounded(method, path);
        match tokio::time::timeout(wait, asked).await {
            Ok(answered) => answered.map(http::Response::into_body),
            Err(_elapsed) => Err(DockerError::TimedOut {
                path: path.to_owned(),
            }),
        }
    }

    async fn ask_unbounded(
        &self,
        method: &str,
        path: &str,
    ) -> Result<http::Response<Bytes>, DockerError> {
        let stream = self.connect().await?;
        let broke = |source| DockerError::Request {
            path: path.to_owned(),
            source,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broke)?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "docker")
            .body(Empty::<Bytes>::new())
            .map_err(|source| DockerError::Answer {
                path: path.to_owned(),
                source: source.into(),
            })?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broke)?;
            let (head, body) = response.into_parts();
            let status = head.status;
            let body = Limited::new(body, limits::ENGINE_ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|source| DockerError::Answer {
                    path: path.to_owned(),
                    source,
                })?
                .to_bytes();
            if status.is_success() {
                Ok(http::Response::from_parts(head, body))
            } else {
                Err(DockerError::Refused {
                    status,
                    message: message_of(&body),
                })
            }
        };
        tokio::pin!(exchange);
        tokio::select! {
            answered = &mut exchange => answered,
            // The connection ends first only when it breaks; the exchange then ends with it.
            _ = connection => exchange.await,
        }
    }
}

/// Of `Docker/VERSION (linux)`.
fn version_of(server: &str) -> Option<String> {
    let version = server.strip_prefix("Docker/")?.split(' ').next()?;
    (!version.is_empty()).then(|| version.chars().take(100).collect())
}

fn message_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(body)
            .trim()
            .chars()
            .take(500)
            .collect(),
    }
}

/// Go's notation of a duration.
fn age_text(age: Duration) -> String {
    format!("{}s", age.as_secs())
}

/// Percent-encodes all but what may stand in a path segment and in a query alike; `/` and `:` stay, since dockerd
/// takes image names with them as they are.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_filters_are_escaped() {
        assert_eq!(
            escape("reg.example:5000/a/b:tag@sha256:0"),
            "reg.example:5000/a/b:tag@sha256:0"
        );
        assert_eq!(escape("a b?x=../\n{\"é"), "a%20b%3Fx%3D../%0A%7B%22%C3%A9");
    }

    #[test]
    fn the_version_is_dockerds_own() {
        let version = |server| version_of(server);
        assert_eq!(
            version("Docker/26.1.5+dfsg1 (linux)").as_deref(),
            Some("26.1.5+dfsg1")
        );
        assert_eq!(version("Docker/ (linux)"), None);
        assert_eq!(version("nginx"), None);
    }

    #[test]
    fn a_refusal_keeps_dockerds_words() {
        assert_eq!(
            message_of(br#"{"message":"No such image: x"}"#),
            "No such image: x"
        );
        assert_eq!(message_of(b"404 page not found\n"), "404 page not found");
    }
}

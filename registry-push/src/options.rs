//! What a caller may choose about a push.
//!
//! Holds values only; each use of them is elsewhere.

use crate::compress::Codec;
use crate::lend::{Lender, Reach};
use crate::limits::{TABLES_BYTES, THREADS_MAX};
use crate::target::{host_name, is_loopback};
use std::path::PathBuf;
use std::sync::Arc;

/// Choices for [`crate::push`]. `Default` is right for a registry with TLS.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Registries (`host` or `host:port`) spoken to over plain http. Loopback hosts always are, as with Docker.
    pub insecure_http: Vec<String>,
    /// Registries with TLS that nobody vouches for, or without TLS, as dockerd's `insecure-registries` names them: `host:port`, `host`, or a
    /// network. Which of both it is is found by asking.
    pub insecure: Vec<String>,
    /// TLS even for loopback hosts and those named in `insecure_http`; a certificate that can be verified even for those in `insecure`.
    pub require_tls: bool,
    /// Certificates (PEM) trusted beside the system's own.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// Proxy for registries without TLS, as `http://HOST:PORT`. Absent: the process's environment decides, as for curl.
    pub http_proxy: Option<String>,
    /// Proxy for registries with TLS.
    pub https_proxy: Option<String>,
    /// Hosts, domains and networks that are reached without a proxy, separated by commas.
    pub no_proxy: String,
    /// Lends tokens in the place of a credential.
    pub lender: Option<Arc<dyn Lender>>,
    /// Which addresses may be connected to. Absent: all. With it no proxy is used, because a proxy looks names up by itself.
    pub reach: Option<Reach>,
    /// How layers are compressed.
    pub codec: Codec,
    /// Compression threads of this push; 0 takes the number of processors. At most [`crate::limits::THREADS_MAX`].
    pub threads: usize,
    /// File that remembers which compressed blob a layer became and where it was pushed to, best kept beside the layers.
    /// Without it every layer is read and compressed each time.
    pub index: Option<PathBuf>,
    /// Further tags of the target's repository that get the image too. One push of several tags costs little more than one.
    pub more_tags: Vec<String>,
    /// Ask for every blob even when the repository has this very manifest. Without it an unchanged image costs four requests at most,
    /// and blobs that somebody removed from below a manifest may go unnoticed.
    pub ask_for_every_blob: bool,
    /// Repositories of the same registry that may hold the layers already, such as the image's base: a mount is tried from them for each
    /// layer whose blob the index knows.
    pub mount_from: Vec<String>,
}

impl PushOptions {
    /// Whether this host is spoken to in clear.
    pub(crate) fn is_plain(&self, host: &str) -> bool {
        if self.require_tls {
            return false;
        }
        is_loopback(host)
            || self.insecure_http.iter().any(|named| {
                named.eq_ignore_ascii_case(host) || named.eq_ignore_ascii_case(host_name(host))
            })
    }

    /// Threads to compress with.
    pub(crate) fn threads(&self) -> usize {
        let wanted = match self.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        };
        // A small level that needs large tables gets fewer threads rather than more memory.
        let fit = TABLES_BYTES / self.codec.tables_bytes();
        wanted.min(fit).clamp(1, THREADS_MAX)
    }
}

//! Everything that is said to a registry.
//!
//! Knows the distribution API, its authentication and its failures; nothing of images' insides or of layers at rest.
//! Redirects are followed by hand, because the credential must stay with the registry's own host.

mod auth;
mod client;
mod endpoint;
mod exchange;
mod failures;
mod feed;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod insecure;
mod retry;
mod small;
mod upload;

pub use auth::Wanted;
pub(crate) use client::{Ask, Registry, content_length};
pub use exchange::Exchange;
pub(crate) use feed::Feed;
pub(crate) use small::{Opened, cancel, check_digest, open, upload_bytes};
pub(crate) use upload::{upload_ahead, upload_blob};

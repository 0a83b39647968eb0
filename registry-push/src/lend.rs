//! Tokens that somebody lends who keeps the credential: what is asked of him, and what he answers.
//!
//! Knows no registry and no request.

use crate::target::Credential;
use futures_util::future::BoxFuture;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What a token is to cover: pulling from and pushing to one repository, and pulling from another one for a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Repository that is pushed to.
    pub repository: String,
    /// Other repository that is read.
    pub mount_from: Option<String>,
}

/// What is lent.
pub enum Lent {
    /// The registry wants nothing.
    Nothing,
    /// A bearer token, and how long it is good.
    Token(String, Duration),
    /// The credential itself: the registry gives no tokens for it.
    Credential(Credential),
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lent(redacted)")
    }
}

/// Why nothing is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotLent {
    /// The registry does not accept the credential; its words.
    Refused(String),
    /// It could not be asked, or not for this.
    Failed(String),
}

/// Whoever has the credential.
pub trait Lender: Send + Sync + fmt::Debug {
    /// Asked again when a token is about to end, or was refused.
    fn lend<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Lent, NotLent>>;
}

/// Which addresses may be connected to.
#[derive(Clone)]
pub struct Reach(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl Reach {
    /// Those for which `may` is true.
    pub fn new(may: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Reach {
        Reach(Arc::new(may))
    }

    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        (self.0)(address)
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reach")
    }
}

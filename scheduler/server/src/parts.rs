//! What the control plane is made of, as whatever answers requests gets it.
//!
//! Must not know: who answers what.

use crate::auth::Authenticator;
use crate::builds::BuildService;
use crate::ca::CertificateAuthority;
use crate::credentials::Credentials;
use crate::farm::Farm;
use crate::lending::Lending;
use crate::settings::ServeSettings;
use slipway_store::Store;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The parts.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) addresses: PublicAddresses,
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) settings: Arc<ServeSettings>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) farm: Farm,
    pub(crate) builds: BuildService,
    pub(crate) authenticator: Authenticator,
    pub(crate) credentials: Credentials,
    pub(crate) lending: Lending,
    /// The control plane ends: so do subscriptions.
    pub(crate) cancel: CancellationToken,
    /// Requests that run, even if nobody waits for their answer any more.
    pub(crate) tasks: TaskTracker,
}

/// Where clients reach the listeners, as `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicAddresses {
    pub(crate) api: String,
    pub(crate) docker: String,
    pub(crate) buildkit: String,
}

//! The Docker gateway and the BuildKit gateway: whose builder is meant, what may be asked of it, and the way there.
//!
//! Bodies and streams pass as they are, both ways, with the pressure of the slower side felt by the faster one; nothing is
//! buffered but what is in the hand at the moment. Must not know: how a builder is woken, tokens' secrets.

mod asked;
mod buildkit;
pub mod endpoints;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod headers;
mod pool;
mod proxy;
mod pump;
mod push;
mod relay;
mod solves;
#[cfg(test)]
mod tests;

pub(crate) use buildkit::serve as serve_buildkit;
pub(crate) use headers::check_head;

use crate::auth::{
    AuthOutcome, Authenticator, Credential, CredentialError, Denial, Entered, Principal,
};
use crate::builds::{Asker, BuildService, Carried, Tap};
use crate::connection::Connection;
use crate::farm::{BuilderKey, Farm};
use crate::http::{Body, closing, docker_problem, docker_refusal};
use crate::lending::Lending;
use crate::machine_stream::MachineStream;
use crate::origin::check_same_site;
use crate::problem::{Code, Problem};
use crate::settings::is_label;
use async_trait::async_trait;
use endpoints::{Decision, Refusal, decide};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use pool::Pool;
use slipway_core::build::{BuildSource, BuildSpec};
use slipway_core::generation::Generation;
use slipway_core::host_api::EndpointPort;
use slipway_store::TokenRole;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// Which org is meant, for credentials that are good for more than one: its id or its slug.
pub(crate) const ORG_HEADER: &str = "x-slipway-org";
/// Region of the builder; the org's default if absent.
pub(crate) const REGION_HEADER: &str = "x-slipway-region";
/// Architecture of the builder; the org's default if absent.
pub(crate) const ARCH_HEADER: &str = "x-slipway-arch";

/// Counts as activity of a builder until dropped.
pub(crate) struct Activity(Box<dyn Send + Sync>);

impl Activity {
    pub(crate) fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_guard) = self;
        f.write_str("Activity")
    }
}

/// The way to builders. The farm, but for tests of odd servers.
#[async_trait]
pub(crate) trait Builders: Send + Sync + fmt::Debug {
    /// A stream to the builder, which is made and woken if need be.
    async fn connect(
        &self,
        key: &BuilderKey,
        port: EndpointPort,
    ) -> Result<(MachineStream, Activity), Problem>;
    /// Counts as activity from now on, if there is such a builder. Does not wake it.
    fn activity(&self, key: &BuilderKey) -> Option<Activity>;
    /// The generation that takes connections now.
    fn running(&self, key: &BuilderKey) -> Option<Generation>;
}

#[async_trait]
impl Builders for Farm {
    async fn connect(
        &self,
        key: &BuilderKey,
        port: EndpointPort,
    ) -> Result<(MachineStream, Activity), Problem> {
        let (stream, guard) = Self::connect(self, key, port).await?;
        Ok((stream, Activity::new(guard)))
    }

    fn activity(&self, key: &BuilderKey) -> Option<Activity> {
        Self::activity(self, key).ok().map(Activity::new)
    }

    fn running(&self, key: &BuilderKey) -> Option<Generation> {
        self.builder(key).ok()?.state.connectable()
    }
}

/// Both gateways; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Gateway(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    authenticator: Authenticator,
    lending: Lending,
    builders: Arc<dyn Builders>,
    builds: BuildService,
    pool: Arc<Pool>,
    /// Hijacked streams, which outlive the request that made them.
    streams: TaskTracker,
}

/// What a request has become once it is known whose it is.
#[derive(Debug, Clone)]
struct Caller {
    principal: Principal,
    entered: Entered,
    key: BuilderKey,
}

impl Caller {
    fn asker(&self, source: BuildSource) -> Asker {
        let token = self.principal.token();
        Asker {
            source,
            name: token.name.clone(),
            app: token.app.clone(),
        }
    }

    /// Does this as long as the caller's token is good.
    async fn while_good<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        tokio::select! {
            biased;
            () = self.principal.ended().cancelled() => Err(ended()),
            done = work => done,
        }
    }
}

impl Gateway {
    pub(crate) fn new(
        authenticator: Authenticator,
        lending: Lending,
        builders: Arc<dyn Builders>,
        builds: BuildService,
        streams: TaskTracker,
    ) -> Self {
        let pool = Arc::default();
        Self(Arc::new(Shared {
            authenticator,
            lending,
            builders,
            builds,
            pool,
            streams,
        }))
    }

    /// Answers one request to the Docker listener.
    pub(crate) async fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let caller = match self.caller(connection, request.headers()).await {
            Ok(caller) => caller,
            // Who is refused here, by role, org or number of connections, does not keep the connection.
            Err(problem) => return closing(docker_problem(&problem)),
        };
        if let Err(problem) = check_head(&request) {
            return docker_problem(&problem);
        }
        let method = request.method().clone();
        let decision = decide(method.as_str(), request.uri().path());
        tracing::debug!(
            org = %caller.entered.org.id, token = %caller.principal.token().id, %method,
            path = request.uri().path(), "docker request"
        );
        let done = match decision {
            Decision::Allow(endpoint) => self.proxy(connection, &caller, &endpoint, request).await,
            Decision::ServedByGuestPush { image } => {
                let parts = request.into_parts().0;
                caller.while_good(self.push(&caller, &image, &parts)).await
            }
            Decision::Refuse(refusal) => return refused(refusal),
        };
        done.unwrap_or_else(|problem| docker_problem(&problem))
    }

    /// A stream that may carry builds: they are recorded.
    fn carry(&self, caller: &Caller, source: BuildSource) -> Carried {
        self.0.builds.carry(&caller.key, caller.asker(source))
    }

    /// A build of dockerd's classic builder.
    fn transcribe(&self, caller: &Caller, spec: BuildSpec, status: StatusCode) -> Tap {
        let asker = caller.asker(BuildSource::Docker);
        let broken = status.is_server_error();
        self.0.builds.transcribe(&caller.key, asker, spec, broken)
    }

    /// Who asks, and for which builder.
    async fn caller(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
    ) -> Result<Caller, Problem> {
        check_same_site(headers, None)?;
        let credential = Credential::of(headers, connection.certificate());
        let principal = authenticate(&self.0.authenticator, credential, connection.peer()).await?;
        connection.authenticated(principal.org())?;
        principal.require(TokenRole::Deploy)?;
        let asked = headers::text(headers, ORG_HEADER)?;
        let entered = self.0.authenticator.enter_recent(&principal, asked).await?;
        let choose = |name, default: &str| match headers::text(headers, name)? {
            None => Ok(default.to_owned()),
            Some(label) if is_label(label) => Ok(label.to_owned()),
            Some(_) => Err(Problem::new(
                Code::Invalid,
                format!("{name} is not a label"),
            )),
        };
        let key = BuilderKey {
            org: entered.org.id.clone(),
            region: choose(REGION_HEADER, &entered.org.default_region)?,
            arch: choose(ARCH_HEADER, &entered.org.default_arch)?,
        };
        Ok(Caller {
            principal,
            entered,
            key,
        })
    }
}

/// From a credential, or the lack of one, to who it is.
///
/// # Errors
/// [`Code::Unauthenticated`], [`Code::Limit`] after too many failures, [`Code::Unavailable`].
pub(crate) async fn authenticate(
    authenticator: &Authenticator,
    credential: Result<Credential, CredentialError>,
    peer: IpAddr,
) -> Result<Principal, Problem> {
    let credential = credential.map_err(|error| match error {
        CredentialError::Missing => Denial::Missing.problem(),
        CredentialError::Malformed => Denial::Malformed.problem(),
    })?;
    match authenticator.authenticate(&credential, peer).await {
        AuthOutcome::Allowed(principal) => Ok(principal),
        AuthOutcome::Denied(denial) => Err(denial.problem()),
        AuthOutcome::Unavailable => Err(Problem::new(
            Code::Unavailable,
            "credentials cannot be checked at the moment",
        )
        .hint("try again in a minute")),
    }
}

/// The token was good when the request came.
fn ended() -> Problem {
    Problem::new(
        Code::Unauthenticated,
        "the token has been revoked or has expired",
    )
}

fn refused(refusal: Refusal) -> Response<Body> {
    let (status, code) = match refusal {
        Refusal::Ambiguous(_) => (StatusCode::BAD_REQUEST, Code::Invalid),
        Refusal::TooLong => (StatusCode::URI_TOO_LONG, Code::Invalid),
        Refusal::NotForBuilders(_) => (StatusCode::FORBIDDEN, Code::Forbidden),
        Refusal::Unknown => (StatusCode::NOT_FOUND, Code::NotFound),
    };
    docker_refusal(status, &refusal.to_string(), code)
}

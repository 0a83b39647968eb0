//! Registry logins, as the builder asks for them. The builder fetches registry tokens by itself: no token is made here.
//!
//! It must not know where logins are kept.

use bollard_buildkit_proto::moby::filesync::v1 as proto;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// A login at one registry. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    /// Registry host, with port if any. Docker Hub by any of its names, as in Docker's own configuration.
    pub registry: String,
    /// User name; empty when the secret is an identity token.
    pub username: String,
    /// Password or token.
    pub secret: String,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryLogin")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Where the logins of registries are. Asked when the builder asks, and only for the registry that it asks for.
#[tonic::async_trait]
pub trait RegistryLogins: std::fmt::Debug + Send + Sync {
    /// The login of a registry host, or none. `docker.io` stands for Docker Hub's other names. A failure is reported elsewhere: an image
    /// that everybody may read needs no login.
    async fn find(&self, registry: &str) -> Option<RegistryLogin>;
}

#[tonic::async_trait]
impl RegistryLogins for Vec<RegistryLogin> {
    async fn find(&self, registry: &str) -> Option<RegistryLogin> {
        self.iter()
            .find(|login| canonical(&login.registry) == registry)
            .cloned()
    }
}

/// The service `moby.filesync.v1.Auth`.
#[derive(Debug, Clone)]
pub(super) struct Logins {
    logins: Arc<dyn RegistryLogins>,
}

impl Logins {
    pub(super) fn new(logins: Arc<dyn RegistryLogins>) -> Logins {
        Logins { logins }
    }
}

/// One name for each registry: without scheme and path, and Docker Hub's many names as one.
fn canonical(registry: &str) -> String {
    let rest = registry
        .strip_prefix("https://")
        .or_else(|| registry.strip_prefix("http://"));
    let host = rest
        .unwrap_or(registry)
        .split('/')
        .next()
        .unwrap_or_default();
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// BuildKit takes `Unavailable` as "no tokens from this client" and fetches them itself with the login.
fn no_tokens() -> Status {
    Status::unavailable("this client makes no registry tokens")
}

#[tonic::async_trait]
impl proto::auth_server::Auth for Logins {
    async fn credentials(
        &self,
        request: Request<proto::CredentialsRequest>,
    ) -> Result<Response<proto::CredentialsResponse>, Status> {
        let login = self.logins.find(&canonical(&request.get_ref().host)).await;
        // An empty answer means "go without"; an error would fail the build of a public image.
        let answer = login.map_or_else(proto::CredentialsResponse::default, |login| {
            proto::CredentialsResponse {
                username: login.username,
                secret: login.secret,
            }
        });
        Ok(Response::new(answer))
    }

    async fn fetch_token(
        &self,
        _request: Request<proto::FetchTokenRequest>,
    ) -> Result<Response<proto::FetchTokenResponse>, Status> {
        Err(no_tokens())
    }

    async fn get_token_authority(
        &self,
        _request: Request<proto::GetTokenAuthorityRequest>,
    ) -> Result<Response<proto::GetTokenAuthorityResponse>, Status> {
        Err(no_tokens())
    }

    async fn verify_token_authority(
        &self,
        _request: Request<proto::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<proto::VerifyTokenAuthorityResponse>, Status> {
        Err(no_tokens())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_registry_are_equal() {
        for (one, other) in [
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
            ("docker.io", "index.docker.io"),
            ("Registry.Example:5000", "https://registry.example:5000/v2/"),
        ] {
            assert_eq!(canonical(one), canonical(other));
        }
        assert_ne!(
            canonical("registry.example"),
            canonical("registry.example:5000")
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let login = RegistryLogin {
            registry: "r".into(),
            username: "u".into(),
            secret: "hidden".into(),
        };
        assert!(!format!("{:?}", Logins::new(Arc::new(vec![login]))).contains("hidden"));
    }
}

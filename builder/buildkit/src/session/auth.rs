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

/// The service `moby.filesync.v1.Auth`.
#[derive(Debug, Clone)]
pub(super) struct Logins {
    logins: Arc<[RegistryLogin]>,
}

impl Logins {
    pub(super) fn new(logins: Vec<RegistryLogin>) -> Logins {
        Logins {
            logins: logins.into(),
        }
    }

    fn of(&self, host: &str) -> Option<&RegistryLogin> {
        let wanted = canonical(host);
        self.logins
            .iter()
            .find(|login| canonical(&login.registry) == wanted)
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
        let login = self.of(&request.get_ref().host);
        // An empty answer means "go without"; an error would fail the build of a public image.
        let answer = login.map_or_else(proto::CredentialsResponse::default, |login| {
            proto::CredentialsResponse {
                username: login.username.clone(),
                secret: login.secret.clone(),
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
        assert!(!format!("{:?}", Logins::new(vec![login])).contains("hidden"));
    }
}

//! Registry logins and tokens, as the builder asks for them. With a login it fetches tokens by itself. Where there is none, a token that
//! somebody else lends may be passed on; none is made here.
//!
//! BuildKit asks whoever names an authority for tokens, and never for a login then. It hands what it got to other sessions that can sign with
//! the authority's key. Here nobody can: each session has its own tokens. It must not know where logins are kept, nor who lends.

use bollard_buildkit_proto::moby::filesync::v1 as proto;
use std::sync::Arc;
use std::time::Duration;
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

/// What is lent for a registry that there is no login for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lends {
    /// Nothing: who pulls there goes without.
    Nothing,
    /// Tokens for pulling. The name of who lends: random bytes that no other session has.
    Tokens([u8; 32]),
    /// Nothing, because the registry takes passwords alone: a pull fails.
    Password,
}

/// A token that was lent. `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct LentToken {
    /// As the registry's token server wrote it.
    pub token: String,
    /// How long it is good.
    pub lifetime: Duration,
}

impl std::fmt::Debug for LentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LentToken")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// Where the logins of registries are. Asked when the builder asks, and only for the registry that it asks for.
#[tonic::async_trait]
pub trait RegistryLogins: std::fmt::Debug + Send + Sync {
    /// The login of a registry host, or none. `docker.io` stands for Docker Hub's other names. A failure is reported elsewhere: an image
    /// that everybody may read needs no login.
    async fn find(&self, registry: &str) -> Option<RegistryLogin>;

    /// What is lent for a registry that [`RegistryLogins::find`] knows no login of.
    async fn lends(&self, _registry: &str) -> Lends {
        Lends::Nothing
    }

    /// A token for pulling from these repositories of a registry, for which tokens are lent.
    ///
    /// # Errors
    /// Why there is none, in words for whoever builds.
    async fn lend(&self, _registry: &str, _repositories: &[String]) -> Result<LentToken, String> {
        Err("no tokens are lent".to_owned())
    }
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

/// The repositories that are pulled from, if nothing else is asked for; else what else it is.
fn pulled(scopes: &[String]) -> Result<Vec<String>, &str> {
    let mut repositories = Vec::new();
    for scope in scopes.iter().flat_map(|it| it.split(' ')) {
        let repository = scope.strip_prefix("repository:");
        let repository = repository.and_then(|it| it.strip_suffix(":pull"));
        match repository {
            Some(name) if !name.is_empty() => repositories.push(name.to_owned()),
            Some(_) | None => return Err(scope),
        }
    }
    if repositories.is_empty() {
        return Err("nothing");
    }
    repositories.sort_unstable();
    repositories.dedup();
    Ok(repositories)
}

#[tonic::async_trait]
impl proto::auth_server::Auth for Logins {
    async fn credentials(
        &self,
        request: Request<proto::CredentialsRequest>,
    ) -> Result<Response<proto::CredentialsResponse>, Status> {
        let registry = canonical(&request.get_ref().host);
        if let Some(login) = self.logins.find(&registry).await {
            return Ok(Response::new(proto::CredentialsResponse {
                username: login.username,
                secret: login.secret,
            }));
        }
        match self.logins.lends(&registry).await {
            // "Go without": an error would fail the build of a public image.
            Lends::Nothing => Ok(Response::new(proto::CredentialsResponse::default())),
            // BuildKit looks whether another session's tokens may be used here. Those of one that goes without must not be: they are
            // good for less.
            Lends::Tokens(_) => Err(Status::unavailable("tokens are lent in place of a login")),
            Lends::Password => Err(Status::failed_precondition(format!(
                "{registry} takes passwords and gives no tokens, so the login that the org has stored is not used to pull: \
                 `docker login {registry}` on the computer that deploys"
            ))),
        }
    }

    async fn fetch_token(
        &self,
        request: Request<proto::FetchTokenRequest>,
    ) -> Result<Response<proto::FetchTokenResponse>, Status> {
        let request = request.into_inner();
        let registry = canonical(&request.host);
        match self.logins.lends(&registry).await {
            Lends::Tokens(_) => {}
            Lends::Nothing | Lends::Password => return Err(no_tokens()),
        }
        let repositories = pulled(&request.scopes).map_err(|scope| {
            Status::permission_denied(format!(
                "the login that the org has stored is used by BuildKit to pull alone, and it asks for {scope}: \
                 `docker login {registry}` on the computer that deploys"
            ))
        })?;
        // Realm and service are what the builder says. Who lends asks the registry itself.
        let lent = self.logins.lend(&registry, &repositories).await;
        let lent = lent.map_err(Status::permission_denied)?;
        Ok(Response::new(proto::FetchTokenResponse {
            token: lent.token,
            // BuildKit takes 0 for a minute.
            expires_in: i64::try_from(lent.lifetime.as_secs())
                .unwrap_or(i64::MAX)
                .max(1),
            issued_at: 0,
        }))
    }

    async fn get_token_authority(
        &self,
        request: Request<proto::GetTokenAuthorityRequest>,
    ) -> Result<Response<proto::GetTokenAuthorityResponse>, Status> {
        let registry = canonical(&request.get_ref().host);
        if self.logins.find(&registry).await.is_some() {
            return Err(no_tokens());
        }
        match self.logins.lends(&registry).await {
            Lends::Tokens(authority) => Ok(Response::new(proto::GetTokenAuthorityResponse {
                public_key: authority.to_vec(),
            })),
            Lends::Nothing | Lends::Password => Err(no_tokens()),
        }
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
    fn only_pulls_are_lent_for() {
        let of = |scopes: &[&str]| {
            let scopes: Vec<String> = scopes.iter().map(|it| (*it).to_owned()).collect();
            pulled(&scopes).map_err(str::to_owned)
        };
        assert_eq!(
            of(&[
                "repository:team/b:pull repository:a:pull",
                "repository:a:pull"
            ]),
            Ok(vec!["a".to_owned(), "team/b".to_owned()])
        );
        for other in [
            "repository:a:pull,push",
            "repository:a:*",
            "repository(plugin):a:pull",
            "registry:catalog:*",
            "repository::pull",
            "",
        ] {
            assert_eq!(of(&["repository:b:pull", other]), Err(other.to_owned()));
        }
        assert!(of(&[]).is_err());
    }

    /// Lends for one registry, has a login of another one.
    #[derive(Debug)]
    struct Lender;

    #[tonic::async_trait]
    impl RegistryLogins for Lender {
        async fn find(&self, registry: &str) -> Option<RegistryLogin> {
            (registry == "own").then(|| RegistryLogin {
                registry: registry.to_owned(),
                username: "u".to_owned(),
                secret: "s".to_owned(),
            })
        }

        async fn lends(&self, registry: &str) -> Lends {
            match registry {
                "own" | "lent" => Lends::Tokens([7; 32]),
                "basic" => Lends::Password,
                _ => Lends::Nothing,
            }
        }

        async fn lend(
            &self,
            _registry: &str,
            repositories: &[String],
        ) -> Result<LentToken, String> {
            match repositories {
                [one] if one == "team/base" => Ok(LentToken {
                    token: "hidden".to_owned(),
                    lifetime: Duration::from_millis(90_500),
                }),
                _ => Err("no such repository".to_owned()),
            }
        }
    }

    #[tokio::test]
    async fn tokens_are_lent_where_there_is_no_login_and_a_login_is_never_passed_by() {
        use proto::auth_server::Auth as _;
        let logins = Logins::new(Arc::new(Lender));
        let authority = async |host: &str| {
            let request = proto::GetTokenAuthorityRequest {
                host: host.to_owned(),
                salt: Vec::new(),
            };
            let answer = logins.get_token_authority(Request::new(request)).await;
            answer.map(|it| it.into_inner().public_key)
        };
        assert_eq!(authority("lent").await.unwrap(), [7; 32]);
        for host in ["own", "basic", "nobody"] {
            let refused = authority(host).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unavailable, "{host}");
        }
        let credentials = async |host: &str| {
            let host = host.to_owned();
            let request = Request::new(proto::CredentialsRequest { host });
            let answer = logins.credentials(request).await;
            answer.map(|it| it.into_inner().secret)
        };
        assert_eq!(credentials("own").await.unwrap(), "s");
        assert_eq!(credentials("nobody").await.unwrap(), "");
        // Else it would be given the tokens of a session that went without.
        assert!(credentials("lent").await.is_err());
        let told = credentials("basic").await.unwrap_err();
        assert!(told.message().contains("`docker login basic`"), "{told}");

        let fetch = async |scope: &str| {
            let request = proto::FetchTokenRequest {
                host: "lent".to_owned(),
                realm: "https://elsewhere.example/token".to_owned(),
                scopes: vec![scope.to_owned()],
                ..proto::FetchTokenRequest::default()
            };
            let answer = logins.fetch_token(Request::new(request)).await;
            answer.map(Response::into_inner)
        };
        let lent = fetch("repository:team/base:pull").await.unwrap();
        assert_eq!((&*lent.token, lent.expires_in), ("hidden", 90));
        for scope in ["repository:team/base:pull,push", "repository:other:pull"] {
            let refused = fetch(scope).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{scope}");
        }
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

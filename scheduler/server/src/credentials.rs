//! Registry credentials of orgs: sealed on their way into the store, opened on their way out of it.
//!
//! Must not know: who asks, what they are used for.

use crate::bounds::STORED_TEXT_BYTES_MAX;
use crate::clock::now;
use crate::entropy::entropy;
use crate::problem::{Code, Problem};
use crate::seal::Sealer;
use crate::text::misleads;
use slipway_core::build::RegistryCredential;
use slipway_core::id::{CredentialId, OrgId};
use slipway_store::{SealedCredential, Store};
use std::sync::Arc;

/// The registry that a name without a host means.
const DEFAULT_REGISTRY: &str = "docker.io";

/// The sealed store; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
}

impl Credentials {
    pub(crate) fn new(store: Arc<dyn Store>, sealer: Sealer) -> Self {
        Self {
            store,
            sealer: Arc::new(sealer),
        }
    }

    /// The org's credential for a registry, in clear.
    pub(crate) async fn get(
        &self,
        org: &OrgId,
        registry: &str,
    ) -> Result<Option<RegistryCredential>, Problem> {
        let registry = canonical(registry);
        let Some(row) = self.store.credential_for(org, &registry).await? else {
            return Ok(None);
        };
        let clear = self
            .sealer
            .open_sealed(org, &registry, &row.sealed)
            .map_err(|error| Problem::internal(&error))?;
        let password = String::from_utf8(clear).map_err(|error| Problem::internal(&error))?;
        Ok(Some(RegistryCredential {
            registry,
            username: row.username,
            password,
        }))
    }

    /// Whether the org has a credential for a registry.
    pub(crate) async fn has(&self, org: &OrgId, registry: &str) -> Result<bool, Problem> {
        let found = self.store.credential_for(org, &canonical(registry)).await?;
        Ok(found.is_some())
    }

    /// Seals a credential; replaces the org's one for that registry.
    pub(crate) async fn put(
        &self,
        org: &OrgId,
        credential: RegistryCredential,
    ) -> Result<SealedCredential, Problem> {
        let registry = canonical(&credential.registry);
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if registry.is_empty() || registry.len() > 255 || !registry.bytes().all(is_host) {
            return Err(
                Problem::new(Code::Invalid, "the registry is not a host name")
                    .hint("like registry.example:5000, without https:// and path"),
            );
        }
        let too_long = [&credential.username, &credential.password]
            .into_iter()
            .any(|text| text.len() > STORED_TEXT_BYTES_MAX);
        if too_long || credential.password.is_empty() {
            return Err(Problem::new(
                Code::Invalid,
                "the password is empty or too long",
            ));
        }
        if credential.username.chars().any(misleads) {
            return Err(Problem::new(
                Code::Invalid,
                "the user name has control characters or ones that are not seen",
            ));
        }
        let sealed = self
            .sealer
            .seal(org, &registry, credential.password.as_bytes())
            .map_err(|error| Problem::internal(&error))?;
        let row = SealedCredential {
            id: CredentialId::from_entropy(entropy()?),
            org: org.clone(),
            registry: registry.clone(),
            username: credential.username,
            sealed,
            created_at: now(),
        };
        self.store.put_credential(&row).await?;
        // A replaced row may have kept its id.
        Ok(self
            .store
            .credential_for(org, &registry)
            .await?
            .unwrap_or(row))
    }

    /// Removes the org's credential for a registry. Absent is fine; gives whether there was one.
    pub(crate) async fn remove(&self, org: &OrgId, registry: &str) -> Result<bool, Problem> {
        match self.store.credential_for(org, &canonical(registry)).await? {
            Some(row) => {
                self.store.delete_credential(org, &row.id).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// The registry that an image's name says, by Docker's rule: the first part is a host if it has a dot or a colon, or is
/// `localhost`.
pub(crate) fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => DEFAULT_REGISTRY,
    }
}

/// One spelling of each registry: without scheme and path, in lower case, and one name for Docker Hub.
pub(crate) fn canonical(registry: &str) -> String {
    let host = registry
        .trim()
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let host = host
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_told_from_repositories() {
        for (image, registry) in [
            ("debian", "docker.io"),
            ("library/debian", "docker.io"),
            ("localhost/a", "localhost"),
            ("r.example/a/b", "r.example"),
            ("10.0.0.1:5000/a", "10.0.0.1:5000"),
            ("[::1]:5000/a", "[::1]:5000"),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
        assert_eq!(canonical("https://Index.Docker.io/v1/"), "docker.io");
        assert_eq!(canonical("R.example:5000"), "r.example:5000");
    }
}

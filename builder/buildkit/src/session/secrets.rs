//! Build secrets, read when a step asks for one. It must not know what they are for; it keeps no copy.

use crate::limits;
use bollard_buildkit_proto::moby::buildkit::secrets::v1 as proto;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Where a secret comes from. `Debug` never shows its bytes.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, read each time it is asked for.
    File(PathBuf),
    /// A variable of this process's environment.
    Env(String),
    /// The secret itself.
    Bytes(Vec<u8>),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SecretSource::File(path) => f.debug_tuple("File").field(path).finish(),
            SecretSource::Env(name) => f.debug_tuple("Env").field(name).finish(),
            SecretSource::Bytes(_) => f.write_str("Bytes(..)"),
        }
    }
}

/// The service `moby.buildkit.secrets.v1.Secrets`.
#[derive(Debug, Clone)]
pub(super) struct Secrets {
    sources: Arc<BTreeMap<String, SecretSource>>,
}

impl Secrets {
    pub(super) fn new(sources: BTreeMap<String, SecretSource>) -> Secrets {
        Secrets {
            sources: Arc::new(sources),
        }
    }
}

#[tonic::async_trait]
impl proto::secrets_server::Secrets for Secrets {
    async fn get_secret(
        &self,
        request: Request<proto::GetSecretRequest>,
    ) -> Result<Response<proto::GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let source = self.sources.get(&id).cloned();
        // BuildKit knows an optional secret from a required one by this code.
        let source = source.ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        let name = id.clone();
        let data = tokio::task::spawn_blocking(move || read(&name, source))
            .await
            .map_err(|_| Status::internal(format!("secret {id}: could not be read")))??;
        Ok(Response::new(proto::GetSecretResponse { data }))
    }
}

fn read(id: &str, source: SecretSource) -> Result<Vec<u8>, Status> {
    let data = match source {
        SecretSource::Bytes(bytes) => bytes,
        SecretSource::Env(variable) => std::env::var_os(&variable)
            .ok_or_else(|| {
                Status::not_found(format!("secret {id}: variable {variable} is not set"))
            })?
            .into_encoded_bytes(),
        SecretSource::File(path) => read_file(&path).map_err(|error| {
            Status::failed_precondition(format!("secret {id}: read {}: {error}", path.display()))
        })?,
    };
    if data.len() > limits::SECRET_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "secret {id}: larger than {} KiB",
            limits::SECRET_BYTES_MAX >> 10
        )));
    }
    Ok(data)
}

/// Reads at most one byte over the bound: a secret that is `/dev/zero` must not eat all memory.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::new();
    let bound = u64::try_from(limits::SECRET_BYTES_MAX)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    std::fs::File::open(path)?
        .take(bound)
        .read_to_end(&mut data)?;
    Ok(data)
}

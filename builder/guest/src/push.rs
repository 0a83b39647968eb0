//! Pushes an image of dockerd's to a registry, from its layers on the cache volume.
//!
//! It must not know who asked, nor how progress is shown.

use crate::docker::{Docker, DockerError};
use crate::engine::{CONTAINERD_ROOT, DATA_ROOT, ENGINE_PID_FILE};
use crate::guest::Guest;
use crate::ledger::{Closed, Work};
use crate::loans::Borrower;
use crate::store::ImageStore;
use slipway_core::build::{Fault, PushProgress, PushState, RegistryCredential, Statement};
use slipway_core::compression::Compression;
use slipway_registry_push as registry;
use slipway_registry_push::{
    Blame, Codec, Content, Credential, Digest, DockerStore, Export, Layout, Platform, PushError,
    PushOptions, Pushed, SourceError, Target, TargetError,
};
use std::path::Path;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Which blob each layer became and where it is, beside the layers: a layer is compressed once.
const INDEX: &str = "/var/lib/docker/slipway-push-index";

/// Why a push did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushFailure {
    /// The machine is on its way down.
    #[error("{0}")]
    Closed(#[from] Closed),
    /// The name is none that can be pushed to.
    #[error("the image cannot be pushed by its name")]
    Target(#[from] TargetError),
    /// The image is not there or cannot be read.
    #[error("cannot read the image")]
    Source(#[from] SourceError),
    /// dockerd did not say what the image is.
    #[error("look the image up")]
    Docker(#[source] DockerError),
    /// The registry or the way to it failed.
    #[error("push")]
    Push(#[source] Box<PushError>),
    /// Nobody waits for it any more.
    #[error("the push was given up")]
    Dropped,
    /// The guest failed inside.
    #[error("the push broke off")]
    Broken(#[source] tokio::task::JoinError),
}

impl PushFailure {
    /// Whose fault it is.
    pub(crate) fn fault(&self) -> Fault {
        let blame = match self {
            PushFailure::Target(_) => Blame::User,
            PushFailure::Closed(_)
            | PushFailure::Broken(_)
            | PushFailure::Docker(_)
            | PushFailure::Dropped => Blame::Local,
            PushFailure::Source(source) => source.blame(),
            PushFailure::Push(error) => error.blame(),
        };
        match blame {
            Blame::User => Fault::User,
            Blame::Registry | Blame::Network | Blame::Local => Fault::System,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            PushFailure::Target(_) => Some("name it as registry/repository:tag"),
            PushFailure::Closed(_)
            | PushFailure::Broken(_)
            | PushFailure::Docker(_)
            | PushFailure::Dropped => Some("try again"),
            PushFailure::Source(source) => source.hint(),
            PushFailure::Push(error) if lacks_credential(error) => Some(
                "store a login with `slipway registry login REGISTRY --username NAME`, or `docker login` where you deploy",
            ),
            PushFailure::Push(error) if matches!(**error, PushError::Unreachable { .. }) => Some(
                "check the host and port; builders reach private addresses, and registries without TLS, only where the farm's operator allows it",
            ),
            PushFailure::Push(error) => error.hint(),
        }
    }
}

fn lacks_credential(error: &PushError) -> bool {
    matches!(
        error,
        PushError::Unauthorized {
            anonymous: true,
            ..
        }
    )
}

/// A push whose image may not be there yet.
pub(crate) struct Prepared {
    push: registry::Push,
    index: Index,
}

/// What is pushed of an index of which not all is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Index {
    /// The image for this machine's platform: it was pulled for that alone.
    MayLack,
    /// Nothing.
    Whole,
}

/// What pushes may show to registries.
pub(crate) struct Logins<'a> {
    /// Credentials that came with the request.
    pub(crate) given: Vec<&'a RegistryCredential>,
    /// The way to those that the control plane keeps.
    pub(crate) borrower: Option<&'a Borrower>,
}

/// Prepares a push to `target` with that of the logins which is its registry's; nobody is asked anything yet.
pub(crate) fn prepare(
    guest: &Guest,
    target: &str,
    logins: &Logins<'_>,
    compression: Option<Compression>,
) -> Result<Prepared, PushFailure> {
    let target = Target::parse(target)?;
    let mut fitting = logins.given.iter().filter_map(|it| fitting(it, &target));
    let credential = fitting.next();
    let lender = logins.borrower.filter(|_| credential.is_none());
    let options = PushOptions {
        insecure: guest.config.insecure_registries.clone(),
        extra_roots_pem: roots(&guest.config.ca_pem),
        http_proxy: guest.config.proxies.http.clone(),
        https_proxy: guest.config.proxies.https.clone(),
        no_proxy: guest.config.proxies.none.join(","),
        index: Some(INDEX.into()),
        lender: lender.and_then(|it| it.lender(target.registry())),
        codec: compression.map(codec_of).unwrap_or_default(),
        ..PushOptions::default()
    };
    let push = registry::Push::new(&target, credential.as_ref(), &options)
        .map_err(|error| PushFailure::Push(Box::new(error)))?;
    let index = Index::MayLack;
    Ok(Prepared { push, index })
}

impl Prepared {
    /// Asks the registry whether it would take this push; waits for an answer that says no by the user's fault.
    pub(crate) fn refusal(&self) -> impl Future<Output = PushFailure> + Send + use<> {
        let checker = self.push.checker();
        async move {
            match checker.check().await {
                Err(error) if error.blame() == Blame::User => PushFailure::Push(Box::new(error)),
                // What else goes wrong may be over when the push begins.
                Ok(()) | Err(_) => std::future::pending().await,
            }
        }
    }

    /// Refuses an index of which not all is there.
    pub(crate) fn whole(mut self) -> Prepared {
        self.index = Index::Whole;
        self
    }

    /// Begins to send what dockerd exports from now on, if whoever is asked says that nobody else builds.
    pub(crate) fn send_ahead<F>(
        &mut self,
        store: ImageStore,
        is_alone: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = bool> + Send,
    {
        let Some(export) = export(store) else {
            tracing::debug!("dockerd's process is not known: nothing is sent ahead");
            return;
        };
        self.push.send_ahead(export, is_alone);
    }

    /// Pushes the image of this name or id. `progress` is called often and must not block. Dropping the future ends the push; a push
    /// that is not done leaves no tag.
    pub(crate) async fn image(
        self,
        guest: &Guest,
        image: &str,
        progress: impl Fn(PushProgress) + Send + Sync + 'static,
    ) -> Result<Pushed, PushFailure> {
        let in_flight = guest.books.begin(Work::Push)?;
        let place = place(guest, image).await?;
        let dropped = CancellationToken::new();
        let _guard = dropped.clone().drop_guard();
        let runtime = Handle::current();
        // On a thread of its own: opening the image blocks, and the push's future cannot move between threads.
        let pushed = tokio::task::spawn_blocking(move || {
            // Until the last byte is no longer read: dropping this future must not let the image be collected before.
            let _in_flight = in_flight;
            let content = place.open(self.index)?;
            let told = |news: registry::Progress| progress(progress_of(news));
            let push = self.push.content(content, told);
            runtime
                .block_on(dropped.run_until_cancelled(push))
                .ok_or(PushFailure::Dropped)?
                .map_err(|error| PushFailure::Push(Box::new(error)))
        });
        pushed.await.map_err(PushFailure::Broken)?
    }
}

/// Where layers are exported. None where dockerd does not say its process.
fn export(store: ImageStore) -> Option<Export> {
    match store {
        ImageStore::Classic => {
            let process = std::fs::read_to_string(ENGINE_PID_FILE).ok()?;
            Some(Export::Dockerd {
                root: DATA_ROOT.into(),
                process: process.trim().parse().ok()?,
            })
        }
        ImageStore::Containerd => Some(Export::Containerd {
            root: CONTAINERD_ROOT.into(),
        }),
    }
}

fn roots(pem: &str) -> Vec<Vec<u8>> {
    if pem.is_empty() {
        return Vec::new();
    }
    vec![pem.as_bytes().to_vec()]
}

/// Where an image is read.
enum Place {
    /// In dockerd's own store, by name or id.
    Classic(String),
    /// In containerd's content store, which knows no names.
    Containerd(Digest, Platform),
}

impl Place {
    fn open(&self, index: Index) -> Result<Content, SourceError> {
        match self {
            Place::Classic(image) => {
                let image = DockerStore::open(Path::new(DATA_ROOT))?.image(image)?;
                Ok(Content::Image(image))
            }
            Place::Containerd(digest, platform) => {
                let layout = Layout::containerd(Path::new(CONTAINERD_ROOT))?;
                content(&layout, digest, platform, index)
            }
        }
    }
}

fn content(
    layout: &Layout,
    digest: &Digest,
    platform: &Platform,
    index: Index,
) -> Result<Content, SourceError> {
    match layout.whole(digest) {
        Err(SourceError::NoImage { .. } | SourceError::NoLayer { .. })
            if index == Index::MayLack =>
        {
            layout.by_digest(digest, platform).map(Content::Image)
        }
        whole => whole,
    }
}

/// What is attested of an image in containerd's store. Nothing, where it cannot be read: the registry has it.
pub(crate) async fn statements(image: String) -> Vec<Statement> {
    let reading = tokio::task::spawn_blocking(move || {
        let digest = Digest::parse(&image).map_err(|_| SourceError::NoImage { name: image })?;
        Layout::containerd(Path::new(CONTAINERD_ROOT))?.statements(&digest)
    });
    let read = match reading.await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => {
            tracing::warn!(%error, "statements were not read");
            return Vec::new();
        }
        Err(_) => return Vec::new(),
    };
    let told = |statement: registry::Statement| Statement {
        platform: statement.platform,
        predicate_type: statement.predicate_type,
        digest: statement.digest.to_string(),
        size_bytes: statement.size_bytes,
        text: statement.text,
    };
    read.into_iter().map(told).collect()
}

async fn place(guest: &Guest, image: &str) -> Result<Place, PushFailure> {
    match guest.store {
        ImageStore::Classic => Ok(Place::Classic(image.to_owned())),
        ImageStore::Containerd => in_containerd(&guest.docker, image).await,
    }
}

async fn in_containerd(docker: &Docker, image: &str) -> Result<Place, PushFailure> {
    let name = image.to_owned();
    let found = match docker.image(image).await {
        Err(DockerError::Refused {
            status: http::StatusCode::NOT_FOUND,
            ..
        }) => return Err(SourceError::NoImage { name }.into()),
        found => found.map_err(PushFailure::Docker)?,
    };
    let digest = Digest::parse(&found.id).map_err(|_| SourceError::NoImage { name })?;
    let platform = Platform {
        os: found.os,
        architecture: found.architecture,
        variant: found.variant.filter(|variant| !variant.is_empty()),
    };
    Ok(Place::Containerd(digest, platform))
}

/// The credential, if it is for the registry that is pushed to; any other registry never sees it.
fn fitting(credential: &RegistryCredential, target: &Target) -> Option<Credential> {
    if registry_name(&credential.registry) != registry_name(target.registry()) {
        tracing::info!(
            registry = target.registry(),
            "the credential is for another registry and is not used"
        );
        return None;
    }
    Some(Credential {
        username: credential.username.clone(),
        password: credential.password.clone(),
    })
}

/// Docker clients write a registry with scheme and path at times, and Docker Hub by three names.
fn registry_name(text: &str) -> String {
    let host = text.split_once("://").map_or(text, |(_scheme, rest)| rest);
    let host = host
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

fn codec_of(compression: Compression) -> Codec {
    match compression {
        Compression::Gzip(level) => Codec::Gzip { level },
        Compression::Zstd(level) => Codec::Zstd { level },
    }
}

fn progress_of(news: registry::Progress) -> PushProgress {
    PushProgress {
        item: news.item,
        state: match news.state {
            registry::PushState::Waiting => PushState::Waiting,
            registry::PushState::Pushing => PushState::Pushing,
            registry::PushState::Pushed => PushState::Pushed,
            registry::PushState::Exists => PushState::Exists,
            registry::PushState::Mounted => PushState::Mounted,
        },
        current: news.current,
        total: news.total,
        compressed: news.compressed,
        sent: news.sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_for_its_own_registry_only() {
        for (registry, target, fits) in [
            ("reg.example:5000", "reg.example:5000/a/b:1", true),
            ("https://REG.example:5000/v2/", "reg.example:5000/a", true),
            ("https://index.docker.io/v1/", "someone/app", true),
            ("reg.example", "reg.example:5000/a", false),
            ("reg.example", "reg.example.attacker/a", false),
            ("", "reg.example/a", false),
        ] {
            let credential = RegistryCredential {
                registry: registry.to_owned(),
                username: "u".to_owned(),
                password: "p".to_owned(),
            };
            let target = Target::parse(target).expect("a reference");
            assert_eq!(
                fitting(&credential, &target).is_some(),
                fits,
                "{registry} {target}"
            );
        }
    }

    #[test]
    fn of_an_index_with_a_missing_part_a_pulled_image_is_pushed_and_a_built_one_is_not() {
        let root = tempfile::tempdir().expect("a directory");
        let blobs = root
            .path()
            .join("io.containerd.content.v1.content/blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("made");
        let put = |document: serde_json::Value| {
            let bytes = document.to_string().into_bytes();
            let digest = Digest::of(&bytes);
            let hex = digest.as_str().strip_prefix("sha256:").expect("its prefix");
            std::fs::write(blobs.join(hex), &bytes).expect("written");
            (digest.to_string(), bytes.len())
        };
        let (config, size) = put(serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        }));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let (manifest, size) = put(serde_json::json!({
            "schemaVersion": 2, "mediaType": kind, "layers": [],
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size,
            },
        }));
        let entry = |digest: &str, arch: &str| {
            serde_json::json!({
                "mediaType": kind, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": arch},
            })
        };
        let missing = Digest::of(b"nowhere").to_string();
        let (index, _) = put(serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry(&manifest, "amd64"), entry(&missing, "arm64")],
        }));
        let layout = Layout::containerd(root.path()).expect("a content store");
        let index = Digest::parse(&index).expect("a digest");
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
        };
        let pulled = content(&layout, &index, &platform, Index::MayLack);
        assert!(matches!(pulled, Ok(Content::Image(_))), "{pulled:?}");
        let built = content(&layout, &index, &platform, Index::Whole);
        assert!(
            matches!(
                built,
                Err(SourceError::NoImage { .. } | SourceError::NoLayer { .. })
            ),
            "{built:?}"
        );
    }
}

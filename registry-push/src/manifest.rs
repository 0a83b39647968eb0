//! The manifest of an image: Docker's schema 2, as Docker's own push writes it for the classic store; OCI's when a layer is zstd, which
//! Docker's knows no media type for, when it has annotations, which Docker's knows neither, or when the registry takes nothing else.
//!
//! Pure: knows what an image became, and nothing of how it gets to a registry.

use crate::digest::Digest;
use std::collections::BTreeMap;

/// Media type of a Docker schema 2 manifest.
pub(crate) const DOCKER_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an OCI image manifest (image-spec 1.1, manifest.md).
pub(crate) const OCI_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Media type of an OCI index (image-spec 1.1, image-index.md).
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of Docker's list of manifests, the same thing in other words.
pub(crate) const LIST_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of a statement about an image (in-toto).
pub(crate) const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Not at all.
    Tar,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// No layer of files: a statement about an image, as JSON.
    Statement,
}

/// A manifest, byte for byte, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// One blob of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blob<'a> {
    pub(crate) digest: &'a Digest,
    pub(crate) size: u64,
    pub(crate) packing: Packing,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    size: u64,
    digest: &'a str,
}

impl Manifest {
    /// Always the same bytes for the same image. Docker: distribution, docs/spec/manifest-v2-2; OCI: image-spec, manifest.md.
    pub(crate) fn of(
        config: &Digest,
        config_size: u64,
        layers: &[Blob<'_>],
        annotations: &BTreeMap<String, String>,
        as_oci: bool,
    ) -> Manifest {
        let is_oci = as_oci
            || !annotations.is_empty()
            || layers.iter().any(|layer| layer.packing == Packing::Zstd);
        let (media_type, config_type) = if is_oci {
            (OCI_TYPE, "application/vnd.oci.image.config.v1+json")
        } else {
            (
                DOCKER_TYPE,
                "application/vnd.docker.container.image.v1+json",
            )
        };
        let document = Document {
            schema_version: 2,
            media_type,
            config: Descriptor {
                media_type: config_type,
                size: config_size,
                digest: config.as_str(),
            },
            layers: layers
                .iter()
                .map(|layer| Descriptor {
                    media_type: layer_type(is_oci, layer.packing),
                    size: layer.size,
                    digest: layer.digest.as_str(),
                })
                .collect(),
            annotations,
        };
        Manifest {
            media_type: media_type.to_string(),
            // Texts and numbers always have a JSON form.
            bytes: serde_json::to_vec(&document).unwrap_or_default(),
        }
    }
}

fn layer_type(is_oci: bool, packing: Packing) -> &'static str {
    match (is_oci, packing) {
        (false, Packing::Tar) => "application/vnd.docker.image.rootfs.diff.tar",
        (false, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (true, Packing::Tar) => "application/vnd.oci.image.layer.v1.tar",
        (true, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (_, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (_, Packing::Statement) => STATEMENT_TYPE,
    }
}

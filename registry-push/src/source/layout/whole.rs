//! All that a digest names: one image, or an index with the images of each platform and what is attested of them (image-spec 1.1,
//! image-index.md; BuildKit, docs/attestations/attestation-storage.md).
//!
//! Where something is attested, every manifest stays byte for byte what it is, since the statements name it by its digest.

use super::{Descriptor, Document, Form, ImageSource, Layout, Platform, blob_name};
use crate::digest::Digest;
use crate::limits::{CONFIG_BYTES, INDEX_MANIFESTS, LAYERS, MANIFEST_BYTES, STATEMENT_BYTES};
use crate::manifest::{INDEX_TYPE, LIST_TYPE, Manifest, OCI_TYPE, Packing, STATEMENT_TYPE};
use crate::source::SourceError;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Which manifest an entry of an index attests something of.
const REFERENCE: &str = "vnd.docker.reference.digest";
/// What kind of statement a blob is.
const PREDICATE: &str = "in-toto.io/predicate-type";

/// All that a digest names.
#[derive(Debug, Clone)]
pub enum Content {
    /// One image.
    Image(ImageSource),
    /// Several manifests, with an index above them.
    Index(IndexSource),
}

/// An index whose manifests are all there.
#[derive(Debug, Clone)]
pub struct IndexSource {
    index: Manifest,
    /// In its order.
    pub(crate) manifests: Vec<ImageSource>,
}

/// What is attested of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Of the image; absent where the index does not say.
    pub platform: Option<String>,
    /// What it is about, such as `https://slsa.dev/provenance/v0.2`.
    pub predicate_type: String,
    /// Digest of the statement.
    pub digest: Digest,
    /// Bytes of the statement.
    pub size_bytes: u64,
    /// The statement, as JSON; absent where it is too long.
    pub text: Option<String>,
}

impl IndexSource {
    /// The index, with its manifests as they were pushed: digest and bytes of each, in order.
    pub(crate) fn with(&self, pushed: &[(Digest, Vec<u8>)]) -> Manifest {
        let Ok(mut document) = serde_json::from_slice::<Value>(&self.index.bytes) else {
            return self.index.clone();
        };
        let mut is_changed = false;
        let entries = document["manifests"].as_array_mut();
        for (entry, (digest, bytes)) in entries.into_iter().flatten().zip(pushed) {
            if entry["digest"] == digest.as_str() {
                continue;
            }
            is_changed = true;
            entry["digest"] = json!(digest.as_str());
            entry["size"] = json!(bytes.len());
            let manifest: Value = serde_json::from_slice(bytes).unwrap_or_default();
            if let Some(kind) = manifest["mediaType"].as_str() {
                entry["mediaType"] = json!(kind);
            }
        }
        if !is_changed {
            return self.index.clone();
        }
        Manifest {
            media_type: self.index.media_type.clone(),
            bytes: document.to_string().into_bytes(),
        }
    }
}

impl Layout {
    /// All that this digest names. Blocks on some small files.
    ///
    /// # Errors
    /// A manifest, config or layer of it is not there: an image that was fetched for one platform alone.
    pub fn whole(&self, digest: &Digest) -> Result<Content, SourceError> {
        let (bytes, document) = self.document(digest)?;
        let entry = Descriptor::of(digest);
        let Some(entries) = document.manifests else {
            let image = self.of_manifest(&entry, bytes, document, Form::Any)?;
            return Ok(Content::Image(image));
        };
        let name = blob_name(digest);
        if entries.len() > INDEX_MANIFESTS {
            let reason = format!("more than {INDEX_MANIFESTS} manifests");
            return Err(self.damaged(&name, reason));
        }
        let media_type = match document.media_type {
            Some(named) if named == LIST_TYPE => named,
            Some(_) | None => INDEX_TYPE.to_string(),
        };
        let form = if entries.iter().any(Descriptor::is_attestation) {
            Form::Kept
        } else if media_type == INDEX_TYPE {
            Form::Oci
        } else {
            Form::Any
        };
        let manifests = entries.iter().map(|entry| {
            let digest = self.digest(&name, &entry.digest)?;
            let (bytes, document) = self.document(&digest)?;
            if document.manifests.is_some() {
                return Err(self.damaged(&name, "indexes within indexes".to_string()));
            }
            self.are_there(&blob_name(&digest), &document)?;
            match entry.is_attestation() {
                true => self.attestation(bytes, document),
                false => self.of_manifest(entry, bytes, document, form),
            }
        });
        let manifests = manifests.collect::<Result<Vec<_>, SourceError>>()?;
        Ok(Content::Index(IndexSource {
            index: Manifest { media_type, bytes },
            manifests,
        }))
    }

    /// What is attested in the index of this digest; nothing of an image without. Blocks on some small files.
    ///
    /// # Errors
    /// A part of it cannot be read.
    pub fn statements(&self, digest: &Digest) -> Result<Vec<Statement>, SourceError> {
        let (_, document) = self.document(digest)?;
        let entries = document.manifests.unwrap_or_default();
        let platforms: BTreeMap<&str, String> = entries
            .iter()
            .filter_map(|entry| Some((entry.digest.as_str(), entry.shown()?)))
            .collect();
        let name = blob_name(digest);
        let mut statements = Vec::new();
        let attesting = entries.iter().filter(|entry| entry.is_attestation());
        for entry in attesting.take(INDEX_MANIFESTS) {
            let subject = entry.annotation(REFERENCE).unwrap_or_default();
            let (_, document) = self.document(&self.digest(&name, &entry.digest)?)?;
            for layer in document.layers.unwrap_or_default().iter().take(LAYERS) {
                let Some(kind) = layer.annotation(PREDICATE) else {
                    continue;
                };
                let digest = self.digest(&name, &layer.digest)?;
                let text = match layer.size <= STATEMENT_BYTES {
                    true => String::from_utf8(self.checked(&digest, STATEMENT_BYTES)?).ok(),
                    false => None,
                };
                statements.push(Statement {
                    platform: platforms.get(subject).cloned(),
                    predicate_type: kind.to_string(),
                    digest,
                    size_bytes: layer.size,
                    text,
                });
            }
        }
        Ok(statements)
    }

    fn document(&self, digest: &Digest) -> Result<(Vec<u8>, Document), SourceError> {
        let bytes = self.checked(digest, MANIFEST_BYTES)?;
        let document = self.parse(&blob_name(digest), &bytes)?;
        Ok((bytes, document))
    }

    /// Statements about an image, in the place where an image has its layers. Its config names no files.
    fn attestation(&self, bytes: Vec<u8>, document: Document) -> Result<ImageSource, SourceError> {
        let name = blob_name(&Digest::of(&bytes));
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(self.damaged(&name, "no manifest".to_string()));
        };
        let config = self.checked(&self.digest(&name, &config.digest)?, CONFIG_BYTES)?;
        let layers = layers.iter().map(|layer| {
            if layer.media_type != STATEMENT_TYPE {
                return Err(SourceError::Unsupported {
                    media_type: layer.media_type.chars().take(200).collect(),
                });
            }
            let digest = self.digest(&name, &layer.digest)?;
            self.layer(&name, layer, digest, Packing::Statement, Form::Kept)
        });
        let layers = layers.take(LAYERS).collect::<Result<_, SourceError>>()?;
        Ok(ImageSource {
            config,
            layers,
            manifest: Some(Manifest {
                media_type: OCI_TYPE.to_string(),
                bytes,
            }),
            annotations: BTreeMap::new(),
            as_oci: true,
        })
    }

    /// Every layer has its blob.
    fn are_there(&self, name: &str, document: &Document) -> Result<(), SourceError> {
        let layers = document.layers.iter().flatten();
        for layer in layers {
            let digest = self.digest(name, &layer.digest)?;
            let blob = blob_name(&digest);
            if self.blobs.find(&blob)?.is_none() {
                return Err(SourceError::NoLayer {
                    layer: digest,
                    missing: self.blobs.place(&blob),
                });
            }
        }
        Ok(())
    }
}

impl Platform {
    /// The platform that an image's config names.
    pub fn of_config(config: &[u8]) -> Option<Platform> {
        let config: super::PlatformOf = serde_json::from_slice(config).ok()?;
        let is_named = !config.os.is_empty() && !config.architecture.is_empty();
        is_named.then_some(Platform {
            os: config.os,
            architecture: config.architecture,
            variant: config.variant.filter(|variant| !variant.is_empty()),
        })
    }
}

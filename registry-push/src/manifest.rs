//! The manifest, as Docker's own push writes it for the classic store.
//!
//! Pure: knows what an image became, and nothing of how it gets to a registry.

use crate::compress::Codec;
use crate::digest::Digest;
use crate::report::PushedLayer;

/// Media type of a Docker schema 2 manifest.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker image config.
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";

/// A schema 2 manifest (distribution, docs/spec/manifest-v2-2), always the same bytes for the same image.
pub(crate) fn manifest(
    config: &Digest,
    config_size: usize,
    layers: &[PushedLayer],
    codec: Codec,
) -> Vec<u8> {
    let descriptor = |media_type: &str, size: u64, digest: &Digest| serde_json::json!({ "mediaType": media_type, "size": size, "digest": digest.as_str() });
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor(codec.media_type(), layer.size_bytes, &layer.digest))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, config_size as u64, config),
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

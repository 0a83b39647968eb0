//! Images made in memory, and the proof that one arrived whole.

use crate::registry::Registry;
use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use slipway_registry_push::{Digest, ImageSource, LayerReader, LayerSource, Pushed, SourceError};
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A layer of made-up bytes, counted as they are read.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) diff_id: Digest,
    length: u64,
    seed: u64,
    pub(crate) read: Arc<AtomicU64>,
    pub(crate) opened: Arc<AtomicU64>,
}

/// Bytes that a fast gzip packs to about half.
struct MadeReader {
    left: u64,
    state: u64,
    read: Arc<AtomicU64>,
}

impl Made {
    pub(crate) fn new(length: u64, seed: u64) -> Made {
        let mut hasher = Sha256::new();
        let mut made = Made {
            diff_id: Digest::of(b""),
            length,
            seed,
            read: Arc::default(),
            opened: Arc::default(),
        };
        let mut reader = made.reader();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        made.diff_id = Digest::parse(&format!("sha256:{:x}", hasher.finalize())).unwrap();
        made.read.store(0, Ordering::SeqCst);
        made
    }

    fn reader(&self) -> MadeReader {
        MadeReader {
            left: self.length,
            state: self.seed | 1,
            read: self.read.clone(),
        }
    }
}

impl LayerReader for MadeReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let count = usize::try_from(self.left).unwrap().min(buffer.len());
        for word in buffer[..count].chunks_mut(8) {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Half of the bits, so that it packs.
            let bytes = ((self.state >> 20) & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        self.left -= count as u64;
        self.read.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
}

impl LayerSource for Made {
    fn diff_id(&self) -> &Digest {
        &self.diff_id
    }
    fn size_hint(&self) -> Option<u64> {
        Some(self.length)
    }
    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(self.reader()))
    }
}

/// An image of these layers.
pub(crate) fn image(layers: &[Made]) -> ImageSource {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let layers = layers
        .iter()
        .map(|layer| Arc::new(layer.clone()) as Arc<dyn LayerSource>)
        .collect();
    ImageSource::new(config.to_string().into_bytes(), layers).unwrap()
}

fn unpacked(media_type: &str, blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    if media_type.ends_with("zstd") {
        zstd::Decoder::new(blob)
            .unwrap()
            .read_to_end(&mut tar)
            .unwrap();
    } else if media_type.ends_with("gzip") {
        MultiGzDecoder::new(blob).read_to_end(&mut tar).unwrap();
    } else {
        tar.extend_from_slice(blob);
    }
    tar
}

/// Reads the registry's own files: tag, manifest, config and every layer down to its diffID.
pub(crate) fn assert_complete(
    registry: &Registry,
    repository: &str,
    tag: &str,
    image: &ImageSource,
    pushed: &Pushed,
) {
    assert_eq!(registry.tag(repository, tag).as_ref(), Some(&pushed.digest));
    assert_eq!(Digest::of(&pushed.manifest_bytes), pushed.digest);
    assert_eq!(
        registry.blob(&pushed.digest).as_ref(),
        Some(&pushed.manifest_bytes)
    );
    assert_eq!(registry.blob(&image.id()).as_deref(), Some(image.config()));
    let manifest: serde_json::Value = serde_json::from_slice(&pushed.manifest_bytes).unwrap();
    crate::spec::check_manifest(&manifest);
    crate::spec::check_config(&serde_json::from_slice(image.config()).unwrap());
    assert_eq!(manifest["config"]["digest"], image.id().as_str());
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), image.diff_ids().count());
    for (layer, diff_id) in layers.iter().zip(image.diff_ids()) {
        let digest = Digest::parse(layer["digest"].as_str().unwrap()).unwrap();
        let blob = registry.blob(&digest).unwrap();
        assert_eq!(Digest::of(&blob), digest);
        assert_eq!(layer["size"], blob.len() as u64);
        let media_type = layer["mediaType"].as_str().unwrap();
        assert_eq!(&Digest::of(&unpacked(media_type, &blob)), diff_id);
    }
}

//! The memory bound, with a layer much larger than it.

use crate::image::{Made, image};
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, Registry};
use sha2::{Digest as _, Sha256};
use slipway_registry_push::{
    Digest, ImageSource, LayerReader, LayerSource, PushOptions, SourceError, Target, limits, push,
};
use std::sync::Arc;

/// Set in the process that measures.
const ALONE: &str = "SLIPWAY_TEST_ALONE";

/// Whether this process runs this test alone; if not, one that does is run to its end, so that other tests' memory does not count.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let own = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(own);
    command
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1");
    print!("{}", crate::run(&mut command));
    false
}

/// Resident bytes of this process now.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

#[test]
fn a_push_stays_within_its_memory_whatever_the_layers() {
    if !is_alone("memory::a_push_stays_within_its_memory_whatever_the_layers") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let Some(registry) = Registry::start(&Access::Open) else {
            return;
        };
        // Slow enough that every queue fills up.
        let proxy = Proxy::start(registry.address, |seen, _| {
            if seen.method == http::Method::PATCH {
                Act::Slow(2 << 20)
            } else {
                Act::Forward
            }
        })
        .await;
        let mut layers: Vec<Made> = (0..5).map(|seed| Made::new(48 << 20, 2 * seed)).collect();
        layers.extend((10..40).map(|seed| Made::new(500 << 10, 2 * seed)));
        let image = image(&layers);
        let target = Target::parse(&proxy.target("app:v1")).unwrap();
        let options = PushOptions {
            threads: limits::THREADS_MAX,
            ..PushOptions::default()
        };
        let base = resident();
        let most = std::sync::atomic::AtomicUsize::new(base);
        let watch = |_| {
            most.fetch_max(resident(), std::sync::atomic::Ordering::SeqCst);
        };
        push(image, &target, None, &options, watch).await.unwrap();
        let grown = most.into_inner() - base;
        println!("{} MiB above the base of {} MiB", grown >> 20, base >> 20);
        assert!(
            grown <= limits::MEMORY_BYTES,
            "{} MiB above the base",
            grown >> 20
        );
    });
}

/// Bytes that nothing compresses, made as fast as they are read.
#[derive(Debug)]
struct Noise {
    diff_id: Digest,
    length: u64,
    block: Arc<[u8]>,
}

struct NoiseReader {
    position: u64,
    length: u64,
    block: Arc<[u8]>,
}

impl Noise {
    fn new(length: u64) -> Noise {
        let mut state = 1_u64;
        let block: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(100_003)
        .flatten()
        .collect();
        let mut noise = Noise {
            diff_id: Digest::of(b""),
            length,
            block: block.into(),
        };
        let mut reader = noise.open().unwrap();
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        noise.diff_id = Digest::parse(&format!("sha256:{:x}", hasher.finalize())).unwrap();
        noise
    }
}

impl LayerReader for NoiseReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let left = usize::try_from(self.length - self.position).unwrap();
        let from = usize::try_from(self.position).unwrap() % self.block.len();
        let count = left.min(buffer.len()).min(self.block.len() - from);
        buffer[..count].copy_from_slice(&self.block[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl LayerSource for Noise {
    fn diff_id(&self) -> &Digest {
        &self.diff_id
    }
    fn size_hint(&self) -> Option<u64> {
        Some(self.length)
    }
    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        Ok(Box::new(NoiseReader {
            position: 0,
            length: self.length,
            block: self.block.clone(),
        }))
    }
}

#[test]
fn two_gigabytes_that_nothing_compresses_take_no_more() {
    if !is_alone("memory::two_gigabytes_that_nothing_compresses_take_no_more") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let Some(registry) = Registry::start(&Access::Open) else {
            return;
        };
        let layer = Noise::new(2 << 30);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id.as_str()] },
        });
        let layers: Vec<Arc<dyn LayerSource>> = vec![Arc::new(layer)];
        let image = ImageSource::new(config.to_string().into_bytes(), layers).unwrap();
        let target = Target::parse(&registry.target("noise:v1")).unwrap();
        let base = resident();
        let most = std::sync::atomic::AtomicUsize::new(base);
        let watch = |_| {
            most.fetch_max(resident(), std::sync::atomic::Ordering::SeqCst);
        };
        let options = PushOptions::default();
        let pushed = push(image, &target, None, &options, watch).await.unwrap();
        assert!(pushed.size_bytes > 2 << 30);
        let grown = most.into_inner() - base;
        println!("{} MiB above the base of {} MiB", grown >> 20, base >> 20);
        assert!(grown <= limits::MEMORY_BYTES, "{} MiB", grown >> 20);
    });
}

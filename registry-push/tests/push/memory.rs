//! The memory bound, with a layer much larger than it.

use crate::image::{Made, image};
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, Registry};
use slipway_registry_push::{PushOptions, Target, limits, push};

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
                Act::Slow(1 << 20)
            } else {
                Act::Forward
            }
        })
        .await;
        let image = image(&[Made::new(64 << 20, 1), Made::new(64 << 20, 2)]);
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

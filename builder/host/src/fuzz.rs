//! What fuzzing calls: a function for each parser of foreign bytes, which panics when the parser breaks its word.
//! `loadtests/fuzz` runs them.

use crate::address::{Allowed, Ipv4Net};
use crate::mounts::mounts_below;
use crate::process::{mask, parse_start_ticks};
use crate::vm::fuzz as vm;
use crate::wire::{self, FrameError};
use slipway_core::limits::HOST_API_FRAME_BYTES_MAX;
use std::path::Path;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// A target: takes any bytes.
pub type Function = fn(&[u8]);

/// Name and function of each target.
pub const TARGETS: &[(&str, Function)] = &[
    ("host_address", address),
    ("host_frames", frames),
    ("host_proc", proc_files),
    ("qemu_monitor", vm::monitor),
];

/// An address range or a destination: what is taken prints as what it is.
fn address(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(net) = text.parse::<Ipv4Net>() {
        assert_eq!(net.to_string().parse::<Ipv4Net>(), Ok(net));
        assert!(net.contains(net.nth(0)) && net.size() >= 1);
    }
    if let Ok(allowed) = text.parse::<Allowed>() {
        assert!(!allowed.address.is_loopback() && allowed.port != 0);
    }
}

/// What a peer sends on the host's socket: as many bytes are kept as frames have, and no longer frame is begun.
fn frames(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => panic!("no runtime: {error}"),
        };
    }
    let exchange = async {
        let Ok((mut near, mut far)) = UnixStream::pair() else {
            panic!("no sockets");
        };
        let sent = async {
            let _ = near.write_all(bytes).await;
            let _ = near.shutdown().await;
        };
        let read = async {
            let mut at = 0;
            loop {
                match wire::read(&mut far).await {
                    Ok(frame) => {
                        assert_eq!(bytes.get(at + 4..at + 4 + frame.len()), Some(&frame[..]));
                        at += 4 + frame.len();
                    }
                    Err(FrameError::TooLong(length)) => {
                        assert!(length > HOST_API_FRAME_BYTES_MAX);
                        return;
                    }
                    Err(FrameError::Closed) => return assert_eq!(at, bytes.len()),
                    Err(FrameError::Broken(_)) => return assert!(at < bytes.len()),
                    Err(FrameError::TooSlow) => panic!("the peer has closed"),
                }
            }
        };
        tokio::join!(sent, read);
    };
    RUNTIME.with(|runtime| runtime.block_on(exchange));
}

/// Files of `/proc`, in which names that machines choose stand among the kernel's own words.
fn proc_files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (parse_start_ticks(&text), mask(&text, "SigCgt:"));
    let dir = Path::new("/run/slipway/machines/m");
    for mount in mounts_below(bytes, dir) {
        assert!(mount.starts_with(dir));
    }
}

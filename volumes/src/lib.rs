//! Volumes: disks that persist, are attached to at most one holder at a time, and never promise more than the pool
//! can hold.
//!
//! Owns: [`VolumeDriver`], the `file` driver (a sparse ext4 image behind a loop device), the pool's accounting, and
//! the conformance suite that any other driver must pass.
//!
//! Must not know: what a machine is (a holder is an opaque id), orgs, placement, or who asks.
//!
//! All functions block; callers on an async runtime run them on its blocking threads.

mod driver;
mod error;
mod file;
pub mod limits;
mod lock;
mod loopdev;
mod marker;
mod mounts;
mod tool;
mod trim;
mod undo;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

pub use driver::{Capabilities, Encryption, PoolReport, VolumeDriver};
pub use error::VolumeError;
pub use file::FileDriver;

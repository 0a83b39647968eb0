//! Volumes: disks that persist, are attached to at most one holder at a time, and never promise more than the pool
//! can hold.
//!
//! Owns: [`VolumeDriver`]; the `file` driver (sparse images behind loop devices); encryption; snapshots; the pool's
//! accounting; the format of an exported volume ([`stream`]); and the conformance suite that every driver must pass.
//!
//! ```text
//! pool (verbs) ─▶ backing: file
//!    └─▶ luks, fs, freeze, mounts, marker, lock, undo
//! ```
//!
//! Must not know: what a machine is (a holder is an opaque id), orgs, placement, who asks, or where keys come from.
//!
//! All functions block; callers on an async runtime run them on its blocking threads.

mod account;
mod backing;
mod bare_root;
mod confine;
mod difference;
mod driver;
mod error;
mod file;
mod freeze;
mod fs;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod limits;
mod lock;
mod loopdev;
mod luks;
mod lvm;
mod marker;
mod mounts;
mod pool;
pub mod stream;
mod tool;
mod trim;
mod undo;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

pub use account::Account;
pub use bare_root::BareRoot;
pub use driver::{
    AttachAs, Attachment, Capabilities, Encryption, NewVolume, PoolReport, SharedDisk, VolumeDriver,
};
pub use error::VolumeError;
pub use file::{Capacity, open_file_pool};
pub use lvm::{ThinPool, open_thin_pool};
pub use mounts::Mounted;

//! The vocabulary of Slipway and every decision it takes.
//!
//! Owns: ids, units, states and their transitions, the planner, the wire types of the host API and of the
//! guest API, and the limits. Pure: no I/O, no clock, no randomness of its own; callers pass `now` and bytes.
//!
//! Must not know: tokio, SQL, HTTP, or how anything is executed.

pub mod build;
pub mod ceilings;
pub mod compression;
pub mod end_record;
pub mod fence;
pub mod fsck;
pub mod generation;
pub mod guest_api;
pub mod host_api;
pub mod id;
pub mod idle;
pub mod isolation;
pub mod key;
pub mod last_words;
pub mod limits;
pub mod machine;
pub mod placement;
pub mod planner;
pub mod platform;
pub mod quota;
pub mod text;
pub mod time;
pub mod units;
pub mod vm;
pub mod volume;

//! Whole farms for tests and measurements: real processes, a real registry, real machines.
//!
//! Owns: starting and ending everything a test or a benchmark needs, under names of its own. Must not know: how any of it
//! works inside; it uses the binaries as a user would.

pub mod compare;
pub mod testbed;
pub mod vm;

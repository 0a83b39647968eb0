//! Both halves of the crate against a real dockerd. One binary, so that all tests share one dockerd.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod blame;
mod builds;
mod common;
mod ends;
mod registry;
mod same_as_docker;

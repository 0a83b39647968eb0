//! The host daemon with real machines: runc, the real builder image, real volumes and networks. Needs root.

#![expect(clippy::print_stdout, reason = "a skipped test says why")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the reply it wants"
)]

mod api;
mod client;
mod docker;
mod harness;
mod lives;
mod network;
mod walls;

#[test]
fn daemon_of_a_test() {
    harness::daemon_main();
}

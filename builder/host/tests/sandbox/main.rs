//! The host daemon with real machines of each driver: runc and QEMU, the real builder image, real volumes and networks. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the reply it wants"
)]

mod api;
mod client;
mod conformance;
mod fences;
mod filter;
mod harness;
mod hostile_cgroups;
mod kept;
mod killed_run;
mod leftovers;
mod lives;
mod mounts;
mod network;
mod rest;
mod upkeep;
mod vm_disk;
mod vm_walls;
mod volumes;
mod walls;

#[test]
fn daemon_of_a_test() {
    harness::daemon_main();
}

//! The rooms of the house, as their imports show them: none imports another in a circle, and none imports what its header rules out.
//! A room is a module with all below it.

mod circles;
mod headers;
mod house;

const CRATES: [&str; 13] = [
    "scheduler/core",
    "scheduler/store",
    "scheduler/server",
    "builder/host",
    "builder/guest",
    "builder/buildkit",
    "volumes",
    "volumes/stream",
    "registry-push",
    "cli",
    "cli/terminal",
    "daemon",
    "loadtests",
];

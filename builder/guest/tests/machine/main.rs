//! The guest in a real machine, with real daemons, on a real volume.

mod build;
mod harness;
mod lives;
mod room;
mod works;

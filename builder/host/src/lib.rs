//! `slipway host`: makes volumes, networks and machines on one computer, and decides nothing.
//!
//! Owns: the host API's server, the machine drivers, the machine network, machine records and their adoption after a restart.
//!
//! Must not know: orgs, tokens, SQL, or why a machine is wanted.

pub mod limits;
mod network;
mod program;
pub mod settings;
mod sys;
mod undo;

pub use settings::HostSettings;

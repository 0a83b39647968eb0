//! How the programs of the house talk with who types them: what is typed, exit codes and error texts, the two outputs, logs, small files that
//! people write, pages of help.
//!
//! Must not know: any command, the network, an operating system's own calls.

pub mod args;
pub mod exit;
pub mod file;
pub mod help;
pub mod limits;
pub mod log;
pub mod printer;
#[cfg(feature = "texts")]
pub mod texts;

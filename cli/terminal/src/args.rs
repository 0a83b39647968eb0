//! The command line, read by what a program defines.
//!
//! Must not know: any definition.

use crate::exit::{EXIT_OK, EXIT_USER};
use clap::Parser;
use std::process::ExitCode;

/// What was typed, or the code to end with: help and the version were shown, or what is mistyped was.
///
/// # Errors
/// [`EXIT_OK`] for help and version, which go to standard output; else [`EXIT_USER`] (clap's own code would be 2).
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        let is_mistake = error.use_stderr();
        let _ = error.print();
        ExitCode::from(if is_mistake { EXIT_USER } else { EXIT_OK })
    })
}

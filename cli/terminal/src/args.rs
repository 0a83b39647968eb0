//! The command line, read by what a program defines.
//!
//! Must not know: any definition.

use crate::exit::{EXIT_OK, EXIT_USER, Failure};
use crate::printer::{Format, Printer};
use clap::Parser;
use std::process::ExitCode;

/// What was typed, or the code to end with: help and the version were shown, or what is mistyped was.
///
/// # Errors
/// [`EXIT_OK`] for help and version, which go to standard output; else [`EXIT_USER`] (clap's own code would be 2).
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::from(EXIT_OK);
        }
        // What cannot be parsed has no format; the word alone says what its reader expects.
        if std::env::args_os().any(|word| word == "--json") {
            Printer::new(Format::Json).failure(&mistake(&error.render().to_string()));
        } else {
            let _ = error.print();
        }
        ExitCode::from(EXIT_USER)
    })
}

/// The first line of what clap says about a mistake is what is wrong; the rest is what to do.
fn mistake(text: &str) -> Failure {
    let (first, rest) = text.trim().split_once('\n').unwrap_or((text.trim(), ""));
    let rest = rest.trim();
    Failure::user(first.strip_prefix("error: ").unwrap_or(first))
        .maybe_hint((!rest.is_empty()).then(|| rest.to_owned()))
}

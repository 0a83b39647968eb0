//! `slipway-loadtest`: measurements against real alternatives.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    match arguments.first().map(String::as_str) {
        Some("bench") => match slipway_loadtests::bench::run(quick) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("error: {error:?}");
                ExitCode::from(2)
            }
        },
        _ => {
            eprintln!("usage: slipway-loadtest bench [--quick]");
            ExitCode::from(1)
        }
    }
}

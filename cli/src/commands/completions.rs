//! `slipway completions`.

use crate::args::{Cli, CompletionShell};
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::Printer;

/// Prints the script.
pub(crate) fn run(shell: CompletionShell, printer: Printer) -> Outcome<()> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "slipway", &mut script);
    printer.data(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

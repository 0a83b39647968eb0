//! Asks before what cannot be taken back.

use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::stdin_is_terminal;

/// Asks at the terminal, and goes on only after a yes. Without a terminal nobody can be asked: `what` says what it would do.
///
/// # Errors
/// The caller does not want it, or has not said `--yes` where nobody can be asked.
pub(super) fn confirm(question: &str, what: &str) -> Outcome<()> {
    if !stdin_is_terminal() {
        return Err(Failure::user(what).hint("say --yes to mean it"));
    }
    let terminal = console::Term::stderr();
    let answer = terminal
        .write_str(&format!("{question} type yes: "))
        .and_then(|()| terminal.read_line())
        .map_err(|error| Failure::user_caused("read the answer", &error))?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(Failure::interrupted("nothing was done"))
    }
}

//! `slipway context`: the logins of several servers.

use crate::args::ContextVerb;
use crate::caller::Caller;
use serde::Serialize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;

#[derive(Serialize)]
struct Shown {
    name: String,
    server: Option<String>,
    current: bool,
}

/// Does what the verb says.
///
/// # Errors
/// The caller's fault: there is no such context, or the file cannot be written.
pub(crate) fn run(verb: ContextVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let file = caller.file()?;
    let mut contexts = file.read()?;
    match verb {
        ContextVerb::List => {
            let current = contexts.chosen(caller.context()).to_owned();
            let all: Vec<Shown> = contexts
                .all()
                .into_iter()
                .map(|(name, stored)| Shown {
                    current: name == current,
                    server: stored.server,
                    name,
                })
                .collect();
            printer.list(["CONTEXT", "CURRENT", "SERVER"], &all, |context| {
                [
                    context.name.clone(),
                    if context.current { "yes" } else { "no" }.to_owned(),
                    context.server.clone().unwrap_or_default(),
                ]
            });
        }
        ContextVerb::Use { name } => {
            contexts.switch(&name)?;
            file.write(&contexts)?;
            printer.note(&format!("context {name} is in use from now on"));
            if let Some(named) = caller.context().filter(|named| *named != name) {
                printer.warn(&format!(
                    "SLIPWAY_CONTEXT or --context names {named}, which goes first where it is set"
                ));
            }
        }
        ContextVerb::Rm { name } => {
            if !contexts.forget(&name) {
                return Err(Failure::user(format!("there is no context '{name}'"))
                    .hint("`slipway context list` shows them"));
            }
            file.write(&contexts)?;
            printer.note(&format!(
                "the login of context {name} is removed; its token still works until it is revoked"
            ));
        }
    }
    Ok(())
}

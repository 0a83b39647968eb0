//! `slipway login` and `slipway logout`.

use crate::api::{ApiClient, queries};
use crate::args::LoginArgs;
use crate::caller::Caller;
use crate::contexts::Stored;
use crate::settings::{Access, ENV_TOKEN, read_ca};
use crate::token::Token;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Printer, stdin_is_terminal};
use std::io::Read;

/// Longest token or password that is read: what the server takes of a password.
const SECRET_BYTES_MAX: u64 = 16 << 10;

/// Tries the token, and stores it only if the server takes it.
///
/// # Errors
/// The caller's fault: no address, a bad authority, a token the server refuses.
pub(crate) async fn login(args: &LoginArgs, caller: &Caller, printer: Printer) -> Outcome<()> {
    let file = caller.file()?;
    let overrides = caller.overrides();
    let mut contexts = file.read()?;
    let context = contexts.chosen(caller.context()).to_owned();
    let old = contexts.login(&context).unwrap_or_default();
    let server = overrides
        .server
        .clone()
        .or(old.server.clone())
        .ok_or_else(|| {
            Failure::user("which server?")
                .hint("slipway login --server https://HOST:PORT --ca FILE")
        })?;
    let ca_pem = match &overrides.ca {
        Some(path) => Some(read_ca(path)?),
        None if old.server.as_ref() == Some(&server) => old.ca_pem,
        None => None,
    };
    let token = read_token(args, overrides.token.as_deref())?;
    let access = Access {
        server,
        ca_pem,
        token,
    };
    let client = ApiClient::new(&access)?;
    let viewer = queries::viewer(&client).await?;
    let stored = Stored {
        // As it was understood, so that the same server is never taken for another one.
        server: Some(access.server),
        ca_pem: access.ca_pem,
        token: Some(access.token),
    };
    contexts.log_in(&context, stored)?;
    file.write(&contexts)?;
    let who = viewer.describe();
    printer.note(&format!("logged in to {} as {who}", client.address()));
    printer.note(&format!(
        "stored in {} as context {context}",
        file.path().display()
    ));
    Ok(())
}

fn read_token(args: &LoginArgs, from_env: Option<&str>) -> Outcome<Token> {
    if !args.token_stdin {
        if let Some(text) = from_env {
            return Token::parse(text);
        }
        if !stdin_is_terminal() {
            return Err(Failure::user("no token was given")
                .hint(format!("pipe it in with --token-stdin, or set {ENV_TOKEN}")));
        }
        return Token::parse(&type_secret("the token")?);
    }
    Token::parse(&read_secret_stdin("the token")?)
}

/// A secret that is typed, and not shown.
///
/// # Errors
/// The caller's fault: the terminal cannot be read.
pub(super) fn type_secret(what: &str) -> Outcome<String> {
    let terminal = console::Term::stderr();
    terminal
        .write_str(&format!("{what} (not shown): "))
        .and_then(|()| terminal.read_secure_line())
        .map_err(|error| Failure::user_caused(format_args!("read {what}"), &error))
}

/// A secret from standard input.
///
/// # Errors
/// The caller's fault: unreadable or too long.
pub(super) fn read_secret_stdin(what: &str) -> Outcome<String> {
    let mut text = String::new();
    let read = std::io::stdin()
        .lock()
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| {
            Failure::user_caused(format_args!("read {what} from standard input"), &error)
        })?;
    if read as u64 > SECRET_BYTES_MAX {
        return Err(Failure::user(format!(
            "{what} is longer than {SECRET_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

/// Forgets what is stored.
///
/// # Errors
/// The caller's fault: the file cannot be removed.
pub(crate) fn logout(caller: &Caller, printer: Printer) -> Outcome<()> {
    let file = caller.file()?;
    // A damaged file is removed whole: logging in anew is what helps.
    let mut contexts = file.read().unwrap_or_default();
    let context = contexts.chosen(caller.context()).to_owned();
    let was_there = contexts.forget(&context);
    if !contexts.all().is_empty() {
        file.write(&contexts)?;
        printer.note(&if was_there {
            format!(
                "the login of context {context} is removed; the token itself still works until it is revoked"
            )
        } else {
            format!("context {context} has no login")
        });
        return Ok(());
    }
    match std::fs::remove_file(file.path()) {
        Ok(()) => printer.note(&format!(
            "{} is gone; the token itself still works until it is revoked",
            file.path().display()
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            printer.note("nobody was logged in")
        }
        Err(error) => {
            return Err(Failure::user_caused(
                format_args!("remove {}", file.path().display()),
                &error,
            ));
        }
    }
    Ok(())
}

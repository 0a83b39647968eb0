//! `slipway login` and `slipway logout`.

use crate::api::{ApiClient, queries};
use crate::args::LoginArgs;
use crate::caller::Caller;
use crate::settings::{Access, ENV_TOKEN, Stored, Token, read_ca};
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Printer, stdin_is_terminal};
use std::io::Read;

/// Longest token that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Tries the token, and stores it only if the server takes it.
///
/// # Errors
/// The caller's fault: no address, a bad authority, a token the server refuses.
pub(crate) async fn login(args: &LoginArgs, caller: &Caller, printer: Printer) -> Outcome<()> {
    let file = caller.file()?;
    let overrides = caller.overrides();
    let old = file.read().unwrap_or_default();
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
    file.write(&Stored {
        // As it was understood, so that the same server is never taken for another one.
        server: Some(access.server),
        ca_pem: access.ca_pem,
        token: Some(access.token),
    })?;
    let who = viewer.describe();
    printer.note(&format!("logged in to {} as {who}", client.address()));
    printer.note(&format!("stored in {}", file.path().display()));
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
        let typed = console::Term::stderr()
            .write_str("token (not shown): ")
            .and_then(|()| console::Term::stderr().read_secure_line());
        return match typed {
            Ok(text) => Token::parse(&text),
            Err(error) => Err(Failure::user_caused("read the token", &error)),
        };
    }
    Token::parse(&read_secret_stdin("the token")?)
}

/// A secret from standard input.
///
/// # Errors
/// The caller's fault: unreadable or too long.
pub(super) fn read_secret_stdin(what: &str) -> Outcome<String> {
    let mut text = String::new();
    let read = std::io::stdin()
        .lock()
        .take(TOKEN_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| {
            Failure::user_caused(format_args!("read {what} from standard input"), &error)
        })?;
    if read as u64 > TOKEN_BYTES_MAX {
        return Err(Failure::user(format!(
            "{what} is longer than {TOKEN_BYTES_MAX} bytes"
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

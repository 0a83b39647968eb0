//! `slipway whoami`.

use crate::api::queries;
use crate::api::shapes::TokenInfo;
use crate::caller::Caller;
use crate::moments::until;
use serde::Serialize;
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::Printer;

#[derive(Serialize)]
struct Whoami {
    context: String,
    server: String,
    org: Option<String>,
    token: TokenInfo,
}

/// Shows which server is asked, and as whom.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    let viewer = queries::viewer(&client).await?;
    let context = match caller.file() {
        Ok(file) => file.read()?.chosen(caller.context()).to_owned(),
        // Flags and environment alone say who is asked.
        Err(_) => String::new(),
    };
    let who = Whoami {
        context,
        server: client.address().to_string(),
        org: viewer.org.map(|org| org.slug),
        token: viewer.token,
    };
    let mut fields = vec![
        ("context", who.context.clone()),
        ("server", who.server.clone()),
        (
            "org",
            who.org
                .clone()
                .unwrap_or_else(|| "all: this is the installation's administrator".to_owned()),
        ),
        ("token", format!("{} ({})", who.token.name, who.token.id)),
        ("role", who.token.role.to_lowercase()),
    ];
    let end = who.token.expires_at.as_deref();
    fields.extend(end.map(|at| ("expires", until(at))));
    printer.record(&who, &fields);
    Ok(())
}

//! `slipway tokens`.

use crate::api::queries;
use crate::args::TokensVerb;
use crate::caller::Caller;
use crate::moments::{ago, until};
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::{Format, Printer};

/// Does what the verb says. A new token's secret is the only thing on standard output.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: TokensVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        TokensVerb::Create {
            name,
            org,
            app,
            role,
            expires,
        } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let made =
                queries::create_token(&client, &org, app.as_deref(), &name, role, expires).await?;
            match printer.format() {
                Format::Json => printer.json(&made),
                Format::Human => {
                    printer.note(&format!(
                        "token {} for org {org}; its secret is shown only now:",
                        made.token.id
                    ));
                    printer.data(&made.secret);
                }
            }
        }
        TokensVerb::List { org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let tokens = queries::tokens(&client, &org).await?;
            printer.list(
                ["TOKEN", "NAME", "ROLE", "CREATED", "LAST USED", "STATE"],
                &tokens,
                |token| {
                    [
                        token.id.clone(),
                        token.name.clone(),
                        token.role.to_lowercase(),
                        ago(&token.created_at),
                        token
                            .last_used_at
                            .as_deref()
                            .map_or_else(|| "never".to_owned(), ago),
                        match (&token.revoked_at, &token.expires_at) {
                            (Some(at), _) => format!("revoked {}", ago(at)),
                            (None, Some(at)) => format!("expires {}", until(at)),
                            (None, None) => "good".to_owned(),
                        },
                    ]
                },
            );
        }
        TokensVerb::Revoke { id } => {
            queries::revoke_token(&client, &id).await?;
            printer.note(&format!("token {id} is revoked"));
        }
    }
    Ok(())
}

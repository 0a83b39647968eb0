//! `slipway apps`.

use crate::api::queries;
use crate::args::AppsVerb;
use crate::caller::Caller;
use crate::moments::ago;
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::Printer;

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: AppsVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        AppsVerb::Create { name, org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let app = queries::create_app(&client, &org, &name).await?;
            printer.record(
                &app,
                &[
                    ("app", app.name.clone()),
                    ("id", app.id.clone()),
                    ("org", org),
                ],
            );
        }
        AppsVerb::List { org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let apps = queries::apps(&client, &org).await?;
            printer.list(["APP", "ROLE", "BILLABLE", "CREATED"], &apps, |app| {
                [
                    app.name.clone(),
                    app.role.to_lowercase(),
                    if app.billable { "yes" } else { "no" }.to_owned(),
                    ago(&app.created_at),
                ]
            });
        }
    }
    Ok(())
}

//! `slipway builds`.

use super::context::Caller;
use crate::api::ApiClient;
use crate::api::queries::{self, Build};
use crate::args::BuildsVerb;
use crate::deploy::show_log;
use crate::exit::Outcome;
use crate::printer::Printer;

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: BuildsVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        BuildsVerb::List { org, app, limit } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let builds = queries::builds(&client, &org, app.as_deref(), limit).await?;
            printer.list(
                ["BUILD", "APP", "STATE", "CREATED", "IMAGE"],
                &builds,
                |build| {
                    [
                        build.id.clone(),
                        build.app.clone(),
                        build.state.to_lowercase(),
                        build.created_at.clone(),
                        build.image.clone(),
                    ]
                },
            );
        }
        BuildsVerb::Show { id } => show(&queries::build(&client, &id).await?, printer),
        BuildsVerb::Logs { id } => logs(&client, &id, printer).await?,
        BuildsVerb::Cancel { id } => {
            let build = queries::cancel_build(&client, &id).await?;
            printer.note(&format!(
                "build {} is {}",
                build.id,
                build.state.to_lowercase()
            ));
        }
    }
    Ok(())
}

fn show(build: &Build, printer: Printer) {
    printer.record(
        build,
        &[
            ("build", build.id.clone()),
            ("app", build.app.clone()),
            ("image", build.image.clone()),
            ("state", build.state.to_lowercase()),
            ("created", build.created_at.clone()),
        ],
    );
}

async fn logs(client: &ApiClient, id: &str, printer: Printer) -> Outcome<()> {
    show_log(client, id, printer).await
}

//! `slipway registry`.

use super::login::{read_secret_stdin, type_secret};
use crate::api::queries;
use crate::args::RegistryVerb;
use crate::caller::Caller;
use crate::moments::ago;
use slipway_core::build::RegistryCredential;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Printer, stdin_is_terminal};

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: RegistryVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        RegistryVerb::Login {
            registry,
            username,
            password_stdin,
            org,
        } => {
            let password = if stdin_is_terminal() && !password_stdin {
                type_secret("the password")?
            } else {
                read_secret_stdin("the password")?
            };
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            if password.is_empty() {
                return Err(Failure::user("the password is empty")
                    .hint("pipe it in: slipway registry login HOST --username NAME < password"));
            }
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let credential = RegistryCredential {
                registry,
                username,
                password,
            };
            let stored = queries::set_credential(&client, &org, &credential).await?;
            printer.note(&format!(
                "pushes of org {org} to {} use it from now on, and so do base images of its deploys",
                stored.registry
            ));
        }
        RegistryVerb::List { org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let all = queries::credentials(&client, &org).await?;
            printer.list(["REGISTRY", "USER", "STORED"], &all, |credential| {
                [
                    credential.registry.clone(),
                    credential.username.clone(),
                    ago(&credential.created_at),
                ]
            });
        }
        RegistryVerb::Logout { registry, org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            if !queries::remove_credential(&client, &org, &registry).await? {
                return Err(
                    Failure::user(format!("org {org} has no credential for {registry}")).hint(
                        "`slipway registry list` shows the registries that it has credentials for",
                    ),
                );
            }
            printer.note(&format!("the credential of {registry} is gone"));
        }
    }
    Ok(())
}

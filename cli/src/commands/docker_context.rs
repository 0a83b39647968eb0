//! `slipway docker-context`, and what it shares with `slipway buildx`: a client certificate from the server.

use crate::api::queries;
use crate::args::{DockerContextArgs, DockerContextVerb};
use crate::caller::Caller;
use crate::docker_context::{ClientCertificate, DockerConfig};
use serde::Serialize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;

/// A certificate and where it is good.
pub(super) struct Issued {
    /// The certificate.
    pub(super) certificate: ClientCertificate,
    /// Org that it stands for.
    pub(super) org: String,
    /// `host:port` of the Docker gateway.
    pub(super) docker: String,
    /// `host:port` of the BuildKit gateway.
    pub(super) buildkit: String,
}

/// What was made.
#[derive(Serialize)]
struct Made<'a> {
    context: &'a str,
    org: &'a str,
    host: &'a str,
}

/// Has a certificate issued.
///
/// # Errors
/// Whoever's fault it was.
pub(super) async fn issue(caller: &Caller, org: Option<&str>) -> Outcome<Issued> {
    let client = caller.client()?;
    let place = queries::locate(&client, org).await?;
    let certificate = queries::issue_certificate(&client, &place.org).await?;
    Ok(Issued {
        certificate: ClientCertificate {
            ca_pem: certificate.ca,
            cert_pem: certificate.cert,
            key_pem: certificate.key,
        },
        org: place.org,
        docker: place.docker.authority(),
        buildkit: place.buildkit.authority(),
    })
}

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: DockerContextVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    match verb {
        DockerContextVerb::Create(args) => create(&args, caller, printer).await,
    }
}

async fn create(args: &DockerContextArgs, caller: &Caller, printer: Printer) -> Outcome<()> {
    let config = DockerConfig::locate()?;
    DockerConfig::check_name(&args.name)?;
    if config.has(&args.name) && !args.force {
        return Err(
            Failure::user(format!("there is a docker context {} already", args.name))
                .hint("choose another name, or replace it with --force"),
        );
    }
    let issued = issue(caller, args.org.org.as_deref()).await?;
    let host = format!("tcp://{}", issued.docker);
    let description = format!("Slipway builder of org {}", issued.org);
    config.write(&args.name, &description, &host, &issued.certificate)?;
    printer.record(
        &Made {
            context: &args.name,
            org: &issued.org,
            host: &host,
        },
        &[
            ("context", args.name.clone()),
            ("org", issued.org.clone()),
            ("host", host.clone()),
        ],
    );
    printer.note(&format!("hint: docker --context {} build .", args.name));
    Ok(())
}

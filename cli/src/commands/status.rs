//! `slipway status`.

use crate::api::queries;
use crate::api::shapes::{Builder, ServerInfo};
use crate::caller::Caller;
use crate::moments::ago;
use serde::Serialize;
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::Printer;

#[derive(Serialize)]
struct Status {
    server: String,
    client_version: &'static str,
    #[serde(flatten)]
    info: ServerInfo,
    who: String,
    builders: Vec<Builder>,
}

/// Shows server, caller and builders.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    let viewer = queries::viewer(&client).await?;
    let builders = match &viewer.org {
        Some(org) => queries::builders(&client, &org.slug).await?,
        None => Vec::new(),
    };
    let status = Status {
        server: client.address().to_string(),
        client_version: env!("CARGO_PKG_VERSION"),
        who: viewer.describe(),
        info: viewer.server,
        builders,
    };
    let mut fields = vec![
        (
            "server",
            format!("{}, version {}", status.server, status.info.version),
        ),
        ("client", format!("version {}", status.client_version)),
        ("you", status.who.clone()),
        ("docker", status.info.docker.clone()),
        ("buildkit", status.info.buildkit.clone()),
    ];
    fields.extend(status.builders.iter().map(|builder| {
        let state = builder.state.to_lowercase();
        (
            "builder",
            builder.engine.iter().fold(
                format!("{}, {} {}", state, builder.region, builder.arch),
                |line, engine| format!("{line}, Docker {}", engine.describe()),
            ),
        )
    }));
    fields.extend(status.info.images.iter().map(|images| {
        let image = images.image_made_at.iter().map(|at| ("image", at));
        let kernel = images.kernel_made_at.iter().map(|at| ("kernel", at));
        let ages = image
            .chain(kernel)
            .map(|(what, at)| format!("{what} of {}", ago(at)));
        let ages: Vec<String> = ages.collect();
        ("boots", format!("{}, {}", images.region, ages.join(", ")))
    }));
    let notices = status.info.notices.iter();
    fields.extend(notices.map(|notice| ("notice", notice.clone())));
    printer.record(&status, &fields);
    if status.info.version != status.client_version {
        printer.warn("client and server are of different versions");
    }
    Ok(())
}

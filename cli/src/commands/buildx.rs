//! `slipway buildx`: a client certificate on disk, and the line that makes buildx use it.

use super::docker_context::issue;
use crate::args::BuildxArgs;
use crate::caller::Caller;
use crate::docker_context::DockerConfig;
use serde::Serialize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;

/// What was made.
#[derive(Serialize)]
struct Made {
    endpoint: String,
    cert_dir: String,
    command: String,
}

/// Writes the certificate below the settings directory and prints the command.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(args: &BuildxArgs, caller: &Caller, printer: Printer) -> Outcome<()> {
    if args.name.is_empty()
        || !args
            .name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        || args.name.starts_with('.')
    {
        return Err(
            Failure::user(format!("'{}' cannot name a builder", args.name))
                .hint("letters, digits, and - _ ."),
        );
    }
    if DockerConfig::locate()?.has(&args.name) {
        return Err(Failure::user(format!(
            "there is a docker context {}, whose name buildx takes for its own",
            args.name
        ))
        .hint("choose another name, or use the context: docker buildx build --builder CONTEXT ."));
    }
    let issued = issue(caller, args.org.org.as_deref()).await?;
    let dir = caller
        .file()?
        .path()
        .with_file_name("buildx")
        .join(&args.name);
    issued.certificate.write(&dir)?;
    let endpoint = format!("tcp://{}", issued.buildkit);
    let dir = dir.display().to_string();
    // With the node's name buildx changes a builder that it has already.
    let command = format!(
        "docker buildx create --name {name} --node {name}0 --driver remote --driver-opt {} {endpoint}",
        quote(&format!(
            "cacert={dir}/ca.pem,cert={dir}/cert.pem,key={dir}/key.pem"
        )),
        name = args.name,
    );
    printer.record(
        &Made {
            endpoint,
            cert_dir: dir,
            command: command.clone(),
        },
        &[],
    );
    if printer.format() == slipway_terminal::printer::Format::Human {
        printer.data(&command);
    }
    Ok(())
}

/// One word for a shell.
fn quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-=,:@".contains(&b);
    if text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_directory_with_odd_characters_stays_one_word() {
        assert_eq!(super::quote("a=/b/c.pem"), "a=/b/c.pem");
        assert_eq!(super::quote("/my dir/it's"), r"'/my dir/it'\''s'");
    }
}

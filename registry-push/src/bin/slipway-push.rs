//! `slipway-push`: pushes an image from dockerd's store to a registry, without dockerd.
//!
//! Owns arguments and output. stdout gets the pinned reference (or JSON), stderr the progress. Exit: 0 done, 1 the caller's fault,
//! 2 anything else.

use anyhow::Context as _;
use clap::Parser;
use slipway_registry_push::{
    Blame, Codec, Credential, DockerStore, Progress, PushError, PushOptions, PushState, Pushed,
    SourceError, Target, push,
};
use std::path::PathBuf;
use std::process::ExitCode;

/// Push an image from dockerd's overlay2 store to a registry.
///
/// The credential is read from the environment: SLIPWAY_PUSH_USERNAME and SLIPWAY_PUSH_PASSWORD.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Image in the store: name, name:tag, or id.
    image: String,
    /// Where to push it: host[:port]/repository[:tag].
    target: String,
    /// dockerd's data root.
    #[arg(long, default_value = "/var/lib/docker")]
    docker_root: PathBuf,
    /// Registry to speak to over plain http; may be given several times. Loopback always is.
    #[arg(long = "insecure-http", value_name = "HOST[:PORT]")]
    insecure_http: Vec<String>,
    /// Use TLS for loopback registries too.
    #[arg(long)]
    require_tls: bool,
    /// File with further trusted certificates, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// gzip level, 1 (fast) to 12 (small).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=12))]
    level: u8,
    /// Compression threads; 0 takes one per processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// File that remembers digests between pushes.
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
    /// Repository of the same registry to mount layers from; may be given several times.
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Vec<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Print no progress.
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let (blame, hint) = judge(&error);
            if let Some(hint) = hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(if blame == Blame::User { 1 } else { 2 })
        }
    }
}

fn judge(error: &anyhow::Error) -> (Blame, Option<&'static str>) {
    if let Some(error) = error.downcast_ref::<PushError>() {
        return (error.blame(), error.hint());
    }
    if let Some(error) = error.downcast_ref::<SourceError>() {
        return (error.blame(), error.hint());
    }
    (Blame::User, None)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let target = Target::parse(&arguments.target)?;
    let credential = credential()?;
    let mut options = PushOptions {
        insecure_http: arguments.insecure_http.clone(),
        require_tls: arguments.require_tls,
        codec: Codec::Gzip {
            level: arguments.level,
        },
        threads: arguments.threads,
        index: arguments.index.clone(),
        mount_from: arguments.mount_from.clone(),
        ..PushOptions::default()
    };
    if let Some(file) = &arguments.ca_file {
        let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        options.extra_roots_pem.push(pem);
    }
    let image = DockerStore::open(&arguments.docker_root)?.image(&arguments.image)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let show = |progress: Progress| {
        // Byte counts are for displays that can redraw; lines tell the turns only.
        let is_turn = progress.state != PushState::Waiting
            && !(progress.state == PushState::Pushing && progress.current > 0);
        if !arguments.quiet && is_turn {
            eprintln!("{} {}", short(&progress.item), word(progress.state));
        }
    };
    let pushed = runtime.block_on(push(image, &target, credential.as_ref(), &options, show))?;
    print(arguments, &target, &pushed);
    Ok(())
}

fn credential() -> anyhow::Result<Option<Credential>> {
    let read = |name: &str| match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("{name} is not UTF-8"),
    };
    match (
        read("SLIPWAY_PUSH_USERNAME")?,
        read("SLIPWAY_PUSH_PASSWORD")?,
    ) {
        (Some(username), Some(password)) => Ok(Some(Credential { username, password })),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => {
            anyhow::bail!("SLIPWAY_PUSH_USERNAME and SLIPWAY_PUSH_PASSWORD must be set together")
        }
    }
}

fn print(arguments: &Arguments, target: &Target, pushed: &Pushed) {
    if !arguments.json {
        println!("{}", target.pinned(&pushed.digest));
        return;
    }
    let layers: Vec<_> = pushed
        .layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "diff_id": layer.diff_id.as_str(), "digest": layer.digest.as_str(), "size_bytes": layer.size_bytes,
                "state": word(layer.state), "sent_bytes": layer.sent_bytes,
            })
        })
        .collect();
    let result = serde_json::json!({
        "target": target.to_string(), "digest": pushed.digest.as_str(), "size_bytes": pushed.size_bytes,
        "sent_bytes": pushed.sent_bytes, "layers": layers,
    });
    println!("{result}");
}

fn word(state: PushState) -> &'static str {
    match state {
        PushState::Waiting => "waiting",
        PushState::Pushing => "pushing",
        PushState::Pushed => "pushed",
        PushState::Exists => "exists",
        PushState::Mounted => "mounted",
    }
}

fn short(item: &str) -> &str {
    item.strip_prefix("sha256:")
        .and_then(|hex| hex.get(..12))
        .unwrap_or(item)
}

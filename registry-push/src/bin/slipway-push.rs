//! `slipway-push`: pushes an image to a registry from where it lies: dockerd's store, containerd's, an OCI layout or an archive.
//!
//! Owns arguments and output. stdout gets the pinned reference (or JSON), stderr the progress. Exit: 0 done, 1 the caller's fault,
//! 2 anything else.

use anyhow::Context as _;
use clap::Parser;
use slipway_registry_push::{
    Blame, Codec, Credential, DockerStore, ImageSource, Layout, Platform, Progress, PushError,
    PushOptions, PushState, Pushed, SourceError, Target, TargetError, push, spool,
};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Push an image to a registry from where it lies: dockerd's overlay2 store (without dockerd), containerd's content store, an OCI
/// layout, or the output of `docker save`.
///
/// The credential is read from the environment: SLIPWAY_PUSH_USERNAME and SLIPWAY_PUSH_PASSWORD. Layers that are compressed already
/// are sent as they are.
#[derive(Debug, Parser)]
#[command(version, allow_missing_positional = true, after_help = EXAMPLES)]
struct Arguments {
    /// Image in the source: name, name:tag, id, or digest. May be left out for a layout or archive of one image.
    image: Option<String>,
    /// Where to push it: host[:port]/repository[:tag].
    target: String,
    #[command(flatten)]
    source: Source,
    /// Platform to take from an image of several, as os/architecture[/variant]. This machine's, if not given.
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Write this tag of the repository too; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    more_tags: Vec<String>,
    /// Registry to speak to over plain http; may be given several times. Loopback always is.
    #[arg(long = "insecure-http", value_name = "HOST[:PORT]")]
    insecure_http: Vec<String>,
    /// Registry without TLS, or with a certificate that nobody vouches for, or a network of such; may be given several times.
    #[arg(long, value_name = "HOST[:PORT]|NETWORK")]
    insecure: Vec<String>,
    /// Proxy for registries without TLS, as http://HOST:PORT. The environment's, if not given.
    #[arg(long, value_name = "URL")]
    http_proxy: Option<String>,
    /// Proxy for registries with TLS. The environment's, if not given.
    #[arg(long, value_name = "URL")]
    https_proxy: Option<String>,
    /// Hosts, domains and networks to reach without those proxies, separated by commas.
    #[arg(long, value_name = "LIST", default_value = "")]
    no_proxy: String,
    /// Use TLS for loopback registries too.
    #[arg(long)]
    require_tls: bool,
    /// File with further trusted certificates, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How layers are compressed: gzip or zstd, with :LEVEL for smaller ones (gzip:1 to gzip:12, zstd:1 to zstd:19).
    #[arg(long, default_value = "gzip", value_name = "gzip|zstd[:LEVEL]")]
    compression: Codec,
    /// Compression threads; 0 takes one per processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// File that remembers digests between pushes.
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
    /// Repository of the same registry to mount layers from; may be given several times.
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Vec<String>,
    /// Ask the registry for every blob even when it has this very image.
    #[arg(long)]
    ask_for_every_blob: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Print no progress.
    #[arg(long, short)]
    quiet: bool,
}

/// Where the image lies; one of them.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Source {
    /// dockerd's data root with its overlay2 image store. This is the default.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/docker")]
    docker_root: PathBuf,
    /// containerd's root; the image is then named by its digest, as `ctr images ls` shows it.
    #[arg(long, value_name = "DIR")]
    containerd_root: Option<PathBuf>,
    /// OCI layout: a directory.
    #[arg(long, value_name = "DIR")]
    oci_layout: Option<PathBuf>,
    /// OCI layout or output of `docker save`: a tar file, or - for standard input.
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  slipway-push app:latest registry.example.com/team/app:v1
  slipway-push app registry.example.com/team/app:v1 --tag latest --compression zstd --index /var/cache/push-index
  docker save app | slipway-push registry.example.com/team/app:v1 --archive -
  slipway-push registry.example.com/team/app:v1 --oci-layout build/image --platform linux/arm64
  slipway-push sha256:... registry.example.com/team/app:v1 --containerd-root /var/lib/containerd

Exit status: 0 the image is complete in the registry, 1 the arguments, the image or the credential are wrong, 2 anything else.";

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
    if error.is::<TargetError>() {
        return (Blame::User, Some("name it as host/repository:tag"));
    }
    (Blame::User, None)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let target = Target::parse(&arguments.target)?;
    let credential = credential()?;
    let mut options = PushOptions {
        insecure_http: arguments.insecure_http.clone(),
        insecure: arguments.insecure.clone(),
        http_proxy: arguments.http_proxy.clone(),
        https_proxy: arguments.https_proxy.clone(),
        no_proxy: arguments.no_proxy.clone(),
        require_tls: arguments.require_tls,
        codec: arguments.compression,
        threads: arguments.threads,
        index: arguments.index.clone(),
        more_tags: arguments.more_tags.clone(),
        ask_for_every_blob: arguments.ask_for_every_blob,
        mount_from: arguments.mount_from.clone(),
        ..PushOptions::default()
    };
    if let Some(file) = &arguments.ca_file {
        let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        options.extra_roots_pem.push(pem);
    }
    let image = image(arguments)?;
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

fn image(arguments: &Arguments) -> anyhow::Result<ImageSource> {
    let platform = arguments.platform.clone().unwrap_or_default();
    let name = arguments.image.as_deref();
    let (source, needed) = (&arguments.source, "name the image before the target");
    if let Some(path) = &source.archive {
        let layout = match path.as_os_str() == "-" {
            true => standard_input()?,
            false => Layout::open(path)?,
        };
        return Ok(layout.image(name, &platform)?);
    }
    if let Some(path) = &source.oci_layout {
        return Ok(Layout::open(path)?.image(name, &platform)?);
    }
    if let Some(root) = &source.containerd_root {
        let digest = slipway_registry_push::Digest::parse(name.context(needed)?)
            .context("containerd's images are named by digest; `ctr images ls` shows it")?;
        return Ok(Layout::containerd(root)?.by_digest(&digest, &platform)?);
    }
    let name = name.context(needed)?;
    Ok(DockerStore::open(&source.docker_root)?.image(name)?)
}

/// A file is read where it is; a pipe goes through a file without a name first, as an archive's list of contents comes last.
fn standard_input() -> anyhow::Result<Layout> {
    let input = std::io::stdin();
    anyhow::ensure!(!input.is_terminal(), "standard input is a terminal");
    let file = spool::readable_anywhere(std::os::fd::AsFd::as_fd(&input))?;
    Ok(Layout::from_file(file, Path::new("standard input"))?)
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
        "sent_bytes": pushed.sent_bytes, "compression": arguments.compression.to_string(), "layers": layers,
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

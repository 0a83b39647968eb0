//! Flags of `slipway deploy`.

use super::OrgArg;
use clap::Args;
use slipway_core::compression::Compression;
use std::path::PathBuf;

/// Build a directory on your org's builder and push the image
///
/// The directory's slipway.toml (or else its fly.toml) says which app it is; flags go before the file.
/// Only what changed since the last build is sent.
///
/// Standard output gets the pushed reference, a line for each name (the build's id with --detach), or JSON lines with --json; progress goes to
/// standard error.
///
/// With --detach it returns once the directory is sent. A process stays in the background until the build's steps are
/// done: they may still ask it for secrets and logins of registries, and fail if it was killed.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway deploy
  slipway deploy ./api --app api --image registry.example/team/api:1.4
  slipway deploy --build-arg VERSION=1.4 --build-arg CI --secret id=npm,src=$HOME/.npmrc
  slipway deploy --build-only --target test
  slipway deploy -t registry.example/app:1.4 -t registry.example/app:latest --ssh default
  slipway deploy --output ./dist --target files
  docker run --rm $(slipway deploy --load)
  slipway deploy --platform linux/amd64,linux/arm64 --provenance=max
  slipway builds attach $(slipway deploy --detach)
  slipway deploy --json | jq -r 'select(.type==\"result\").digest'")]
pub(crate) struct DeployArgs {
    /// Directory that is sent as the build's context; or a Git or tar URL; or - for a tar archive or a Dockerfile from standard input
    #[arg(default_value = ".", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// App that is built; made if it does not exist
    #[arg(
        short,
        long,
        env = "SLIPWAY_APP",
        value_name = "NAME",
        help_heading = "What"
    )]
    pub(crate) app: Option<String>,
    #[command(flatten)]
    pub(crate) org: OrgArg,
    /// Configuration file, instead of slipway.toml or fly.toml of the directory
    #[arg(short, long, value_name = "FILE", help_heading = "What")]
    pub(crate) config: Option<PathBuf>,
    /// Full name of the image, as registry.example/team/app:tag; also -t and --tag. Repeatable: it is pushed under each
    #[arg(
        short,
        long,
        visible_alias = "tag",
        visible_short_alias = 't',
        value_name = "NAME",
        help_heading = "What"
    )]
    pub(crate) image: Vec<String>,
    /// Tag of an image that is not named in full, instead of one of its own for each deploy
    #[arg(
        long,
        value_name = "TAG",
        conflicts_with = "image",
        help_heading = "What"
    )]
    pub(crate) image_label: Option<String>,
    /// Registry (and path) for an image that is not named in full, as registry.example/team
    #[arg(
        long,
        env = "SLIPWAY_REGISTRY",
        value_name = "REGISTRY",
        help_heading = "What"
    )]
    pub(crate) registry: Option<String>,
    /// Region to build in, where your org has no builder yet
    #[arg(long, value_name = "REGION", help_heading = "What")]
    pub(crate) region: Option<String>,

    /// Dockerfile, relative to where you are; Dockerfile of the directory by default; - for standard input
    #[arg(short = 'f', long, visible_alias = "file", value_name = "FILE", help_heading = "Build", value_hint = clap::ValueHint::FilePath)]
    pub(crate) dockerfile: Option<PathBuf>,
    /// Stage to build; also --build-target
    #[arg(
        long,
        visible_alias = "build-target",
        value_name = "STAGE",
        help_heading = "Build"
    )]
    pub(crate) target: Option<String>,
    /// Build argument; without =VALUE the value comes from the environment. Repeatable
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Build")]
    pub(crate) build_arg: Vec<String>,
    /// Secret for RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE. Repeatable
    #[arg(long, value_name = "SPEC", help_heading = "Build")]
    pub(crate) secret: Vec<String>,
    /// Secret as flyctl takes it; --secret keeps it off the command line. Repeatable
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Build")]
    pub(crate) build_secret: Vec<String>,
    /// SSH agent or keys for RUN --mount=type=ssh: default, or ID=SOCKET, or ID=KEY[,KEY]. Repeatable
    #[arg(long, value_name = "AGENT", help_heading = "Build")]
    pub(crate) ssh: Vec<String>,
    /// Another context: NAME=DIR, NAME=docker-image://IMAGE, or NAME=URL. Repeatable
    #[arg(long, value_name = "NAME=SOURCE", help_heading = "Build")]
    pub(crate) build_context: Vec<String>,
    /// Line of /etc/hosts for steps. Repeatable
    #[arg(long, value_name = "HOST:IP", help_heading = "Build")]
    pub(crate) add_host: Vec<String>,
    /// Network of steps; host is the builder's own and allows it
    #[arg(long, value_name = "MODE", value_parser = ["default", "none", "host"], help_heading = "Build")]
    pub(crate) network: Option<String>,
    /// Allow steps that ask for it: network.host or security.insecure. Repeatable
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = ["network.host", "security.insecure"], help_heading = "Build")]
    pub(crate) allow: Vec<String>,
    /// Size of /dev/shm in steps, as 64m
    #[arg(long, value_name = "SIZE", help_heading = "Build")]
    pub(crate) shm_size: Option<String>,
    /// Limit of steps' processes, as nofile=1024:4096. Repeatable
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Build")]
    pub(crate) ulimit: Vec<String>,
    /// Cache to look at: an image, or type=registry,ref=IMAGE. Repeatable
    #[arg(long, value_name = "CACHE", help_heading = "Build")]
    pub(crate) cache_from: Vec<String>,
    /// Cache to write: type=inline, or type=registry,ref=IMAGE where the builder's engine can. Repeatable
    #[arg(long, value_name = "CACHE", help_heading = "Build")]
    pub(crate) cache_to: Vec<String>,
    /// Label of the image. Repeatable
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Build")]
    pub(crate) label: Vec<String>,
    /// Platforms of the image, as linux/amd64,linux/arm64. What is not the builder's own is emulated there. Repeatable
    #[arg(long, value_name = "PLATFORM", help_heading = "Build")]
    pub(crate) platform: Vec<String>,
    /// Annotation of the manifest, or of what is named before it: index:NAME=VALUE, manifest[linux/arm64]:NAME=VALUE. Repeatable
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Build")]
    pub(crate) annotation: Vec<String>,
    /// Attest how the image was made: min (also if nothing is said), max, or attributes. Without it, nothing is attested
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Build")]
    pub(crate) provenance: Option<String>,
    /// Attest what is in the image, by the farm's scanner or generator=IMAGE
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Build")]
    pub(crate) sbom: Option<String>,
    /// The same in one form: type=provenance,mode=max or type=sbom,generator=IMAGE. Repeatable
    #[arg(long, value_name = "SPEC", help_heading = "Build")]
    pub(crate) attest: Vec<String>,
    /// Build every step anew
    #[arg(long, help_heading = "Build")]
    pub(crate) no_cache: bool,
    /// Ask the registries for the base images again. Without it the builder uses an image of that name which it has
    #[arg(long, help_heading = "Build")]
    pub(crate) pull: bool,
    /// Build the steps of these stages anew
    #[arg(
        long,
        value_name = "STAGE",
        value_delimiter = ',',
        conflicts_with = "no_cache",
        help_heading = "Build"
    )]
    pub(crate) no_cache_filter: Vec<String>,
    /// Ignore file, instead of DOCKERFILE.dockerignore or .dockerignore
    #[arg(long, value_name = "FILE", help_heading = "Build", value_hint = clap::ValueHint::FilePath)]
    pub(crate) ignorefile: Option<PathBuf>,

    /// Build on the remote builder, even if Docker runs here
    #[arg(long, conflicts_with = "local_only", help_heading = "Where")]
    pub(crate) remote_only: bool,
    /// Build with the Docker that runs here
    #[arg(long, help_heading = "Where")]
    pub(crate) local_only: bool,
    /// Build without a push
    #[arg(long, conflicts_with = "push", help_heading = "Where")]
    pub(crate) build_only: bool,
    /// Return once the directory is sent; the build goes on. Builds remotely
    #[arg(short, long, conflicts_with = "local_only", help_heading = "Output")]
    pub(crate) detach: bool,
    /// Compression of the pushed layers: gzip, gzip:LEVEL (1 fast to 12 small), zstd or zstd:LEVEL (1 to 19). gzip:1 by default
    #[arg(
        long,
        value_name = "CODEC[:LEVEL]",
        conflicts_with = "local_only",
        help_heading = "Build"
    )]
    pub(crate) compression: Option<Compression>,
    /// Push when built (what happens anyway without --build-only, --output and --load)
    #[arg(long, help_heading = "Where")]
    pub(crate) push: bool,

    /// Get the result's files: DIR, type=local,dest=DIR, type=tar,dest=FILE, or - for an archive on standard output. Nothing is pushed
    #[arg(
        short,
        long,
        value_name = "PLACE",
        conflicts_with = "detach",
        help_heading = "Output"
    )]
    pub(crate) output: Option<String>,
    /// Load the image into the Docker that runs here (at DOCKER_HOST, or the usual socket). Nothing is pushed without --push
    #[arg(long, conflicts_with_all = ["output", "detach"], help_heading = "Output")]
    pub(crate) load: bool,
    /// Look for mistakes in the Dockerfile instead of building it; exit 1 if there are some. What can be asked depends on the Dockerfile's frontend
    #[arg(long, conflicts_with = "detach", help_heading = "Output")]
    pub(crate) check: bool,
    /// The same with another question: outline (arguments and secrets of the stage) or targets (stages)
    #[arg(long, value_enum, value_name = "METHOD", conflicts_with_all = ["check", "detach"], help_heading = "Output")]
    pub(crate) call: Option<Method>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE", conflicts_with = "detach", help_heading = "Output", value_hint = clap::ValueHint::FilePath)]
    pub(crate) iidfile: Option<PathBuf>,
    /// Write what came of it to a file, as buildx does
    #[arg(long, value_name = "FILE", conflicts_with = "detach", help_heading = "Output", value_hint = clap::ValueHint::FilePath)]
    pub(crate) metadata_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) refused: RefusedArgs,

    /// How progress is shown
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, env = "SLIPWAY_PROGRESS", value_name = "MODE", help_heading = "Output")]
    pub(crate) progress: ProgressMode,
}

/// What is done with a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Method {
    /// It is built
    Build,
    /// Mistakes in it
    #[value(alias = "lint")]
    Check,
    /// Arguments and secrets of the stage
    Outline,
    /// Its stages
    Targets,
}

impl Method {
    /// BuildKit's name of the question.
    pub(crate) fn request(self) -> &'static str {
        match self {
            Self::Build => "frontend.build",
            Self::Check => "frontend.lint",
            Self::Outline => "frontend.outline",
            Self::Targets => "frontend.targets",
        }
    }
}

impl DeployArgs {
    /// What is asked instead of building, if anything is.
    pub(crate) fn question(&self) -> Option<Method> {
        match self.check {
            true => Some(Method::Check),
            false => self.call.filter(|method| *method != Method::Build),
        }
    }
}

/// Flags of docker, buildx and flyctl that are answered by name, so that nobody is sent to another flag.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RefusedArgs {
    /// What is used anyway
    #[arg(long, hide = true)]
    pub(crate) buildkit: bool,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProgressMode {
    /// A live tree on a terminal, plain lines elsewhere
    Auto,
    /// One line per happening
    Plain,
    /// A live tree
    Tty,
    /// Nothing but errors
    Quiet,
}

//! From flags, configuration and environment to one complete description of the build, before anything is asked of
//! the network. Everything the caller can have got wrong on this computer is found here.
//!
//! Must not know the API, sessions, or how progress is shown.

mod attest;
mod options;
mod source;

use super::output::Output;
use super::secret::{self, Secret};
use super::ssh::{self, SshSource};
use crate::args::DeployArgs;
use crate::config::{FLY_NAME, ProjectConfig};
use crate::deploy::env::Env;
use crate::names;
use options::Options;
use slipway_core::compression::Compression;
use slipway_core::platform::Platform;
use slipway_terminal::exit::{Failure, Outcome};
pub(crate) use source::{Context, Source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest tag that registries take.
const TAG_BYTES_MAX: usize = 128;

/// A build, complete and checked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// App that is built.
    pub(crate) app: String,
    /// Org that the caller named.
    pub(crate) org: Option<String>,
    /// Region that the caller named.
    pub(crate) region: Option<String>,
    /// Region to build in if there is a host; asked for only where nobody named one.
    pub(crate) region_wish: Option<String>,
    /// Context and Dockerfile.
    pub(crate) source: Source,
    /// Directories of further contexts, by the name that the session serves them under.
    pub(crate) contexts: BTreeMap<String, PathBuf>,
    /// Ignore file that the caller named. BuildKit finds the usual ones by itself.
    pub(crate) ignorefile: Option<PathBuf>,
    /// Name of the image.
    pub(crate) image: ImageName,
    /// Tag of an image that is not named in full.
    pub(crate) label: Option<String>,
    /// What happens to the image.
    pub(crate) push: Push,
    /// BuildKit's frontend attributes.
    pub(crate) frontend_attrs: BTreeMap<String, String>,
    /// Compression of the pushed layers, if it was named.
    pub(crate) compression: Option<Compression>,
    /// Secrets that the session serves.
    pub(crate) secrets: Vec<Secret>,
    /// SSH agents that it forwards, by id.
    pub(crate) ssh: BTreeMap<String, SshSource>,
    /// Further names of the image.
    pub(crate) tags: Vec<String>,
    /// What steps may ask for beyond the usual.
    pub(crate) entitlements: Vec<String>,
    /// Caches to look at.
    pub(crate) cache_from: Vec<String>,
    /// Caches to write.
    pub(crate) cache_to: Vec<String>,
    /// Where the result goes here.
    pub(crate) output: Option<Output>,
    /// Architecture that the builder had best have, by the platform that was named.
    pub(crate) arch: Option<String>,
    /// The platforms that were named.
    pub(crate) platforms: Vec<Platform>,
    /// Annotations of manifests and index.
    pub(crate) annotations: Vec<String>,
    /// More comes of it than one manifest without annotations, which the Docker that runs here may not be able to keep.
    pub(crate) needs_builder: bool,
    /// Where it may be built.
    pub(crate) place: Place,
    /// Things to tell the caller that stop nothing.
    pub(crate) warnings: Vec<String>,
}

/// What the image is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageName {
    /// As the caller wrote it.
    Given(String),
    /// The app's name in this registry, with a tag of its own for each deploy.
    In(String),
    /// Nobody said.
    Unsaid,
}

/// What happens to the image once it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// It is pushed.
    Yes,
    /// It stays with the builder.
    No,
}

/// Where a build may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the remote builder.
    Remote,
    /// With the Docker that runs here.
    Local,
    /// Here if that serves, else remotely.
    Auto,
}

impl Plan {
    /// Puts flags before the configuration and checks both. Reads the directory and the secrets' files.
    ///
    /// # Errors
    /// Always the caller's fault, with a hint.
    pub(crate) fn new(args: &DeployArgs, config: &ProjectConfig, env: Env<'_>) -> Outcome<Self> {
        let mut warnings = Vec::new();
        check_fly(args, config, &mut warnings)?;
        let source = Source::find(args, config, &mut std::io::stdin().lock())?;
        let ignorefile = source::check_ignorefile(args, config, &source)?;
        let options = Options::of(args, config, &source, env, &mut warnings)?;
        let needs_builder = options.is_multiple || options.attests || !args.annotation.is_empty();
        if needs_builder && args.local_only {
            return Err(Failure::user(
                "--local-only: images of several platforms, attestations and annotations are made by a builder",
            )
            .hint("leave --local-only out"));
        }
        let output = match args.load {
            true => Some(Output::Docker),
            false => args.output.as_deref().map(Output::parse).transpose()?,
        };
        if needs_builder && output == Some(Output::Docker) {
            return Err(Failure::user(
                "--load: Docker reads one image for one platform, without attestations and annotations",
            )
            .hint("push the image, or leave those flags out"));
        }
        let makes_files = output.is_some() && output != Some(Output::Docker);
        if makes_files && !args.push && !args.annotation.is_empty() {
            return Err(Failure::user(
                "--annotation: what --output writes are files, which have no annotations",
            )
            .hint("push the image as well with --push, or leave --annotation out"));
        }
        let push = if args.build_only || (output.is_some() && !args.push) {
            Push::No
        } else {
            Push::Yes
        };
        let mut names = args.image.iter();
        let image = image_name(names.next(), args, config)?;
        let tags = names.map(|name| names::check_image(name).map(|()| name.clone()));
        let region = args.region.clone().or_else(|| config.region.clone());
        Ok(Self {
            app: app_name(args, config)?,
            org: args.org.org.clone().or_else(|| config.org.clone()),
            region_wish: config.region_wish.clone().filter(|_| region.is_none()),
            region,
            source,
            contexts: options.contexts,
            ignorefile,
            image,
            tags: tags.collect::<Outcome<_>>()?,
            label: args.image_label.clone(),
            push,
            frontend_attrs: options.attrs,
            entitlements: options.entitlements,
            cache_from: options.cache_from,
            cache_to: options.cache_to,
            output,
            compression: args.compression.or(config.build.compression),
            secrets: secret::read_all(&args.secret, &args.build_secret, env)?,
            ssh: ssh::parse_all(&args.ssh, env)?,
            arch: options.arch,
            platforms: options.platforms,
            annotations: args.annotation.clone(),
            needs_builder,
            place: match (args.remote_only || args.detach, args.local_only) {
                (true, _) => Place::Remote,
                (false, true) => Place::Local,
                (false, false) => Place::Auto,
            },
            warnings,
        })
    }

    /// The full name of the image: as given, or the app's in a registry with `tag`.
    ///
    /// # Errors
    /// The caller's fault: a push is wanted and nobody said where to.
    pub(crate) fn image_for(&self, tag: &str) -> Outcome<String> {
        let app = &self.app;
        let tag = self.label.as_deref().unwrap_or(tag);
        match (&self.image, self.push) {
            (ImageName::Given(name), _) => Ok(name.clone()),
            (ImageName::In(registry), _) => {
                Ok(format!("{}/{app}:{tag}", registry.trim_end_matches('/')))
            }
            (ImageName::Unsaid, Push::No) => Ok(format!("{app}:{tag}")),
            (ImageName::Unsaid, Push::Yes) => Err(Failure::user("there is no registry to push to")
                .hint(
                    "say --image REGISTRY/NAME:TAG, or set registry in slipway.toml, \
                     or build without a push: --build-only",
                )),
        }
    }
}

/// What a Fly file says that a build here cannot follow: refused where another image would come of it, else told.
fn check_fly(args: &DeployArgs, config: &ProjectConfig, warnings: &mut Vec<String>) -> Outcome<()> {
    let path = config.path.as_deref().unwrap_or(Path::new(FLY_NAME));
    let file = path.display();
    let named = !args.image.is_empty();
    match &config.runs_image {
        Some(image) if !named && !args.build_only => {
            return Err(Failure::user(format!(
                "{file} says [build] image = '{image}': that image is run as it is, and nothing is built"
            ))
            .hint("to build the Dockerfile, say which image to push with --image NAME, or take the line out"));
        }
        Some(image) => warnings.push(format!(
            "{file} says [build] image = '{image}', which is run as it is; it is neither used nor changed here"
        )),
        None => {}
    }
    if let Some(builder) = config.other_builder
        && args.dockerfile.is_none()
        && config.build.dockerfile.is_none()
    {
        return Err(Failure::user(format!(
            "{file} says [build] {builder}: only Dockerfiles are built here"
        ))
        .hint("write a Dockerfile and name it with -f FILE"));
    }
    if !config.unused.is_empty() {
        warnings.push(format!(
            "{file}: {} are for instances of the app; this builds and pushes only",
            config.unused.join(", ")
        ));
    }
    Ok(())
}

fn app_name(args: &DeployArgs, config: &ProjectConfig) -> Outcome<String> {
    args.app
        .clone()
        .or_else(|| config.app.clone())
        .ok_or_else(|| {
            Failure::user("no app is named")
                .hint("say --app NAME, or write a slipway.toml with `slipway init`")
        })
        .and_then(|name| names::check_app(&name).map(|()| name))
}

fn image_name(
    first: Option<&String>,
    args: &DeployArgs,
    config: &ProjectConfig,
) -> Outcome<ImageName> {
    let given = first.or(config.build.image.as_ref()).cloned();
    if let Some(label) = &args.image_label {
        let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let fits = (1..=TAG_BYTES_MAX).contains(&label.len()) && label.bytes().all(is_inner);
        if !fits || label.starts_with(['.', '-']) {
            return Err(Failure::user(format!("'{label}' is not a tag"))
                .hint("a tag has letters, digits, dots, hyphens and underscores"));
        }
    }
    let registry = args.registry.as_ref().or(config.registry.as_ref());
    match (given, registry) {
        (Some(name), _) => names::check_image(&name).map(|()| ImageName::Given(name)),
        (None, Some(registry)) => {
            names::check_registry(registry).map(|()| ImageName::In(registry.clone()))
        }
        (None, None) => Ok(ImageName::Unsaid),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! From flags, configuration and environment to one complete description of the build, before anything is asked of
//! the network. Everything the caller can have got wrong on this computer is found here.
//!
//! Must not know the API, sessions, or how progress is shown.

use super::image_name;
use super::secret::{self, Secret};
use crate::args::DeployArgs;
use crate::config::{FLY_NAME, ProjectConfig};
use crate::exit::{Failure, Outcome};
use slipway_core::compression::Compression;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names of a Dockerfile, in the order in which they are looked for.
const DOCKERFILE_NAMES: [&str; 2] = ["Dockerfile", "Containerfile"];
/// Longest name of an app.
const APP_NAME_BYTES_MAX: usize = 63;

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
    /// Directory that is the context.
    pub(crate) context: PathBuf,
    /// Directory of the Dockerfile.
    pub(crate) dockerfile_dir: PathBuf,
    /// Name of the Dockerfile in it.
    pub(crate) dockerfile_name: String,
    /// Ignore file that the caller named. BuildKit finds the usual ones by itself.
    pub(crate) ignorefile: Option<PathBuf>,
    /// Name of the image.
    pub(crate) image: ImageName,
    /// What happens to the image.
    pub(crate) push: Push,
    /// BuildKit's frontend attributes.
    pub(crate) frontend_attrs: BTreeMap<String, String>,
    /// Compression of the pushed layers, if it was named.
    pub(crate) compression: Option<Compression>,
    /// Secrets that the session serves.
    pub(crate) secrets: Vec<Secret>,
    /// Architecture of the target, if it was named.
    pub(crate) arch: Option<String>,
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

/// What the environment gives; tests give their own.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Plan {
    /// Puts flags before the configuration and checks both. Reads the directory and the secrets' files.
    ///
    /// # Errors
    /// Always the caller's fault, with a hint.
    pub(crate) fn new(args: &DeployArgs, config: &ProjectConfig, env: Env<'_>) -> Outcome<Self> {
        let context = context_dir(&args.dir)?;
        let mut warnings = Vec::new();
        check_fly(args, config, &mut warnings)?;
        let config_dir = config
            .path
            .as_deref()
            .and_then(Path::parent)
            .map_or_else(|| context.clone(), Path::to_owned);
        let (dockerfile_dir, dockerfile_name) =
            find_dockerfile(args, config, &config_dir, &context)?;
        let ignorefile = check_ignorefile(
            args,
            config,
            &config_dir,
            &context,
            &dockerfile_dir.join(&dockerfile_name),
        )?;
        let (frontend_attrs, arch) =
            frontend_attrs(args, config, &dockerfile_name, env, &mut warnings)?;
        let region = args.region.clone().or_else(|| config.region.clone());
        Ok(Self {
            app: app_name(args, config)?,
            org: args.org.org.clone().or_else(|| config.org.clone()),
            region_wish: config.region_wish.clone().filter(|_| region.is_none()),
            region,
            context,
            dockerfile_dir,
            dockerfile_name,
            ignorefile,
            image: image_name(args, config)?,
            push: if args.build_only { Push::No } else { Push::Yes },
            frontend_attrs,
            compression: args.compression.or(config.build.compression),
            secrets: secret::read_all(&args.secret, env)?,
            arch,
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
    let named = args.image.is_some();
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

fn context_dir(dir: &Path) -> Outcome<PathBuf> {
    let metadata = std::fs::metadata(dir).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Failure::user(format!("there is no directory {}", dir.display()))
        } else {
            Failure::user_caused(format_args!("read {}", dir.display()), &error)
        }
    })?;
    if !metadata.is_dir() {
        return Err(
            Failure::user(format!("{} is not a directory", dir.display()))
                .hint("give the directory of the build; a Dockerfile is chosen with -f"),
        );
    }
    std::fs::read_dir(dir)
        .and_then(|_entries| std::fs::canonicalize(dir))
        .map_err(|error| Failure::user_caused(format_args!("read {}", dir.display()), &error))
}

fn app_name(args: &DeployArgs, config: &ProjectConfig) -> Outcome<String> {
    args.app
        .clone()
        .or_else(|| config.app.clone())
        .ok_or_else(|| {
            Failure::user("no app is named")
                .hint("say --app NAME, or write a slipway.toml with `slipway init`")
        })
        .and_then(check_app)
}

/// What the server takes as a name; said here, before a builder is woken for it.
fn check_app(name: String) -> Outcome<String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=APP_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(inner);
    if fits && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(name);
    }
    Err(Failure::user(format!("'{name}' is not the name of an app"))
        .hint("1 to 63 lower-case letters, digits and hyphens, with none of these at the ends"))
}

fn image_name(args: &DeployArgs, config: &ProjectConfig) -> Outcome<ImageName> {
    let given = args.image.clone().or_else(|| config.build.image.clone());
    let registry = args.registry.as_ref().or(config.registry.as_ref());
    match (given, registry) {
        (Some(name), _) => image_name::check(&name).map(|()| ImageName::Given(name)),
        (None, Some(registry)) => {
            image_name::check_registry(registry).map(|()| ImageName::In(registry.clone()))
        }
        (None, None) => Ok(ImageName::Unsaid),
    }
}

fn find_dockerfile(
    args: &DeployArgs,
    config: &ProjectConfig,
    config_dir: &Path,
    context: &Path,
) -> Outcome<(PathBuf, String)> {
    let named = match (&args.dockerfile, &config.build.dockerfile) {
        (Some(path), _) if path.exists() => Some(path.clone()),
        // People give it relative to the context as well; `docker build` does not take that, we do.
        (Some(path), _) if path.is_relative() && context.join(path).exists() => {
            Some(context.join(path))
        }
        (Some(path), _) => Some(path.clone()),
        (None, Some(path)) => Some(config_dir.join(path)),
        (None, None) => None,
    };
    let path = match named {
        Some(path) => path,
        None => DOCKERFILE_NAMES
            .into_iter()
            .map(|name| context.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| {
                Failure::user(format!("there is no Dockerfile in {}", context.display()))
                    .hint("name one with -f FILE, or another directory")
            })?,
    };
    let metadata = std::fs::metadata(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Failure::user(format!("there is no Dockerfile at {}", path.display())).hint(
                "-f takes a path relative to where you are, or to the directory that is built",
            )
        } else {
            Failure::user_caused(format_args!("read {}", path.display()), &error)
        }
    })?;
    if !metadata.is_file() {
        return Err(Failure::user(format!("{} is not a file", path.display()))
            .hint("-f takes a Dockerfile"));
    }
    // Opened, so that an unreadable one is told before a builder is woken for it.
    let real = std::fs::File::open(&path)
        .and_then(|_file| std::fs::canonicalize(&path))
        .map_err(|error| Failure::user_caused(format_args!("read {}", path.display()), &error))?;
    let name = path.file_name().and_then(|name| name.to_str());
    match (real.parent(), path.parent(), name) {
        // A link keeps its own name beside its own ignore file, as in `docker build`.
        (Some(_), Some(dir), Some(name)) => {
            let dir = if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            };
            let dir = std::fs::canonicalize(dir).map_err(|error| {
                Failure::user_caused(format_args!("read {}", dir.display()), &error)
            })?;
            Ok((dir, name.to_owned()))
        }
        _ => Err(Failure::user(format!(
            "{} has a name that is not text",
            path.display()
        ))),
    }
}

/// Checks the ignore file that will count, and gives it if it is not one of those that BuildKit finds by itself.
fn check_ignorefile(
    args: &DeployArgs,
    config: &ProjectConfig,
    config_dir: &Path,
    context: &Path,
    dockerfile: &Path,
) -> Outcome<Option<PathBuf>> {
    let named = match (&args.ignorefile, &config.build.ignorefile) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(path)) => Some(config_dir.join(path)),
        (None, None) => None,
    };
    let mut beside = dockerfile.as_os_str().to_owned();
    beside.push(".dockerignore");
    let usual = || {
        [PathBuf::from(beside), context.join(".dockerignore")]
            .into_iter()
            .find(|path| path.is_file())
    };
    let Some(path) = named.clone().or_else(usual) else {
        return Ok(None);
    };
    let fail = |error: &(dyn std::error::Error + 'static)| {
        Failure::user_caused(
            format_args!("read the ignore file {}", path.display()),
            error,
        )
    };
    let content = std::fs::read(&path).map_err(|error| fail(&error))?;
    slipway_buildkit::ignore::matcher(&content).map_err(|error| fail(&error))?;
    Ok(named)
}

fn frontend_attrs(
    args: &DeployArgs,
    config: &ProjectConfig,
    dockerfile_name: &str,
    env: Env<'_>,
    warnings: &mut Vec<String>,
) -> Outcome<(BTreeMap<String, String>, Option<String>)> {
    let mut attrs = BTreeMap::from([("filename".to_owned(), dockerfile_name.to_owned())]);
    for (name, value) in &config.build.args {
        attrs.insert(format!("build-arg:{name}"), value.clone());
    }
    for spec in &args.build_arg {
        let (name, value) = match spec.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (spec.as_str(), env(spec)),
        };
        check_name("build argument", spec, name)?;
        match value {
            Some(value) => {
                attrs.insert(format!("build-arg:{name}"), value);
            }
            None => warnings.push(format!(
                "build argument {name} is not set in the environment and was left out"
            )),
        }
    }
    for spec in &args.label {
        let (name, value) = spec.split_once('=').unwrap_or((spec, ""));
        check_name("label", spec, name)?;
        attrs.insert(format!("label:{name}"), value.to_owned());
    }
    if let Some(target) = args.target.as_ref().or(config.build.target.as_ref()) {
        attrs.insert("target".to_owned(), target.clone());
    }
    if args.no_cache {
        attrs.insert("no-cache".to_owned(), String::new());
    }
    if args.pull {
        attrs.insert("image-resolve-mode".to_owned(), "pull".to_owned());
    }
    let arch = match &args.platform {
        Some(platform) => {
            let arch = platform_arch(platform)?;
            attrs.insert("platform".to_owned(), platform.clone());
            Some(arch)
        }
        None => None,
    };
    Ok((attrs, arch))
}

fn check_name(what: &str, spec: &str, name: &str) -> Outcome<()> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Failure::user(format!("'{spec}' is not a {what}"))
            .hint(format!("a {what} looks like NAME=VALUE")));
    }
    Ok(())
}

/// The architecture of `os/arch[/variant]`.
fn platform_arch(platform: &str) -> Outcome<String> {
    let mut parts = platform.split('/');
    let known = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("linux"), Some(arch @ ("amd64" | "arm64")), _, None) => Some(arch),
        _ => None,
    };
    known.map(str::to_owned).ok_or_else(|| {
        Failure::user(format!("'{platform}' is not a platform that can be built"))
            .hint("known are linux/amd64 and linux/arm64, one at a time")
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

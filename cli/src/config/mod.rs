//! The project's own file: `slipway.toml`, else `fly.toml`.
//!
//! Owns their grammar and gives one [`ProjectConfig`] for both. Must not know flags or the API.

mod fly;
mod native;

use slipway_core::compression::Compression;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::file::read_small;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of our own file.
pub(crate) const NATIVE_NAME: &str = "slipway.toml";
/// Name of Fly's file.
pub(crate) const FLY_NAME: &str = "fly.toml";

/// What a project says about itself. Paths are relative to the directory of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ProjectConfig {
    /// The file it came from.
    pub(crate) path: Option<PathBuf>,
    /// App that is built.
    pub(crate) app: Option<String>,
    /// Org of the app.
    pub(crate) org: Option<String>,
    /// Region to build in.
    pub(crate) region: Option<String>,
    /// Region to build in if there is a host: a Fly file names one of Fly's.
    pub(crate) region_wish: Option<String>,
    /// Registry (and path) that images are pushed to, as in `registry.example:5000/team`.
    pub(crate) registry: Option<String>,
    /// How it is built.
    pub(crate) build: BuildConfig,
    /// Image that a Fly file names to be run as it is: never one to push to.
    pub(crate) runs_image: Option<String>,
    /// A Fly file's way to build without a Dockerfile.
    pub(crate) other_builder: Option<&'static str>,
    /// What the file says that nothing here looks at.
    pub(crate) unused: Vec<String>,
}

/// How an image is built.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct BuildConfig {
    /// Dockerfile.
    pub(crate) dockerfile: Option<PathBuf>,
    /// Stage to build.
    pub(crate) target: Option<String>,
    /// Full image name to build and push.
    pub(crate) image: Option<String>,
    /// Build arguments.
    pub(crate) args: BTreeMap<String, String>,
    /// Ignore file.
    pub(crate) ignorefile: Option<PathBuf>,
    /// Compression of the pushed layers.
    pub(crate) compression: Option<Compression>,
}

impl ProjectConfig {
    /// Reads `--config` if given, else `slipway.toml` of `dir`, else its `fly.toml`, else gives an empty one. A file of another
    /// name is a Fly file if its content is one's.
    ///
    /// # Errors
    /// The caller's fault: unreadable, or not valid; the message has the line.
    pub(crate) fn load(dir: &Path, explicit: Option<&Path>) -> Outcome<Self> {
        let path = match explicit {
            Some(path) => path.to_owned(),
            None => match [NATIVE_NAME, FLY_NAME]
                .into_iter()
                .map(|name| dir.join(name))
                .find(|path| path.exists())
            {
                Some(path) => path,
                None => return Ok(Self::default()),
            },
        };
        let text = read_small(&path)?;
        let named = |it: &str| path.file_name().is_some_and(|name| name == it);
        let is_fly = named(FLY_NAME) || (!named(NATIVE_NAME) && fly::is_fly(&text));
        let parsed = if is_fly {
            fly::parse(&text)
        } else {
            native::parse(&text)
        };
        let mut config = parsed.map_err(|error| explain(&path, &text, &error, is_fly))?;
        config.path = Some(path);
        Ok(config)
    }
}

/// `file:line: what`, with a hint where the cause is known.
fn explain(path: &Path, text: &str, error: &toml::de::Error, is_fly: bool) -> Failure {
    let place = match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or("");
            format!("{}:{}", path.display(), before.matches('\n').count() + 1)
        }
        None => path.display().to_string(),
    };
    let message = error.message().trim();
    let failure = Failure::user(format!("{place}: {message}"));
    if message.starts_with("unknown field") && !is_fly {
        failure.hint(format!(
            "a name that nobody reads is usually a slip of the pen; {}",
            native::KNOWN_KEYS
        ))
    } else {
        failure
    }
}

#[cfg(test)]
mod tests;

//! What is built: a directory, a URL that the builder fetches, or what comes from standard input; and the Dockerfile of it.
//!
//! Must not know flags that change how it is built.

use crate::args::DeployArgs;
use crate::config::ProjectConfig;
use crate::limits::{DOCKERFILE_BYTES_MAX, STDIN_CONTEXT_BYTES_MAX};
use slipway_terminal::exit::{Failure, Outcome};
use std::io::{BufRead, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::{NamedTempFile, TempDir};

/// Names of a Dockerfile, in the order in which they are looked for. BuildKit itself takes the second one too.
const DOCKERFILE_NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];
/// Standard input, as a name.
const STDIN: &str = "-";
/// What archives that BuildKit unpacks begin with: gzip, bzip2, xz, zstd.
const COMPRESSED: [&[u8]; 4] = [
    &[0x1f, 0x8b],
    b"BZh",
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x28, 0xb5, 0x2f, 0xfd],
];
/// Where a tar archive says that it is one.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// The build's context.
#[derive(Debug, Clone)]
pub(crate) enum Context {
    /// A directory of this computer.
    Dir(PathBuf),
    /// Git or an archive, which the builder fetches.
    Url(String),
    /// An archive that came from standard input.
    Archive(Arc<NamedTempFile>),
}

/// Context and Dockerfile.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// What steps copy from.
    pub(crate) context: Context,
    /// Directory of the Dockerfile; absent if it is in a context that is not here.
    pub(crate) dockerfile_dir: Option<PathBuf>,
    /// Its name there.
    pub(crate) dockerfile_name: String,
    /// Holds what came from standard input.
    _kept: Option<Arc<TempDir>>,
}

impl Source {
    /// The Dockerfile's path, if it is here.
    pub(crate) fn dockerfile(&self) -> Option<PathBuf> {
        let dir = self.dockerfile_dir.as_ref()?;
        Some(dir.join(&self.dockerfile_name))
    }

    /// Finds context and Dockerfile. `stdin` is read only if it is named.
    ///
    /// # Errors
    /// The caller's fault, with a hint.
    pub(super) fn find(
        args: &DeployArgs,
        config: &ProjectConfig,
        stdin: &mut dyn BufRead,
    ) -> Outcome<Self> {
        let dockerfile_in = args.dockerfile.as_deref() == Some(Path::new(STDIN));
        if args.detach && (dockerfile_in || args.dir == Path::new(STDIN)) {
            return Err(Failure::user("--detach cannot read from standard input")
                .hint("write it to a file first"));
        }
        let text = args.dir.to_str().unwrap_or_default();
        if text == STDIN {
            if dockerfile_in {
                return Err(Failure::user(
                    "standard input cannot be both the context and the Dockerfile",
                )
                .hint("name one of them by a file"));
            }
            return Self::from_stdin(args, stdin);
        }
        let (context, dir) = if is_url(text) {
            (Context::Url(text.to_owned()), None)
        } else {
            let dir = context_dir(&args.dir)?;
            (Context::Dir(dir.clone()), Some(dir))
        };
        if dockerfile_in {
            let (kept, path) = keep_dockerfile(stdin)?;
            return Ok(Self::with_dockerfile(context, &path, Some(kept)));
        }
        let Some(dir) = dir else {
            return Ok(Self::elsewhere(context, args));
        };
        let config_dir = config.path.as_deref().and_then(Path::parent);
        let (dockerfile_dir, dockerfile_name) =
            find_dockerfile(args, config, config_dir.unwrap_or(&dir), &dir)?;
        Ok(Self {
            context,
            dockerfile_dir: Some(dockerfile_dir),
            dockerfile_name,
            _kept: None,
        })
    }

    /// An archive; or a Dockerfile alone, for a build without a context.
    fn from_stdin(args: &DeployArgs, stdin: &mut dyn BufRead) -> Outcome<Self> {
        let fail = |error: std::io::Error| Failure::user_caused("read standard input", &error);
        let (at, magic) = TAR_MAGIC;
        let mut head = Vec::new();
        std::io::Read::take(&mut *stdin, (at + magic.len()) as u64)
            .read_to_end(&mut head)
            .map_err(fail)?;
        let is_archive = COMPRESSED.iter().any(|magic| head.starts_with(magic))
            || head.get(at..).is_some_and(|rest| rest == magic);
        let mut whole = std::io::Read::chain(&head[..], stdin);
        if !is_archive {
            let (kept, path) = keep_dockerfile(&mut whole)?;
            let empty = kept.path().join("context");
            std::fs::create_dir(&empty).map_err(fail)?;
            return Ok(Self::with_dockerfile(
                Context::Dir(empty),
                &path,
                Some(kept),
            ));
        }
        let mut file = tempfile::Builder::new()
            .prefix("slipway-context-")
            .tempfile()
            .map_err(fail)?;
        copy_bounded(&mut whole, file.as_file_mut(), STDIN_CONTEXT_BYTES_MAX)?;
        Ok(Self::elsewhere(Context::Archive(Arc::new(file)), args))
    }

    /// The Dockerfile is in a context that is not here.
    fn elsewhere(context: Context, args: &DeployArgs) -> Self {
        let named = args.dockerfile.as_deref().and_then(Path::to_str);
        Self {
            context,
            dockerfile_dir: None,
            dockerfile_name: named.unwrap_or(DOCKERFILE_NAMES[0]).to_owned(),
            _kept: None,
        }
    }

    fn with_dockerfile(context: Context, path: &Path, kept: Option<Arc<TempDir>>) -> Self {
        Self {
            context,
            dockerfile_dir: path.parent().map(Path::to_owned),
            dockerfile_name: DOCKERFILE_NAMES[0].to_owned(),
            _kept: kept,
        }
    }
}

/// What `docker build` takes as something to fetch.
fn is_url(text: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@"]
        .iter()
        .any(|start| text.starts_with(start))
        || (text.starts_with("github.com/") && !Path::new(text).exists())
}

fn copy_bounded(from: &mut dyn std::io::Read, to: &mut dyn Write, max: u64) -> Outcome<()> {
    let fail = |error: std::io::Error| Failure::user_caused("read standard input", &error);
    let copied = std::io::copy(&mut std::io::Read::take(from, max + 1), to).map_err(fail)?;
    to.flush().map_err(fail)?;
    if copied > max {
        return Err(Failure::user(format!(
            "standard input is longer than {max} bytes"
        )));
    }
    Ok(())
}

/// Puts a Dockerfile from standard input where the session serves it; gives its directory and path.
fn keep_dockerfile(from: &mut dyn std::io::Read) -> Outcome<(Arc<TempDir>, PathBuf)> {
    let fail = |error: std::io::Error| Failure::user_caused("keep the Dockerfile", &error);
    let dir = tempfile::Builder::new()
        .prefix("slipway-dockerfile-")
        .tempdir()
        .map_err(fail)?;
    let alone = dir.path().join("dockerfile");
    std::fs::create_dir(&alone).map_err(fail)?;
    let path = alone.join(DOCKERFILE_NAMES[0]);
    let mut file = std::fs::File::create(&path).map_err(fail)?;
    copy_bounded(from, &mut file, DOCKERFILE_BYTES_MAX)?;
    Ok((Arc::new(dir), path))
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
    // Opened, so that an unreadable one is refused before a builder wakes.
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
pub(super) fn check_ignorefile(
    args: &DeployArgs,
    config: &ProjectConfig,
    source: &Source,
) -> Outcome<Option<PathBuf>> {
    let Context::Dir(context) = &source.context else {
        return match &args.ignorefile {
            Some(_) => Err(Failure::user("--ignorefile needs a directory as context")),
            None => Ok(None),
        };
    };
    let config_dir = config.path.as_deref().and_then(Path::parent);
    let config_dir = config_dir.unwrap_or(context);
    let dockerfile = source.dockerfile().unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn find(line: &str, stdin: &[u8]) -> Outcome<Source> {
        let words = ["slipway", "deploy"].into_iter();
        let cli = Cli::try_parse_from(words.chain(line.split_whitespace())).unwrap();
        let Command::Deploy(args) = cli.command else {
            panic!("not deploy")
        };
        Source::find(&args, &ProjectConfig::default(), &mut &stdin[..])
    }

    #[test]
    fn urls_are_fetched_by_the_builder() {
        for url in [
            "https://git.example/team/app.git#main:sub",
            "git@git.example:team/app.git",
            "https://files.example/context.tar.gz",
        ] {
            let source = find(url, b"").unwrap();
            assert!(
                matches!(&source.context, Context::Url(it) if it == url),
                "{source:?}"
            );
            assert_eq!(source.dockerfile(), None);
            let source = find(&format!("{url} -f docker/Dockerfile"), b"").unwrap();
            assert_eq!(source.dockerfile_name, "docker/Dockerfile");
            let source = find(&format!("{url} -f -"), b"FROM scratch\n").unwrap();
            let text = std::fs::read_to_string(source.dockerfile().unwrap()).unwrap();
            assert_eq!(text, "FROM scratch\n");
        }
    }

    #[test]
    fn standard_input_is_an_archive_or_a_dockerfile() {
        let mut tar = vec![0u8; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        for archive in [&tar[..], &[0x1f, 0x8b, 8, 0]] {
            let Context::Archive(file) = find("-", archive).unwrap().context else {
                panic!("not an archive")
            };
            assert_eq!(std::fs::read(file.path()).unwrap(), archive);
        }
        let source = find("-", b"FROM scratch\n").unwrap();
        let Context::Dir(empty) = &source.context else {
            panic!("{source:?}")
        };
        assert_eq!(std::fs::read_dir(empty).unwrap().count(), 0);
        assert!(source.dockerfile().unwrap().is_file());
        for (line, message) in [
            ("- -f -", "both the context and the Dockerfile"),
            ("- --detach", "--detach cannot read"),
        ] {
            let failure = find(line, b"FROM x").unwrap_err();
            assert!(failure.message().contains(message), "{failure}");
        }
    }

    #[test]
    fn what_is_no_directory_is_told() {
        for (dir, message) in [
            ("/etc/hostname", "is not a directory"),
            ("/does/not/exist", "there is no directory"),
        ] {
            let failure = find(dir, b"").unwrap_err();
            assert!(failure.message().contains(message), "{failure}");
        }
    }
}

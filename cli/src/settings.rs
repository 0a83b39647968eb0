//! What `slipway login` keeps for one server: its address, its certificate authority and the token.
//!
//! Owns the file `config.toml` (0600) and the rule flag > environment > file. Must not know the API.

use crate::contexts::{Contexts, Stored};
use crate::system;
use crate::token::Token;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::file::read_small;
use slipway_terminal::limits::CONFIG_BYTES_MAX;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Directory of the settings, instead of `~/.config/slipway`.
pub(crate) const ENV_CONFIG_DIR: &str = "SLIPWAY_CONFIG_DIR";
/// Token, instead of the stored one.
pub(crate) const ENV_TOKEN: &str = "SLIPWAY_TOKEN";
/// What to do about a token that the server does not take.
pub(crate) const LOG_IN_AGAIN: &str =
    "log in again with `slipway login`, or correct SLIPWAY_TOKEN where it is set";
const FILE_NAME: &str = "config.toml";

/// The settings file of the caller.
#[derive(Debug, Clone)]
pub(crate) struct SettingsFile {
    path: PathBuf,
}

impl SettingsFile {
    /// Finds it: `SLIPWAY_CONFIG_DIR`, else `XDG_CONFIG_HOME`, else `~/.config`.
    ///
    /// # Errors
    /// The caller's fault if there is no home directory either.
    pub(crate) fn locate() -> Outcome<Self> {
        locate_from(
            std::env::var_os(ENV_CONFIG_DIR),
            std::env::var_os("XDG_CONFIG_HOME"),
            std::env::var_os("HOME"),
        )
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; an absent file is an empty one.
    ///
    /// # Errors
    /// The caller's fault: unreadable, too large, or not what we write.
    pub(crate) fn read(&self) -> Outcome<Contexts> {
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Contexts::default());
            }
            Err(error) => {
                return Err(Failure::user_caused(
                    format_args!("read {}", self.path.display()),
                    &error,
                ));
            }
        };
        let mut text = String::new();
        file.take(CONFIG_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|error| {
                Failure::user_caused(format_args!("read {}", self.path.display()), &error)
            })?;
        // The parser's own message would quote the line, and the line may hold the token.
        toml::from_str(&text).map_err(|_| {
            Failure::user(format!("{} is damaged", self.path.display()))
                .hint("remove it and run `slipway login` again")
        })
    }

    /// Writes it whole or not at all, readable by its owner alone.
    ///
    /// # Errors
    /// The caller's fault: the directory cannot be written.
    pub(crate) fn write(&self, contexts: &Contexts) -> Outcome<()> {
        let text = toml::to_string_pretty(contexts)
            .map_err(|error| Failure::system_caused("write the settings", &error))?;
        write_private(&self.path, text.as_bytes())
    }
}

fn locate_from(
    own: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<OsString>,
) -> Outcome<SettingsFile> {
    let set = |value: Option<OsString>| value.filter(|text| !text.is_empty()).map(PathBuf::from);
    let dir = set(own)
        .or_else(|| set(xdg).map(|dir| dir.join("slipway")))
        .or_else(|| set(home).map(|dir| dir.join(".config").join("slipway")))
        .ok_or_else(|| {
            Failure::user("there is no home directory to keep settings in")
                .hint(format!("set {ENV_CONFIG_DIR} to a directory"))
        })?;
    Ok(SettingsFile {
        path: dir.join(FILE_NAME),
    })
}

/// Writes `bytes` to `path` by way of a new file beside it (0600), making its directory (0700) if it is absent.
///
/// # Errors
/// The caller's fault: the directory cannot be made or written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let fail = |error: std::io::Error| {
        Failure::user_caused(format_args!("write {}", path.display()), &error)
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    if !dir.is_dir() {
        std::fs::create_dir_all(dir).map_err(fail)?;
        system::keep_private(dir).map_err(fail)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = dir.join(name);
    let _ = std::fs::remove_file(&beside);
    let written = system::create_private(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        fail(error)
    })
}

/// Who is asked and as whom, after flag > environment > file.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// Address of the server.
    pub(crate) server: String,
    /// Its certificate authority, PEM.
    pub(crate) ca_pem: Option<String>,
    /// The token.
    pub(crate) token: Token,
}

/// Flags and environment that go before the file. clap has already put flag before environment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// `--server`, `SLIPWAY_SERVER`.
    pub(crate) server: Option<String>,
    /// `--ca`, `SLIPWAY_CA`.
    pub(crate) ca: Option<PathBuf>,
    /// `SLIPWAY_TOKEN`.
    pub(crate) token: Option<String>,
    /// `--context`, `SLIPWAY_CONTEXT`.
    pub(crate) context: Option<String>,
}

impl Access {
    /// Puts overrides before what is stored.
    ///
    /// # Errors
    /// The caller's fault: not logged in, or a file that cannot be read.
    pub(crate) fn resolve(overrides: &Overrides, stored: Stored) -> Outcome<Self> {
        let not_logged_in = || {
            Failure::user("not logged in")
                .hint("run `slipway login --server https://HOST:PORT --ca FILE`")
        };
        let ca_pem = match &overrides.ca {
            Some(path) => Some(read_ca(path)?),
            // Another server than the stored one has another authority, too.
            None if overrides.server.is_some() && overrides.server != stored.server => None,
            None => stored.ca_pem,
        };
        let same_server = overrides.server.is_none() || overrides.server == stored.server;
        let token = match &overrides.token {
            Some(text) => Token::parse(text)?,
            // The stored token is for the stored server; no other one may see it.
            None if !same_server => {
                return Err(Failure::user(
                    "the stored token belongs to another server than --server names",
                )
                .hint(format!(
                    "log in to that one with `slipway login --context NAME`, or set {ENV_TOKEN}"
                )));
            }
            None => stored.token.ok_or_else(not_logged_in)?,
        };
        let server = overrides
            .server
            .clone()
            .or(stored.server)
            .ok_or_else(not_logged_in)?;
        Ok(Self {
            server,
            ca_pem,
            token,
        })
    }
}

/// Reads a PEM file with at least one certificate.
///
/// # Errors
/// The caller's fault: unreadable, or not PEM.
pub(crate) fn read_ca(path: &Path) -> Outcome<String> {
    let text = read_small(path)?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(
            Failure::user(format!("{} has no certificate in it", path.display())).hint(
                "it should be a PEM file; `slipwayd serve` keeps its own in its data directory",
            ),
        );
    }
    Ok(text)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn stored() -> Stored {
        Stored {
            server: Some("https://a:1".to_owned()),
            ca_pem: Some("pem".to_owned()),
            token: Token::parse("secret").ok(),
        }
    }

    #[test]
    fn finds_the_directory_in_order() {
        let some = |text: &str| Some(OsString::from(text));
        for (own, xdg, home, want) in [
            (some("/o"), some("/x"), some("/h"), "/o/config.toml"),
            (None, some("/x"), some("/h"), "/x/slipway/config.toml"),
            (some(""), None, some("/h"), "/h/.config/slipway/config.toml"),
        ] {
            assert_eq!(locate_from(own, xdg, home).unwrap().path, Path::new(want));
        }
        assert!(locate_from(None, None, None).is_err());
    }

    #[test]
    fn what_is_written_is_read_back_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = SettingsFile {
            path: dir.path().join("new").join("config.toml"),
        };
        assert_eq!(file.read().unwrap(), Contexts::default());
        let mut contexts = Contexts::default();
        for name in ["default", "work"] {
            contexts.log_in(name, stored()).unwrap();
            file.write(&contexts).unwrap();
        }
        assert_eq!(file.read().unwrap(), contexts);
        let mode = std::fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(dir.path().join("new")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_damaged_file_is_told_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = SettingsFile {
            path: dir.path().join("config.toml"),
        };
        std::fs::write(&file.path, "token = 'hunter2\n").unwrap();
        let failure = file.read().unwrap_err();
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn overrides_go_first_and_a_token_stays_with_its_server() {
        let access = Access::resolve(&Overrides::default(), stored()).unwrap();
        assert_eq!(
            (access.server.as_str(), access.ca_pem.as_deref()),
            ("https://a:1", Some("pem"))
        );
        let other = Overrides {
            server: Some("https://b:1".to_owned()),
            ..Overrides::default()
        };
        let failure = Access::resolve(&other, stored()).unwrap_err();
        assert!(failure.message().contains("another server"), "{failure}");
        let with_token = Overrides {
            token: Some("other\n".to_owned()),
            ..other
        };
        let access = Access::resolve(&with_token, stored()).unwrap();
        assert_eq!((access.token.expose(), access.ca_pem), ("other", None));
        assert!(Access::resolve(&Overrides::default(), Stored::default()).is_err());
        assert_eq!(format!("{:?}", stored().token), "Some(Token(..))");
    }
}

//! What every command that talks to the server starts from.

use crate::api::ApiClient;
use crate::args::GlobalArgs;
use crate::settings::{Access, ENV_TOKEN, Overrides, SettingsFile, Stored};
use slipway_terminal::exit::Outcome;

/// The caller: flags, environment and stored settings.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    overrides: Overrides,
}

impl Caller {
    /// From the flags (which clap has already put before their variables) and the token's variable.
    pub(crate) fn new(global: &GlobalArgs) -> Self {
        let set = |text: &String| !text.is_empty();
        Self {
            overrides: Overrides {
                server: global.server.clone().filter(set),
                ca: global
                    .ca
                    .clone()
                    .filter(|path| !path.as_os_str().is_empty()),
                token: std::env::var(ENV_TOKEN).ok().filter(set),
            },
        }
    }

    /// Flags and environment.
    pub(crate) fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// Where settings are stored.
    ///
    /// # Errors
    /// The caller's fault: there is no home directory.
    pub(crate) fn file(&self) -> Outcome<SettingsFile> {
        SettingsFile::locate()
    }

    /// Who is asked and as whom.
    ///
    /// # Errors
    /// The caller's fault: not logged in.
    pub(crate) fn access(&self) -> Outcome<Access> {
        // Without a home directory the environment alone may do.
        let stored = match self.file() {
            Ok(file) => file.read()?,
            Err(_) => Stored::default(),
        };
        Access::resolve(&self.overrides, stored)
    }

    /// A client of the server.
    ///
    /// # Errors
    /// The caller's fault: not logged in, or a bad address or authority.
    pub(crate) fn client(&self) -> Outcome<ApiClient> {
        ApiClient::new(&self.access()?)
    }
}

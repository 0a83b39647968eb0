//! What every command that talks to the server starts from.

use crate::api::ApiClient;
use crate::args::GlobalArgs;
use crate::contexts::Contexts;
use crate::settings::{Access, ENV_TOKEN, Overrides, SettingsFile};
use slipway_terminal::exit::Outcome;

/// The caller: flags, environment and stored settings.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    overrides: Overrides,
    yes: bool,
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
                context: global.context.clone().filter(set),
            },
            yes: global.yes,
        }
    }

    /// Flags and environment.
    pub(crate) fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// The context that was asked for.
    pub(crate) fn context(&self) -> Option<&str> {
        self.overrides.context.as_deref()
    }

    /// Questions are answered with yes.
    pub(crate) fn yes(&self) -> bool {
        self.yes
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
        let contexts = match self.file() {
            Ok(file) => file.read()?,
            Err(_) => Contexts::default(),
        };
        Access::resolve(&self.overrides, contexts.select(self.context())?)
    }

    /// A client of the server.
    ///
    /// # Errors
    /// The caller's fault: not logged in, or a bad address or authority.
    pub(crate) fn client(&self) -> Outcome<ApiClient> {
        ApiClient::new(&self.access()?)
    }
}

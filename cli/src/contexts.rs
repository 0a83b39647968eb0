//! The logins of several servers, each under the name of a context, as `config.toml` holds them; and which of them is meant.
//!
//! Pure. Must not know where the file is, nor the API.

use crate::token::Token;
use serde::{Deserialize, Serialize};
use slipway_terminal::exit::{Failure, Outcome};
use std::collections::BTreeMap;

/// The context that a login without a name belongs to.
pub(crate) const DEFAULT: &str = "default";
/// Longest name of a context.
const NAME_BYTES_MAX: usize = 63;

/// The login of one server, as it is stored between commands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    /// Address of the server, as `https://host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    /// Its certificate authority, PEM; the system's authorities if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_pem: Option<String>,
    /// The token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Token>,
}

/// Every login. The one of the context `default` stands at the top of the file, where it stood before there were contexts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one in use; `default` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_pem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Token>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    contexts: BTreeMap<String, Stored>,
}

impl Contexts {
    /// The name that is meant: the one that was asked for, else the one in use.
    pub(crate) fn chosen<'a>(&'a self, named: Option<&'a str>) -> &'a str {
        named.or(self.current.as_deref()).unwrap_or(DEFAULT)
    }

    /// The login of a context, if it has one.
    pub(crate) fn login(&self, name: &str) -> Option<Stored> {
        if name != DEFAULT {
            return self.contexts.get(name).cloned();
        }
        let stored = Stored {
            server: self.server.clone(),
            ca_pem: self.ca_pem.clone(),
            token: self.token.clone(),
        };
        (stored != Stored::default()).then_some(stored)
    }

    /// The login that is meant; an empty one if nobody has logged in and nobody named a context.
    ///
    /// # Errors
    /// The caller's fault: the context that was asked for does not exist.
    pub(crate) fn select(&self, named: Option<&str>) -> Outcome<Stored> {
        match (self.login(self.chosen(named)), named) {
            (Some(stored), _) => Ok(stored),
            (None, None | Some(DEFAULT)) => Ok(Stored::default()),
            (None, Some(name)) => Err(unknown(name)),
        }
    }

    /// Stores a login under a name, and uses it from now on.
    ///
    /// # Errors
    /// The caller's fault: no context can have this name.
    pub(crate) fn log_in(&mut self, name: &str, stored: Stored) -> Outcome<()> {
        check_name(name)?;
        if name == DEFAULT {
            self.set_default(stored);
        } else {
            self.contexts.insert(name.to_owned(), stored);
        }
        self.point_to(name);
        Ok(())
    }

    /// Uses another context from now on.
    ///
    /// # Errors
    /// The caller's fault: it does not exist.
    pub(crate) fn switch(&mut self, name: &str) -> Outcome<()> {
        if self.login(name).is_none() {
            return Err(unknown(name));
        }
        self.point_to(name);
        Ok(())
    }

    /// Forgets the login of a context; says whether there was one. If it was in use, `default` is used from now on.
    pub(crate) fn forget(&mut self, name: &str) -> bool {
        let was_there = self.login(name).is_some();
        if name == DEFAULT {
            self.set_default(Stored::default());
        } else {
            self.contexts.remove(name);
        }
        if self.chosen(None) == name {
            self.current = None;
        }
        was_there
    }

    /// Names and logins, `default` first.
    pub(crate) fn all(&self) -> Vec<(String, Stored)> {
        let default = self
            .login(DEFAULT)
            .map(|stored| (DEFAULT.to_owned(), stored));
        let named = self.contexts.iter();
        let named = named.map(|(name, stored)| (name.clone(), stored.clone()));
        default.into_iter().chain(named).collect()
    }

    fn set_default(&mut self, stored: Stored) {
        self.server = stored.server;
        self.ca_pem = stored.ca_pem;
        self.token = stored.token;
    }

    fn point_to(&mut self, name: &str) {
        self.current = (name != DEFAULT).then(|| name.to_owned());
    }
}

fn unknown(name: &str) -> Failure {
    Failure::user(format!("there is no context '{name}'"))
        .hint("`slipway context list` shows them; `slipway login --context NAME` makes one")
}

fn check_name(name: &str) -> Outcome<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(Failure::user(format!("'{name}' cannot name a context"))
        .hint("1 to 63 letters, digits, and - _ ."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(server: &str) -> Stored {
        Stored {
            server: Some(server.to_owned()),
            ca_pem: None,
            token: Token::parse("secret").ok(),
        }
    }

    fn server(contexts: &Contexts, named: Option<&str>) -> Option<String> {
        contexts.select(named).unwrap().server
    }

    #[test]
    fn a_file_from_before_there_were_contexts_is_the_default_one() {
        let old = "server = \"https://a:1\"\ntoken = \"secret\"\n";
        let contexts: Contexts = toml::from_str(old).unwrap();
        assert_eq!(contexts.select(None).unwrap(), login("https://a:1"));
        assert_eq!(toml::to_string_pretty(&contexts).unwrap(), old);
    }

    #[test]
    fn the_context_that_is_named_goes_before_the_one_in_use() {
        let mut contexts = Contexts::default();
        assert_eq!(server(&contexts, None), None);
        contexts.log_in(DEFAULT, login("https://a:1")).unwrap();
        contexts.log_in("work", login("https://b:1")).unwrap();
        assert_eq!(server(&contexts, None).unwrap(), "https://b:1");
        assert_eq!(server(&contexts, Some(DEFAULT)).unwrap(), "https://a:1");
        contexts.switch(DEFAULT).unwrap();
        assert_eq!(server(&contexts, None).unwrap(), "https://a:1");
        assert_eq!(server(&contexts, Some("work")).unwrap(), "https://b:1");
        let text = toml::to_string_pretty(&contexts).unwrap();
        assert_eq!(toml::from_str::<Contexts>(&text).unwrap(), contexts);
    }

    #[test]
    fn an_unknown_context_is_refused_and_never_another_one_used() {
        let mut contexts = Contexts::default();
        contexts.log_in(DEFAULT, login("https://a:1")).unwrap();
        assert!(contexts.select(Some("work")).is_err());
        assert!(contexts.switch("work").is_err());
        for bad in ["", "a b", "a/b", "ü", &"x".repeat(64)] {
            assert!(contexts.log_in(bad, login("https://b:1")).is_err(), "{bad}");
        }
        assert_eq!(contexts.all().len(), 1);
    }

    #[test]
    fn forgetting_the_context_in_use_goes_back_to_the_default_one() {
        let mut contexts = Contexts::default();
        contexts.log_in(DEFAULT, login("https://a:1")).unwrap();
        contexts.log_in("work", login("https://b:1")).unwrap();
        assert!(contexts.forget("work"));
        assert!(!contexts.forget("work"));
        assert_eq!(contexts.chosen(None), DEFAULT);
        assert!(contexts.forget(DEFAULT));
        assert_eq!(contexts, Contexts::default());
    }
}

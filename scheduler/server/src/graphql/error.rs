//! How a failure becomes a GraphQL error: a message, `extensions { code fault hint }`, and nothing internal.

use crate::builds::BuildError;
use crate::farm::FarmError;
use async_graphql::{Error, ErrorExtensions};
use slipway_core::build::Fault;
use slipway_store::{StoreError, What};

/// A refusal with a stable code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    code: &'static str,
    fault: Fault,
    message: String,
    hint: Option<String>,
}

impl Problem {
    /// The caller asked for something that cannot be.
    pub(super) fn bad_input(message: impl Into<String>) -> Self {
        Self::user("BAD_INPUT", message)
    }

    /// The caller may not.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::user("FORBIDDEN", message)
    }

    /// Another mistake of the caller.
    pub(super) fn user(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, fault: Fault::User, message: message.into(), hint: None }
    }

    /// Our own failure; `what` is for the caller, the cause goes to the log.
    pub(super) fn internal(what: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %crate::farm::chain(cause), "{what}");
        Self { code: "INTERNAL", fault: Fault::System, message: what.to_owned(), hint: None }
    }

    /// What to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Error::new(problem.message).extend_with(|_, extensions| {
            extensions.set("code", problem.code);
            extensions.set(
                "fault",
                match problem.fault {
                    Fault::User => "user",
                    Fault::System => "system",
                },
            );
            if let Some(hint) = problem.hint {
                extensions.set("hint", hint);
            }
        })
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound(what) => Self::user(not_found_code(*what), error.to_string()),
            StoreError::Exists(_) => Self::user("EXISTS", error.to_string()),
            StoreError::InUse(_) => Self::user("IN_USE", error.to_string()),
            StoreError::Changed(_) => {
                Self::user("CONFLICT", error.to_string()).hint("read it again and try once more")
            }
            StoreError::PoolFull { .. } => Self {
                code: "NO_SPACE",
                fault: Fault::System,
                message: error.to_string(),
                hint: Some("ask for a smaller volume, or have the operator add space".into()),
            },
            StoreError::Unavailable { .. }
            | StoreError::Migrate(_)
            | StoreError::Corrupt { .. }
            | StoreError::OutOfRange(_) => Self::internal("the store did not do it", &error),
        }
    }
}

fn not_found_code(what: What) -> &'static str {
    match what {
        What::Org => "ORG_NOT_FOUND",
        What::App => "APP_NOT_FOUND",
        What::Build => "BUILD_NOT_FOUND",
        What::Token | What::Host | What::Volume | What::Machine | What::Credential => "NOT_FOUND",
    }
}

impl From<FarmError> for Problem {
    fn from(error: FarmError) -> Self {
        let hint = error.hint();
        if let FarmError::Store(store) = error {
            return store.into();
        }
        let problem = match error.fault() {
            Fault::User => Self::user("BUILDER_REFUSED", error.to_string()),
            Fault::System => {
                tracing::warn!(error = %crate::farm::chain(&error), "a builder is not available");
                let code = "BUILDER_UNAVAILABLE";
                Self { code, fault: Fault::System, message: error.to_string(), hint: None }
            }
        };
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<BuildError> for Problem {
    fn from(error: BuildError) -> Self {
        let (hint, fault) = (error.hint(), error.fault());
        let problem = match error {
            BuildError::Farm(farm) => return farm.into(),
            BuildError::Store(store) => return store.into(),
            BuildError::Refused { .. } | BuildError::Guest(_) => match fault {
                Fault::User => Self::user("BUILD_REFUSED", error.to_string()),
                Fault::System => {
                    tracing::warn!(error = %crate::farm::chain(&error), "a build was not started");
                    let code = "BUILDER_UNAVAILABLE";
                    Self { code, fault, message: error.to_string(), hint: None }
                }
            },
        };
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

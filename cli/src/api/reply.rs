//! What an answer of the API says: the field that was asked for, or an error and whose fault it is.
//!
//! Must not know how answers come.

use serde::de::DeserializeOwned;
use serde_json::Value;
use slipway_terminal::exit::{Failure, FailureKind};

/// Our own code for answers and refusals that only another version gives.
pub(super) const OTHER_VERSION: &str = "OTHER_VERSION";

/// A refusal of the API, with its machine-readable code.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    /// The `code` extension, such as `NOT_FOUND`; empty if there was none.
    pub(crate) code: String,
    /// What the caller is told.
    pub(crate) failure: Failure,
}

impl ApiError {
    /// Says which versions do not understand each other, if that is what it is about.
    pub(super) fn with_versions(mut self, server: Option<String>) -> Self {
        if self.code == OTHER_VERSION {
            let ours = env!("CARGO_PKG_VERSION");
            self.failure = self.failure.hint(match server {
                Some(theirs) if theirs != ours => format!(
                    "this is slipway {ours} and the server is {theirs}: use the same version of both"
                ),
                Some(_) | None => format!(
                    "this is slipway {ours} and the server is another version: use the same version of both"
                ),
            });
        }
        self
    }
}

/// Takes `field` out of a GraphQL response, or its first error.
pub(super) fn interpret<T: DeserializeOwned>(
    mut value: Value,
    field: &'static str,
) -> Result<T, ApiError> {
    if let Some(error) = value
        .get("errors")
        .and_then(Value::as_array)
        .and_then(|errors| errors.first())
    {
        return Err(explain(error));
    }
    let data = value
        .get_mut("data")
        .and_then(|data| data.get_mut(field))
        .map(Value::take)
        .unwrap_or_default();
    serde_json::from_value(data).map_err(|error| ApiError {
        code: OTHER_VERSION.to_owned(),
        failure: Failure::system_caused("the server's answer is not what was asked for", &error),
    })
}

fn explain(error: &Value) -> ApiError {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let extension = |name: &str| error.get("extensions").and_then(|all| all.get(name));
    let message = text(error.get("message")).unwrap_or_else(|| "unknown error".to_owned());
    let mut code = text(extension("code")).unwrap_or_default();
    let kind = match text(extension("fault")).as_deref() {
        Some("user") => FailureKind::User,
        Some("system") => FailureKind::System,
        Some(_) | None => kind_of(&code, &message),
    };
    let failure = match kind {
        FailureKind::User => Failure::user(message.clone()),
        FailureKind::System | FailureKind::Interrupted => Failure::system(message.clone()),
    };
    let failure = failure.maybe_hint(text(extension("hint")));
    let failure = match code.as_str() {
        "UNAUTHENTICATED" => failure.hint(crate::settings::LOG_IN_AGAIN),
        "" | "INVALID" if is_schema_mismatch(&message) => {
            OTHER_VERSION.clone_into(&mut code);
            failure
        }
        _ => failure,
    };
    ApiError { code, failure }
}

/// Codes that are ours; every other one tells the caller what to change.
fn kind_of(code: &str, message: &str) -> FailureKind {
    match code {
        "INTERNAL" | "UNAVAILABLE" | "BUILDER_UNAVAILABLE" | "TIMEOUT" => FailureKind::System,
        "" if !is_schema_mismatch(message) => FailureKind::System,
        _ => FailureKind::User,
    }
}

/// How async-graphql refuses a request that is not of its schema.
fn is_schema_mismatch(message: &str) -> bool {
    [
        "Unknown field",
        "Unknown argument",
        "Unknown type",
        "Invalid value for argument",
    ]
    .iter()
    .any(|start| message.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn takes_the_field_or_the_first_error() {
        let value = json!({ "data": { "x": [1, 2] } });
        assert_eq!(interpret::<Vec<u8>>(value, "x").unwrap(), [1, 2]);
        let value = json!({ "data": null, "errors": [
            { "message": "no such app", "extensions": { "code": "NOT_FOUND", "hint": "create it" } },
        ] });
        let error = interpret::<Value>(value, "x").unwrap_err();
        assert_eq!(error.code, "NOT_FOUND");
        assert_eq!(
            error.failure,
            Failure::user("no such app").hint("create it")
        );
    }

    #[test]
    fn faults_are_told_apart() {
        for (extensions, message, code) in [
            (json!({ "fault": "system", "code": "X" }), "m", 2),
            (json!({ "fault": "user", "code": "INTERNAL" }), "m", 1),
            (json!({ "code": "INTERNAL" }), "m", 2),
            (json!({ "code": "FORBIDDEN" }), "m", 1),
            (json!({}), "Unknown field \"a\" on type \"Query\".", 1),
            (json!({}), "m", 2),
        ] {
            let error = explain(&json!({ "message": message, "extensions": extensions }));
            assert_eq!(error.failure.code(), code, "{extensions}");
        }
    }
}

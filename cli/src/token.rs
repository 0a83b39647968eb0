//! An API token as the client holds it.
//!
//! Must not know where it is kept, nor the API.

use serde::{Deserialize, Serialize};
use slipway_terminal::exit::{Failure, Outcome};
use std::fmt;

/// An API token. `Debug` never prints it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(String);

impl Token {
    /// Takes the text of a token, without the white space around it.
    ///
    /// # Errors
    /// The caller's fault: empty, or with characters that no token has.
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let token = text.trim();
        if token.is_empty() {
            return Err(Failure::user("the token is empty"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                Failure::user("that is not a token: it has spaces or control characters")
                    .hint("a token is one word, as `slipway tokens create` prints it"),
            );
        }
        Ok(Self(token.to_owned()))
    }

    /// The secret itself: for a header, and for nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

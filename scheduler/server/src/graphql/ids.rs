//! Ids as callers write them.

use super::Result;
use crate::problem::{Code, Problem};
use async_graphql::ID;
use std::str::FromStr;

/// A text as an id.
///
/// # Errors
/// [`Code::Invalid`].
pub(super) fn parse_id<T: FromStr<Err = slipway_core::id::InvalidId>>(id: &ID) -> Result<T> {
    Ok(id.parse().map_err(|error: T::Err| {
        Problem::new(Code::Invalid, error.to_string()).hint("copy it from the list")
    })?)
}

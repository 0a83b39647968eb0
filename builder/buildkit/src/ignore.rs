//! Docker's ignore files: how they are read and what their patterns match, as Docker's own matcher does it, with its
//! oddities (the same rule must leave out the same files here and there). Pure.
//!
//! It must not know of directories on disk, nor who asks.

mod glob;
mod path;
mod pattern;

pub(crate) use glob::{has_wildcards, matches_name};
pub(crate) use path::clean;
pub use pattern::{BadPattern, Matcher, ParentMatches, Pattern};

use crate::limits;

/// Why an ignore file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// It is over [`limits::IGNORE_FILE_BYTES_MAX`].
    #[error("ignore file is larger than {} KiB", limits::IGNORE_FILE_BYTES_MAX >> 10)]
    TooLarge,
    /// A pattern in it is malformed.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
}

/// Reads an ignore file. Gives its patterns in order, in the form that Docker sends them to a builder: comments and
/// blank lines left out, paths made clean and relative, `!` kept in front. Bytes that are not UTF-8 are replaced.
pub fn parse(content: &[u8]) -> Result<Vec<String>, IgnoreError> {
    if content.len() > limits::IGNORE_FILE_BYTES_MAX {
        return Err(IgnoreError::TooLarge);
    }
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let text = String::from_utf8_lossy(content);
    Ok(text.split('\n').filter_map(pattern_of_line).collect())
}

/// Reads an ignore file into a matcher: a path that it matches is left out of the context.
pub fn matcher(content: &[u8]) -> Result<Matcher, IgnoreError> {
    Ok(Matcher::new(&parse(content)?)?)
}

fn pattern_of_line(line: &str) -> Option<String> {
    // A comment begins at the very first column; `  #` is a pattern.
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    let (sign, rest) = line
        .strip_prefix('!')
        .map_or(("", line), |rest| ("!", rest.trim()));
    if rest.is_empty() {
        return Some(sign.to_owned());
    }
    let cleaned = clean(rest);
    let relative = if cleaned.len() > 1 {
        cleaned.strip_prefix('/')
    } else {
        None
    };
    Some(format!("{sign}{}", relative.unwrap_or(&cleaned)))
}

#[cfg(test)]
mod tests;

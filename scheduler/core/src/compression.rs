//! How a pushed image's layers are compressed, as people write it. It must not know how that is done.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Compression of the layers of a push. As text, in JSON too: `gzip`, `gzip:6`, `zstd`, `zstd:3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compression {
    /// gzip, which every client reads; level 1 (fast) to 12 (small).
    Gzip(u8),
    /// zstd, smaller and faster; Docker reads it from 20.10.10 on. Level 1 (fast) to 19 (small).
    Zstd(u8),
}

/// The text names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a compression: {0:?}; it is gzip, gzip:1 to gzip:12, zstd, or zstd:1 to zstd:19")]
pub struct CompressionError(String);

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Compression, CompressionError> {
        let unknown = || CompressionError(text.chars().take(40).collect());
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, level.parse().map_err(|_| unknown())?),
            None => (text, 1),
        };
        match (name, level) {
            ("gzip", 1..=12) => Ok(Compression::Gzip(level)),
            ("zstd", 1..=19) => Ok(Compression::Zstd(level)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Gzip(level) => write!(f, "gzip:{level}"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = CompressionError;

    fn try_from(text: String) -> Result<Compression, CompressionError> {
        text.parse()
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> String {
        compression.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_written_again() {
        for (text, same) in [
            ("gzip", "gzip:1"),
            ("gzip:6", "gzip:6"),
            ("zstd", "zstd:1"),
            ("zstd:19", "zstd:19"),
        ] {
            let compression: Compression = text.parse().unwrap();
            assert_eq!(compression.to_string(), same);
            assert_eq!(same.parse(), Ok(compression));
        }
        for wrong in [
            "", "gzip:0", "gzip:13", "zstd:20", "zstd:-1", "xz", "gzip:", "GZIP",
        ] {
            assert!(wrong.parse::<Compression>().is_err(), "{wrong}");
        }
    }
}

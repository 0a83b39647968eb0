//! `sha256:<hex>`, checked once.
//!
//! Knows nothing of where digests come from.

use sha2::{Digest as _, Sha256};
use std::fmt;

/// A SHA-256 digest as registries write it. Always 64 lower-case hex digits, so it is safe in paths and URLs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// The text is no `sha256:` digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a sha256 digest: {0:?}")]
pub struct DigestError(pub(crate) String);

impl Digest {
    /// Parses `sha256:<64 hex digits>`, lower case only (image-spec, descriptor.md).
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let fail = || DigestError(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(fail)?;
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(fail());
        }
        Ok(Digest(text.to_string()))
    }

    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::finish(Sha256::new_with_prefix(bytes))
    }

    /// Ends a running hash.
    pub(crate) fn finish(hasher: Sha256) -> Digest {
        use fmt::Write as _;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in hasher.finalize() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text)
    }

    /// With the algorithm: `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone.
    pub fn hex(&self) -> &str {
        self.0.get(7..).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_in_lower_case() {
        let good = Digest::of(b"");
        assert_eq!(
            good.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::parse(good.as_str()), Ok(good.clone()));
        for bad in [
            "",
            "sha256:",
            &good.as_str()[..70],
            &good.as_str().to_uppercase(),
            "sha512:ab",
            "sha256:../../x",
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Typed ids: the one registry of what Slipway names.
//!
//! An id is a prefix that tells its kind and 80 random bits in Crockford base32, as in `org_0k3vq2m9c4t7xw1e`.
//! There is no meaning inside an id, and no arithmetic on one. Randomness comes from the caller.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Random bytes an id is made from.
pub const ID_ENTROPY_BYTES: usize = 10;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ENCODED_LEN: usize = 16;

/// Why a string is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{got}' is not a {kind} id (expected '{prefix}_' and {ENCODED_LEN} characters)")]
pub struct InvalidId {
    kind: &'static str,
    prefix: &'static str,
    got: String,
}

fn encode(entropy: [u8; ID_ENTROPY_BYTES]) -> String {
    let mut out = String::with_capacity(ENCODED_LEN);
    let (mut acc, mut bits) = (0u32, 0u32);
    for byte in entropy {
        acc = (acc << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[(acc >> bits) as usize & 31]));
        }
        acc &= (1 << bits) - 1;
    }
    out
}

fn is_encoded(text: &str) -> bool {
    text.len() == ENCODED_LEN && text.bytes().all(|b| ALPHABET.contains(&b))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind starts with, before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// An id from random bytes that the caller drew.
            pub fn from_entropy(entropy: [u8; ID_ENTROPY_BYTES]) -> Self {
                Self(format!(concat!($prefix, "_{}"), encode(entropy)))
            }

            /// The id as text, prefix included.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                match text.strip_prefix(concat!($prefix, "_")) {
                    Some(rest) if is_encoded(rest) => Ok(Self(text.to_owned())),
                    Some(_) | None => Err(InvalidId {
                        kind: $kind,
                        prefix: $prefix,
                        got: text.chars().take(64).collect(),
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// A tenant.
    OrgId = "org", "org";
    /// An application of an org; a builder is a machine of an app whose role is builder.
    AppId = "app", "app";
    /// An isolated running instance.
    MachineId = "mch", "machine";
    /// A persistent disk.
    VolumeId = "vol", "volume";
    /// What a volume held at one moment, kept apart from it.
    SnapshotId = "snp", "snapshot";
    /// A region-labelled computer that runs machines.
    HostId = "hst", "host";
    /// One build of one image.
    BuildId = "bld", "build";
    /// An API token (the public half; the secret is only ever stored hashed).
    TokenId = "tok", "token";
    /// A stored registry credential.
    CredentialId = "crd", "registry credential";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_rejects_other_kinds() {
        let org = OrgId::from_entropy([0xff; 10]);
        assert_eq!(org.as_str(), "org_zzzzzzzzzzzzzzzz");
        assert_eq!(org.as_str().parse::<OrgId>(), Ok(org.clone()));
        assert!(org.as_str().parse::<AppId>().is_err());
        for bad in [
            "",
            "org_",
            "org_zzzzzzzzzzzzzzz",
            "org_zzzzzzzzzzzzzzzu",
            "org_../../../../etc",
        ] {
            assert!(bad.parse::<OrgId>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn different_entropy_gives_different_ids(a: [u8; 10], b: [u8; 10]) {
            let (x, y) = (BuildId::from_entropy(a), BuildId::from_entropy(b));
            proptest::prop_assert_eq!(a == b, x == y);
            proptest::prop_assert_eq!(x.as_str().parse::<BuildId>(), Ok(x.clone()));
        }
    }
}

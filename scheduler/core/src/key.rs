//! Keys of encrypted volumes and their leases.
//!
//! A key is never printed, is wiped from memory when it is dropped, and goes over the wire only inside a [`KeyLease`].
//!
//! Must not know: where keys are kept, or what they open.

use crate::generation::Generation;
use crate::id::{MachineId, VolumeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a volume's key. Random, so that nothing slow has to stand between it and what it opens.
pub const VOLUME_KEY_BYTES: usize = 64;

/// The key of one volume.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeKey([u8; VOLUME_KEY_BYTES]);

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a volume's key has {VOLUME_KEY_BYTES} bytes, this has {0}")]
pub struct InvalidVolumeKey(usize);

impl VolumeKey {
    /// A key of random bytes that the caller drew, and wipes.
    pub fn from_entropy(entropy: &[u8; VOLUME_KEY_BYTES]) -> Self {
        Self(*entropy)
    }

    /// A key that was kept somewhere.
    ///
    /// # Errors
    /// [`InvalidVolumeKey`] if the length is not a key's.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidVolumeKey> {
        let bytes = bytes
            .try_into()
            .map_err(|_| InvalidVolumeKey(bytes.len()))?;
        Ok(Self(bytes))
    }

    /// The key itself. Whoever copies it wipes the copy.
    pub fn expose(&self) -> &[u8; VOLUME_KEY_BYTES] {
        &self.0
    }
}

impl Drop for VolumeKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

impl Serialize for VolumeKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new(String::with_capacity(2 * VOLUME_KEY_BYTES));
        for byte in self.0 {
            for half in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(half), 16).unwrap_or('0'));
            }
        }
        to.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for VolumeKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(HexKey)
    }
}

/// Reads the key out of the text where it lies; only an escaped text would be copied, and hexadecimal needs no escapes.
struct HexKey;

impl serde::de::Visitor<'_> for HexKey {
    type Value = VolumeKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hexadecimal digits", 2 * VOLUME_KEY_BYTES)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<VolumeKey, E> {
        // The text itself stays out of the message: it may be a key with a slip in it.
        let wrong = || E::custom("not a volume's key");
        if text.len() != 2 * VOLUME_KEY_BYTES {
            return Err(wrong());
        }
        let mut key = VolumeKey([0; VOLUME_KEY_BYTES]);
        for (byte, pair) in key.0.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            for half in pair {
                let digit = char::from(*half).to_digit(16).ok_or_else(wrong)?;
                *byte = *byte << 4 | u8::try_from(digit).map_err(|_| wrong())?;
            }
        }
        Ok(key)
    }
}

/// A key that is lent: to one host, for one volume, for one generation, for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLease {
    /// What it opens.
    pub volume: VolumeId,
    /// The machine it is for; absent for work on a volume that no machine has (made, forked, exported).
    pub machine: Option<MachineId>,
    /// The machine's generation; without a machine the highest that the volume has had.
    pub generation: Generation,
    /// Milliseconds until the host forgets it, unless it is renewed. What was opened meanwhile stays open.
    pub ttl_ms: u64,
    /// The key.
    pub key: VolumeKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_over_the_wire_and_nowhere_else() {
        let mut bytes = [0xab; VOLUME_KEY_BYTES];
        bytes[0] = 0x0f;
        let lease = KeyLease {
            volume: VolumeId::from_entropy([1; 10]),
            machine: None,
            generation: Generation(3),
            ttl_ms: 1000,
            key: VolumeKey::from_entropy(&bytes),
        };
        let text = serde_json::to_string(&lease).unwrap();
        assert!(text.contains("0fababab"));
        assert_eq!(serde_json::from_str::<KeyLease>(&text).unwrap(), lease);
        let shown = format!("{lease:?}");
        assert!(
            shown.contains("VolumeKey(..)") && !shown.contains("abab"),
            "{shown}"
        );
        for wrong in [
            text.replace("0fab", "0gab"),
            text.replace("0fab", ""),
            text.replace("0fab", "éab"),
        ] {
            let error = serde_json::from_str::<KeyLease>(&wrong)
                .unwrap_err()
                .to_string();
            assert!(!error.contains("abab"), "{error}");
        }
        assert!(VolumeKey::from_bytes(&bytes[1..]).is_err());
    }
}

//! Sealing of registry credentials at rest: XChaCha20-Poly1305 under one master key.
//!
//! The additional data binds a sealed text to its org and registry, so that a row copied to another org, or to another
//! registry of the same org, does not open. Must not know: where sealed texts are kept.

use crate::secret_file;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use slipway_core::id::OrgId;
use std::path::Path;

/// Name of the master key's file in the data directory.
pub const MASTER_KEY_FILE: &str = "master.key";
const NONCE_BYTES: usize = 24;
const VERSION: u8 = 1;

/// Why something was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be read or made.
    #[error("read or make the master key")]
    KeyFile(#[from] secret_file::SecretFileError),
    /// The key's file does not hold a key.
    #[error("the master key is not 32 bytes")]
    KeyLength,
    /// The system has no randomness.
    #[error("draw a nonce: {0}")]
    Entropy(getrandom::Error),
    /// The text was not sealed by this key for this org and registry.
    #[error("a sealed credential does not open: another master key, or a damaged row")]
    DoesNotOpen,
}

/// Seals and opens. `Debug` prints no key.
pub struct Sealer(XChaCha20Poly1305);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// Reads the master key in `data_dir`, or makes one (0600).
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(data_dir: &Path) -> Result<Self, SealError> {
        let key = secret_file::read_or_make(&data_dir.join(MASTER_KEY_FILE), || {
            let mut key = vec![0; 32];
            getrandom::fill(&mut key).map(|()| key)
        })?;
        if key.len() != 32 {
            return Err(SealError::KeyLength);
        }
        Ok(Self(XChaCha20Poly1305::new(Key::from_slice(&key))))
    }

    /// Seals `clear` for this org and registry.
    ///
    /// # Errors
    /// [`SealError::Entropy`].
    pub fn seal(&self, org: &OrgId, registry: &str, clear: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(SealError::Entropy)?;
        let aad = context(org, registry);
        let payload = Payload {
            msg: clear,
            aad: &aad,
        };
        let sealed = self
            .0
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| SealError::DoesNotOpen)?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// Opens what [`Self::seal`] gave.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn open_sealed(
        &self,
        org: &OrgId,
        registry: &str,
        sealed: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let body = sealed
            .strip_prefix(&[VERSION])
            .ok_or(SealError::DoesNotOpen)?;
        let (nonce, body) = body
            .split_at_checked(NONCE_BYTES)
            .ok_or(SealError::DoesNotOpen)?;
        let aad = context(org, registry);
        self.0
            .decrypt(
                XNonce::from_slice(nonce),
                Payload {
                    msg: body,
                    aad: &aad,
                },
            )
            .map_err(|_| SealError::DoesNotOpen)
    }
}

/// An org id has a fixed length and no NUL, so that no two pairs give the same bytes.
fn context(org: &OrgId, registry: &str) -> Vec<u8> {
    [
        b"slipway registry credential\0",
        org.as_str().as_bytes(),
        b"\0",
        registry.as_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_for_its_org_and_registry_and_only_whole() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let sealer = Sealer::open(dir.path()).expect("a new key");
        let (mine, theirs) = (OrgId::from_entropy([1; 10]), OrgId::from_entropy([2; 10]));
        let sealed = sealer.seal(&mine, "r.example", b"hunter2").expect("sealed");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));

        let again = Sealer::open(dir.path()).expect("the same key");
        let opened = again
            .open_sealed(&mine, "r.example", &sealed)
            .expect("opens");
        assert_eq!(opened, b"hunter2");
        assert!(again.open_sealed(&theirs, "r.example", &sealed).is_err());
        assert!(again.open_sealed(&mine, "s.example", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(
                again.open_sealed(&mine, "r.example", &damaged).is_err(),
                "byte {at}"
            );
            assert!(
                again
                    .open_sealed(&mine, "r.example", &sealed[..at])
                    .is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn the_key_is_private_and_another_key_opens_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let org = OrgId::from_entropy([1; 10]);
        let sealed = Sealer::open(one.path())
            .unwrap()
            .seal(&org, "r", b"x")
            .unwrap();
        assert!(
            Sealer::open(two.path())
                .unwrap()
                .open_sealed(&org, "r", &sealed)
                .is_err()
        );
        let mode = std::fs::metadata(one.path().join(MASTER_KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

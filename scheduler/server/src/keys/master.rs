//! The master key under which the embedded key store seals, and those before it.
//!
//! Each has 32 bytes, written as 64 hexadecimal digits or as they are. Where it comes from, first match wins: a file named in
//! the settings; the systemd credential `slipway-master-key`; the environment variable `SLIPWAY_MASTER_KEY`; a file of its own
//! in the data directory, made at the first start.
//!
//! Must not know: what is sealed.

use crate::secret_file;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The master key of the volumes' keys, in the data directory, unless the settings name another place.
pub const MASTER_KEYS_FILE: &str = "volume-keys.master";
const CREDENTIAL: &str = "slipway-master-key";
const VARIABLE: &str = "SLIPWAY_MASTER_KEY";
const NONCE_BYTES: usize = 24;
const ID_BYTES: usize = 8;
const VERSION: u8 = 1;

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// A file cannot be read or made.
    #[error("read or make a master key")]
    File(#[from] secret_file::SecretFileError),
    /// What is there is no key.
    #[error("the master key from {0} is not 32 bytes, nor 64 hexadecimal digits")]
    Malformed(String),
    /// The system has no randomness.
    #[error("draw a nonce: {0}")]
    Entropy(getrandom::Error),
}

struct MasterKey {
    /// The beginning of a hash of it: tells which key sealed a text, and nothing of the key.
    id: [u8; ID_BYTES],
    cipher: XChaCha20Poly1305,
}

/// The key that seals, and those that still open.
pub struct MasterKeys {
    current: MasterKey,
    previous: Vec<MasterKey>,
}

impl std::fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKeys(..)")
    }
}

/// How a sealed text opened.
pub(super) struct OpenedText {
    pub(super) clear: Zeroizing<Vec<u8>>,
    /// It was sealed by a key before the current one.
    pub(super) outdated: bool,
}

impl MasterKeys {
    /// Finds the master key, and reads those in `previous`.
    ///
    /// # Errors
    /// [`MasterKeyError`].
    pub fn open(
        data_dir: &Path,
        file: Option<&Path>,
        previous: &[PathBuf],
    ) -> Result<Self, MasterKeyError> {
        let current = match file {
            Some(file) => (secret_file::read(file)?, file.display().to_string()),
            None => Self::found(data_dir)?,
        };
        let current = MasterKey::parse(Zeroizing::new(current.0), &current.1)?;
        let previous = previous
            .iter()
            .map(|file| {
                let text = Zeroizing::new(secret_file::read(file)?);
                MasterKey::parse(text, &file.display().to_string())
            })
            .collect::<Result<_, MasterKeyError>>()?;
        Ok(Self { current, previous })
    }

    fn found(data_dir: &Path) -> Result<(Vec<u8>, String), MasterKeyError> {
        if let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") {
            let path = Path::new(&dir).join(CREDENTIAL);
            if path.exists() {
                return Ok((secret_file::read(&path)?, path.display().to_string()));
            }
        }
        if let Ok(text) = std::env::var(VARIABLE) {
            return Ok((text.into_bytes(), VARIABLE.to_owned()));
        }
        let path = data_dir.join(MASTER_KEYS_FILE);
        let key = secret_file::read_or_make(&path, || {
            let mut key = vec![0; 32];
            getrandom::fill(&mut key).map(|()| key)
        })?;
        Ok((key, path.display().to_string()))
    }

    #[cfg(test)]
    pub(super) fn of(current: [u8; 32], previous: &[[u8; 32]]) -> Self {
        let key =
            |bytes: &[u8; 32]| MasterKey::parse(Zeroizing::new(bytes.to_vec()), "a test").unwrap();
        Self {
            current: key(&current),
            previous: previous.iter().map(key).collect(),
        }
    }

    /// Seals `clear` for `context`, which has to be the same to open it.
    pub(super) fn seal(&self, context: &[u8], clear: &[u8]) -> Result<Vec<u8>, MasterKeyError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(MasterKeyError::Entropy)?;
        let payload = Payload {
            msg: clear,
            aad: context,
        };
        let sealed = self
            .current
            .cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| MasterKeyError::Malformed("itself".to_owned()))?;
        Ok([&[VERSION][..], &self.current.id, &nonce, &sealed].concat())
    }

    /// Opens what [`Self::seal`] gave for the same context; nothing if no key of ours does.
    pub(super) fn open_sealed(&self, context: &[u8], sealed: &[u8]) -> Option<OpenedText> {
        let (id, rest) = sealed
            .strip_prefix(&[VERSION])?
            .split_at_checked(ID_BYTES)?;
        let (nonce, body) = rest.split_at_checked(NONCE_BYTES)?;
        let outdated = id != self.current.id;
        let key = if outdated {
            self.previous.iter().find(|key| key.id == id)?
        } else {
            &self.current
        };
        let payload = Payload {
            msg: body,
            aad: context,
        };
        let clear = key
            .cipher
            .decrypt(XNonce::from_slice(nonce), payload)
            .ok()?;
        Some(OpenedText {
            clear: Zeroizing::new(clear),
            outdated,
        })
    }
}

impl MasterKey {
    fn parse(text: Zeroizing<Vec<u8>>, from: &str) -> Result<Self, MasterKeyError> {
        let malformed = || MasterKeyError::Malformed(from.to_owned());
        let mut key = Zeroizing::new([0_u8; 32]);
        if text.len() == 32 {
            key.copy_from_slice(&text);
        } else {
            let digits = text.trim_ascii();
            if digits.len() != 64 {
                return Err(malformed());
            }
            for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
                for half in pair {
                    let digit = char::from(*half).to_digit(16).ok_or_else(malformed)?;
                    *byte = *byte << 4 | u8::try_from(digit).map_err(|_| malformed())?;
                }
            }
        }
        let hash = Sha256::digest([b"slipway master key id\0", &key[..]].concat());
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&hash[..ID_BYTES]);
        Ok(Self {
            id,
            cipher: XChaCha20Poly1305::new(Key::from_slice(&*key)),
        })
    }
}

//! Random bytes of the system, for ids.
//!
//! Must not know: what ids there are.

use slipway_core::id::ID_ENTROPY_BYTES;

/// The system gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes: {0}")]
pub struct NoEntropy(pub(crate) getrandom::Error);

/// What one id is made from.
///
/// # Errors
/// [`NoEntropy`].
pub(crate) fn entropy() -> Result<[u8; ID_ENTROPY_BYTES], NoEntropy> {
    let mut bytes = [0; ID_ENTROPY_BYTES];
    getrandom::fill(&mut bytes).map_err(NoEntropy)?;
    Ok(bytes)
}

//! Bounds of what people write; docs/LIMITS.md repeats them.

/// Configuration and credential files. Larger ones are refused: they are not what they should be.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

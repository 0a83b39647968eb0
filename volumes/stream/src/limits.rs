//! Bounds of a stream; docs/LIMITS.md repeats them.

/// Bytes of a volume in one record of an exported stream.
pub const RECORD_BYTES: usize = 1 << 20;
/// Longest encoded record that is read from a stream; a longer one is not ours.
pub const ENCODED_BYTES_MAX: usize = RECORD_BYTES + (64 << 10);

//! The store's own bounds.

use std::time::Duration;

/// How long a statement waits for another process's write to finish before it fails with `Unavailable`.
pub const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a verb waits for a connection of the pool; then it fails with `Unavailable`.
pub const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(10);
/// Connections that read at once; further readers wait. There is one that writes: SQLite has one writer.
pub const READERS_MAX: u32 = 4;
/// So far are generations of machines and fencing numbers of volumes ahead in a backup: more than any rises by between a backup and its
/// restore.
pub const RESTORED_AHEAD: u32 = 1 << 20;
/// Rows one list verb returns; callers page on from the last.
pub const LIST_ROWS_MAX: u32 = 1000;
/// Events one read of a build's events returns; callers page on from the last number.
pub const EVENTS_READ_MAX: u32 = 512;
/// A read of a build's events ends with the event that brings it to so many bytes of JSON; callers page on.
pub const EVENTS_READ_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(BUSY_WAIT_MAX.as_secs() <= CONNECTION_WAIT_MAX.as_secs());

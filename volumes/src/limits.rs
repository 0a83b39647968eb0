//! Every bound of this crate, and what happens at it.

use slipway_core::units::ByteSize;
use std::time::Duration;

/// Smallest volume. Below it ext4's own structures would take a good part; `ensure` answers `InvalidSize`.
pub const VOLUME_SIZE_MIN: ByteSize = ByteSize::mib(64);
/// Largest volume: ext4 with 4 KiB blocks takes 16 TiB in one file on ext4. Above it `ensure` answers `InvalidSize`.
pub const VOLUME_SIZE_MAX: ByteSize = ByteSize::gib(15 << 10);
/// Share of the room found at `open` that may be promised when no capacity is set, in percent. The rest is kept for
/// the file system's own structures and for what else lives there.
pub const CAPACITY_DEFAULT_PERCENT: u64 = 90;
/// Longest wait for the pool's lock, then `PoolBusy`, which names the holder. A verb holds it for a few LVM commands, which take
/// seconds each where a host is busy, and many verbs may wait in turn.
pub const POOL_LOCK_WAIT_MAX: Duration = Duration::from_secs(300);
/// Longest wait for another operation on the same volume (a repair can take minutes); then `Busy`.
pub const VOLUME_LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait in `detach` for the holder's mounts of the volume to go, and then for its device; then `Busy`, and it stays
/// attached.
pub const DEVICE_RELEASE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a locked image that has no loop device, which is so for a millisecond while a program is started;
/// then it counts as in use.
pub const IMAGE_LOCK_WAIT_MAX: Duration = Duration::from_secs(1);
/// Pause between two looks at something waited for.
pub const POLL_PAUSE: Duration = Duration::from_millis(5);
/// Longest `mkfs`; then it is killed and `ensure` fails with `Tool`.
pub const MKFS_DURATION_MAX: Duration = Duration::from_secs(120);
/// Longest single run of `e2fsck`; then it is killed and `attach` fails with `Tool`.
pub const FSCK_DURATION_MAX: Duration = Duration::from_secs(1800);
/// Memory of a program that checks or grows a file system, in bytes; then it fails, and `attach` with `Tool`. A check of 2 TiB takes
/// some 1 GiB.
pub const CONFINED_MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Longest `resize2fs`; then it is killed, and the next attachment goes on with it.
pub const RESIZE_DURATION_MAX: Duration = Duration::from_secs(600);
/// Longest `modprobe`; then it is killed, and what needs the module says that it is missing.
pub const MODPROBE_DURATION_MAX: Duration = Duration::from_secs(30);
/// Longest run of `cryptsetup`; then it is killed and the verb fails with `Tool`.
pub const CRYPTSETUP_DURATION_MAX: Duration = Duration::from_secs(60);
/// Longest time that a mounted volume stands still for a snapshot or a fork. Then it goes on, and the verb fails with
/// `Unsupported`.
pub const FREEZE_DURATION_MAX: Duration = Duration::from_secs(10);
/// How long an import that broke off can be taken up again. Then its part is removed at the next opening of the pool.
pub const IMPORT_KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often an import makes what it has durable, in bytes: so much is sent again at most.
pub const IMPORT_SYNC_BYTES: u64 = 64 << 20;
/// Bytes of an image that are copied between two looks at whether there is time left.
pub const COPY_STRETCH_BYTES: u64 = 16 << 20;
/// Bytes of a program's output that are kept (the last ones) for error messages; the rest is read and dropped.
pub const TOOL_OUTPUT_BYTES_MAX: usize = 4 << 10;
/// Bytes of a program's report that are read; a longer one is an error. Ten thousand volumes of LVM take some 3 MiB.
pub const TOOL_REPORT_BYTES_MAX: usize = 32 << 20;
/// Longest run of an LVM program; then it is killed and the verb fails with `Tool`.
pub const LVM_DURATION_MAX: Duration = Duration::from_secs(60);
/// Tries to read the state of all thin volumes while others come and go; then `Tool`.
pub const DEVICE_STATUS_TRIES_MAX: u32 = 20;
/// Percent of a thin pool's data from which the operator is told.
pub const THIN_DATA_WARN_PERCENT: f64 = 80.0;
/// Percent of a thin pool's data from which nothing more is promised: `PoolFull`.
pub const THIN_DATA_REFUSE_PERCENT: f64 = 90.0;
/// Percent of a thin pool's metadata from which the operator is told.
pub const THIN_METADATA_WARN_PERCENT: f64 = 60.0;
/// Percent of a thin pool's metadata from which nothing more is promised: `PoolFull`. Lower than that of data, since a pool
/// without room for metadata needs repair.
pub const THIN_METADATA_REFUSE_PERCENT: f64 = 75.0;
/// Tries to get a free loop device while others take them at the same time; then `Io`.
pub const LOOP_DEVICE_TRIES_MAX: u32 = 64;
/// Longest attachment marker that is read; a longer one is not ours and counts as unreadable.
pub const MARKER_BYTES_MAX: u64 = 1 << 10;

const _: () = assert!(VOLUME_SIZE_MIN.0 < VOLUME_SIZE_MAX.0);
const _: () = assert!(POLL_PAUSE.as_millis() * 100 < DEVICE_RELEASE_WAIT_MAX.as_millis());
const _: () = assert!(CAPACITY_DEFAULT_PERCENT <= 100);

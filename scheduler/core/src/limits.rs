//! Every bound that two processes must agree on, and how they relate. docs/LIMITS.md lists each with its test.
//!
//! A bound that only one crate knows lives in that crate's own `limits` module, and on the same page.

use std::time::Duration;

/// Largest host API frame, in bytes, either way.
pub const HOST_API_FRAME_BYTES_MAX: usize = 1 << 20;
/// Entries in one page of a list of the host API. A report takes less than 600 bytes, so a page is below half a frame.
pub const HOST_API_PAGE_MAX: u32 = 500;
/// Longest a `watch` of the host API may wait before it answers unchanged.
pub const HOST_API_WATCH_WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes of what a machine that ended badly printed last that are told to whoever waits for it. The rest is in the host's file.
pub const LAST_WORDS_BYTES_MAX: usize = 512;
/// Lines of the same.
pub const LAST_WORDS_LINES_MAX: usize = 4;
/// How long a machine that boots may be silent: its guest is asked whether it is ready. Then it is killed. One that answers is
/// waited for, since its guest gives up by itself when dockerd makes no progress.
pub const MACHINE_SILENCE_MAX: Duration = Duration::from_secs(90);
/// The same for a virtual machine whose processor is emulated.
pub const MACHINE_SILENCE_EMULATED_MAX: Duration = Duration::from_secs(300);
/// Longest a machine may take from its start to a ready dockerd, whatever its guest says. Then it is killed.
pub const MACHINE_START_WAIT_MAX: Duration = Duration::from_secs(900);
/// How long a guest gets to end dockerd cleanly before the host kills the machine.
pub const MACHINE_STOP_GRACE: Duration = Duration::from_secs(30);
/// How long a host may take to keep the memory of a machine that ends for want of use. Then the machine ends without.
pub const CAPTURE_WAIT_MAX: Duration = Duration::from_secs(10);
/// An org's builder is ended after this long without activity, unless the org says otherwise.
pub const BUILDER_IDLE_DEFAULT: Duration = Duration::from_secs(600);
/// The shortest idle time an org may ask for.
pub const BUILDER_IDLE_MIN: Duration = Duration::from_secs(2);
/// Build events kept for one build, in bytes of JSON; later log lines are dropped and the cut is told.
pub const BUILD_EVENTS_BYTES_MAX: usize = 8 << 20;
/// Longest single log chunk in one build event, in bytes.
pub const BUILD_LOG_CHUNK_BYTES_MAX: usize = 64 << 10;
/// Texts of statements about an image that are kept with its build, in bytes together; longer ones are named only.
pub const BUILD_STATEMENTS_BYTES_MAX: usize = 256 << 10;
/// Statements, and platforms, that are kept of one build. Further ones are not.
pub const BUILD_STATEMENTS_MAX: usize = 64;
/// Builds that may run at once on one builder; further ones wait in order.
pub const BUILDS_RUNNING_MAX: usize = 8;
/// Builds that may wait on one builder; one more is refused with a hint.
pub const BUILDS_WAITING_MAX: usize = 64;
/// A builder image, or a kernel of virtual machines, whose packages were looked up longer ago is told of in the host's log and by
/// `slipway status`. It is used on.
pub const IMAGE_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest a build may run.
pub const BUILD_DURATION_MAX: Duration = Duration::from_secs(4 * 3600);

const _: () = assert!(HOST_API_PAGE_MAX as usize * 1024 < HOST_API_FRAME_BYTES_MAX);
const _: () = assert!(
    HOST_API_WATCH_WAIT_MAX.as_secs() < MACHINE_SILENCE_MAX.as_secs()
        && MACHINE_SILENCE_MAX.as_secs() < MACHINE_SILENCE_EMULATED_MAX.as_secs()
        && MACHINE_SILENCE_EMULATED_MAX.as_secs() < MACHINE_START_WAIT_MAX.as_secs()
);
const _: () = assert!(BUILD_STATEMENTS_BYTES_MAX * 2 < BUILD_EVENTS_BYTES_MAX);
const _: () = assert!(BUILD_LOG_CHUNK_BYTES_MAX * 2 < BUILD_EVENTS_BYTES_MAX);

//! Every bound of this crate, and what happens at it. It must not know what is bounded in other processes:
//! those bounds are in [`slipway_core::limits`].

use slipway_core::limits::{
    BUILD_EVENTS_BYTES_MAX, BUILD_LOG_CHUNK_BYTES_MAX, CAPTURE_WAIT_MAX, MACHINE_START_WAIT_MAX,
    MACHINE_STOP_GRACE,
};
use slipway_core::planner::END_WAIT_MAX;
use std::time::Duration;

/// Files that a program in a virtual machine may have open unless it asks for more, which it may up to what the kernel allows.
pub(crate) const OPEN_FILES_SOFT: u64 = 65_536;
/// Time between two attempts to connect while dockerd or containerd starts.
pub(crate) const START_RETRY_PERIOD: Duration = Duration::from_millis(2);
/// How long containerd and dockerd may make no progress while they start. Then the machine ends as crashed.
pub(crate) const START_STALL_MAX: Duration = Duration::from_secs(60);
/// How many times as long where the processor is emulated.
pub(crate) const EMULATED_PATIENCE: u32 = 3;
/// How long their start may take in all, whatever progress it makes. Then the machine ends as crashed.
pub(crate) const START_WAIT_MAX: Duration = Duration::from_secs(840);
/// The oldest major version of dockerd that knows the settings it is given. The machine of an older one ends, and says so.
pub(crate) const ENGINE_MAJOR_MIN: u32 = 24;
/// How often BuildKit is asked for its version, until it answers. Then nobody hears of it.
pub(crate) const BUILDKIT_ASKS_MAX: u32 = 3;
/// Time between two looks whether they make progress.
pub(crate) const START_LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How long dockerd lets a container's own end take before it kills it, in whole seconds.
pub(crate) const CONTAINER_STOP_WAIT_S: u64 = 10;
/// How long dockerd may take to end after SIGTERM. Then it is killed, and the end is not a clean one.
pub(crate) const ENGINE_STOP_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long containerd may take to end after SIGTERM. Then it is killed; it keeps nothing that outlives the machine.
pub(crate) const CONTAINERD_STOP_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long builds and answers in flight get to end once the machine ends. Then they are dropped.
pub(crate) const DRAIN_WAIT_MAX: Duration = Duration::from_secs(2);
/// Lines of one daemon's output that are passed on in a [`OUTPUT_WINDOW`]; further ones are counted and dropped.
pub(crate) const OUTPUT_LINES_MAX: u32 = 40;
/// See [`OUTPUT_LINES_MAX`].
pub(crate) const OUTPUT_WINDOW: Duration = Duration::from_secs(60);
/// Last lines of one daemon's output that are kept, and shown when it crashes; older ones are dropped.
pub(crate) const OUTPUT_LINES_KEPT: usize = 40;
/// Longest line of a daemon's output; the rest of it is dropped.
pub(crate) const OUTPUT_LINE_BYTES_MAX: usize = 1000;

/// Streams of the host into a virtual machine at once; one more is told so, and tried again.
pub(crate) const CHANNEL_STREAMS_MAX: usize = 4096;
/// How long a stream into a virtual machine may take to say what it is for. Then it is closed.
pub(crate) const CHANNEL_GREETING_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a machine that is to end for want of use gives memory back before it offers the rest: the kernel reports freed memory every two
/// seconds.
pub(crate) const CAPTURE_SETTLE: Duration = Duration::from_millis(2300);
/// How long a machine that is to end for want of use waits for its host to keep its memory. Then it ends as always.
pub(crate) const CAPTURE_OFFER_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long it stands still, by its own clock, until it is told how it goes on. Then it ends as always.
pub(crate) const CAPTURE_STILL_MAX: Duration = Duration::from_secs(5);
/// Connections to the guest API at once; further ones wait in the socket's backlog.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Largest request body of the guest API, in bytes. Beyond it the answer is 413.
pub(crate) const REQUEST_BODY_BYTES_MAX: usize = 1 << 20;
/// How long a request's head and body may take. Then the connection is closed.
pub(crate) const REQUEST_READ_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest that a status request may wait for ready; more is cut to it.
pub(crate) const READY_WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of a build's events in one piece of an answer (one event more at most).
pub(crate) const EVENTS_PIECE_BYTES: usize = 64 << 10;

/// Largest answer taken from dockerd, in bytes. Beyond it the request fails.
pub(crate) const ENGINE_ANSWER_BYTES_MAX: usize = 16 << 20;
/// How long dockerd may take over an ordinary request. Then the request fails.
pub(crate) const ENGINE_REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long dockerd may take over one prune. Then the collection goes on with its next step.
pub(crate) const PRUNE_WAIT_MAX: Duration = Duration::from_secs(300);

/// Bytes of what `e2fsck` says that are kept of a cache volume that cannot be repaired.
pub(crate) const CHECK_OUTPUT_BYTES_MAX: usize = 4 << 10;
/// How often containers and disk are looked at.
pub(crate) const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// Least time between two collections that nobody asked for.
pub(crate) const COLLECT_PERIOD: Duration = Duration::from_secs(60);
/// Percent of the volume in use from which garbage is collected when the machine is idle.
pub(crate) const HIGH_WATER_PERCENT: u64 = 80;
/// Percent of the volume that must be free (to an ordinary user); with less, garbage is collected too.
pub(crate) const FREE_PERCENT_MIN: u64 = 10;
/// Percent of the volume in use down to which garbage is collected.
pub(crate) const LOW_WATER_PERCENT: u64 = 60;
/// The same, when a build has found the volume full: what is left must be room enough for its next attempt.
pub(crate) const LOW_WATER_FULL_PERCENT: u64 = 30;
/// Percent of the volume that BuildKit's own policy lets its cache grow to after each build.
pub(crate) const CACHE_KEEP_PERCENT: u64 = 60;

/// Characters of the kernel's release that a message shows.
pub(crate) const RELEASE_CHARS_MAX: usize = 40;

/// Times a build is tried again after a collection, when the disk was full.
pub(crate) const NO_SPACE_RETRIES: u32 = 1;
/// How long a build that found the disk full waits for BuildKit to give the failed step's data back. Then garbage is
/// collected in any case.
pub(crate) const SETTLE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How far back a list of solves begins that clients ask BuildKit for by themselves: a short one may be over before anybody asks.
pub(crate) const SEEN_SINCE: Duration = Duration::from_secs(30);
/// Such solves that are followed at once; further ones are not told of.
pub(crate) const SEEN_FOLLOWED_MAX: usize = 32;
/// Such solves that wait for their reader; BuildKit is read no further when it is full.
pub(crate) const SEEN_QUEUED_MAX: usize = 64;
/// Longest name or value that is told of such a solve, in bytes; longer ones are left out.
pub(crate) const SEEN_TEXT_BYTES_MAX: usize = 1 << 10;
/// Further names of its image that are told.
pub(crate) const SEEN_NAMES_MAX: usize = 16;
/// Events between the solve and the build's record; the solve waits when it is full.
pub(crate) const EVENTS_QUEUED_MAX: usize = 64;
/// How long an ended build is remembered.
pub(crate) const BUILD_KEPT_FOR: Duration = Duration::from_secs(15 * 60);
/// Ended builds that are remembered; the oldest is forgotten for one more.
pub(crate) const BUILDS_KEPT_MAX: usize = 64;
/// Bytes of events of all ended builds that are remembered; the oldest builds are forgotten beyond it.
pub(crate) const BUILDS_KEPT_BYTES_MAX: usize = 64 << 20;
/// Part of [`BUILD_EVENTS_BYTES_MAX`] that logs and progress may not take, so that steps and the end are always told.
pub(crate) const EVENTS_RESERVE_BYTES: usize = 1 << 20;
/// Part of [`BUILD_EVENTS_BYTES_MAX`] for the last output of steps that fail after the record is full.
pub(crate) const TAILS_RESERVE_BYTES: usize = 512 << 10;
/// Bytes of output held back of one step once the record is full: the newest.
pub(crate) const TAIL_BYTES_MAX: usize = 64 << 10;
/// Steps of one build whose output is held back; that of further ones is not kept.
pub(crate) const TAIL_STEPS_MAX: usize = 32;
/// Least time between two progress events of one item, unless it is done.
pub(crate) const PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// Items whose progress is followed for one build; further ones are told when they are done only.
pub(crate) const PROGRESS_ITEMS_MAX: usize = 4096;
/// Bytes of a log event's text, before it is written as JSON. A longer one becomes several.
pub(crate) const LOG_TEXT_BYTES_MAX: usize = BUILD_LOG_CHUNK_BYTES_MAX / 2;
/// Longest error message or hint kept of a build, in bytes; the end is kept.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// Longest wait of a push for a token of the control plane, which may be down meanwhile. Then the push fails.
pub(crate) const LOAN_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long the control plane waits for a wish in one request. Then it asks anew.
pub(crate) const LOAN_LOOK_MAX: Duration = Duration::from_secs(10);
/// Wishes of one build or push that wait for an answer; one more fails.
pub(crate) const LOAN_WISHES_MAX: usize = 64;
/// Pushes of `POST /v1/push` at once; one more is answered with 503.
pub(crate) const PUSHES_MAX: u32 = 16;
/// Progress lines of a push that wait for their reader; then ones that only tell bytes are dropped.
pub(crate) const PUSH_LINES_QUEUED_MAX: usize = 256;

// It gives up by itself before the control plane does.
const _: () = assert!(START_WAIT_MAX.as_secs() < MACHINE_START_WAIT_MAX.as_secs());
const _: () = assert!(CONTAINER_STOP_WAIT_S < ENGINE_STOP_WAIT_MAX.as_secs());
const _: () = assert!(
    ENGINE_STOP_WAIT_MAX.as_secs() + CONTAINERD_STOP_WAIT_MAX.as_secs() + DRAIN_WAIT_MAX.as_secs()
        < MACHINE_STOP_GRACE.as_secs()
);
const _: () = assert!(
    CAPTURE_SETTLE.as_millis()
        + CAPTURE_OFFER_WAIT_MAX.as_millis()
        + CAPTURE_WAIT_MAX.as_millis()
        + ENGINE_STOP_WAIT_MAX.as_millis()
        + CONTAINERD_STOP_WAIT_MAX.as_millis()
        + DRAIN_WAIT_MAX.as_millis()
        < END_WAIT_MAX.as_millis()
);
const _: () =
    assert!(LOW_WATER_FULL_PERCENT < LOW_WATER_PERCENT && LOW_WATER_PERCENT < HIGH_WATER_PERCENT);
const _: () = assert!(HIGH_WATER_PERCENT + FREE_PERCENT_MIN <= 100);
const _: () = assert!((EVENTS_RESERVE_BYTES + TAILS_RESERVE_BYTES) * 2 < BUILD_EVENTS_BYTES_MAX);
// Each byte can become six in JSON.
const _: () = assert!(TAIL_BYTES_MAX * 6 < TAILS_RESERVE_BYTES);
const _: () = assert!(LOG_TEXT_BYTES_MAX <= TAIL_BYTES_MAX);

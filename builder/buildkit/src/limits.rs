//! Every bound of this crate, and what happens at it. It must not know what is built.

use std::time::Duration;

/// Longest head of an answer to an upgrade request, in bytes. Beyond it the dial fails.
pub const UPGRADE_HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes kept of a refusal's body for its message; the rest is not read.
pub const UPGRADE_REFUSAL_BYTES_MAX: usize = 4 << 10;
/// Longest wait for the answer to an upgrade request. Beyond it the dial fails.
pub const UPGRADE_WAIT_MAX: Duration = Duration::from_secs(30);
/// Largest gRPC message taken from a builder, in bytes. BuildKit itself sends at most this. Beyond it the call fails.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of metadata in one answer of a builder: an error has the whole Dockerfile in its details, in JSON in which it is base64, which
/// is base64 once more. Beyond it the answer's text is lost, and the call fails like one of a broken connection.
pub const ANSWER_HEADERS_BYTES_MAX: u32 = 16 << 20;
/// How often the solve connection is pinged while a solve is in flight.
pub const KEEPALIVE_PERIOD: Duration = Duration::from_secs(20);
/// How long a ping may stay unanswered before the connection counts as lost.
pub const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long the event stream may go on after the solve has ended; the rest is dropped.
pub const EVENTS_DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a builder may take to record a solve's end once it tells no more events of it. Beyond it the end is not known.
pub const RECORD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest error message kept from a builder, in bytes; the end is kept, since the cause is there.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Lines of a Dockerfile shown round a fault; the rest of a longer instruction is counted.
pub const EXCERPT_LINES_MAX: usize = 20;
/// Characters shown of one such line.
pub const EXCERPT_LINE_CHARS_MAX: usize = 160;
/// Bytes of all such lines; the end is cut off.
pub const EXCERPT_BYTES_MAX: usize = 4 << 10;
/// Names of failed steps kept while a solve runs, for the message; those of further ones are not known.
pub const FAILED_STEPS_MAX: usize = 64;

/// gRPC calls that a builder may have open in one session at once; further ones wait at the builder.
pub const SESSION_CALLS_MAX: u32 = 128;
/// Bytes of requests that one call of a builder may have sent and nobody has taken yet; further ones wait at the builder. They
/// are requests for files, some ten bytes each.
pub const SESSION_WINDOW_BYTES: u32 = 64 << 10;
/// The same for a whole session. It is no memory, but the h2 library counts small frames that nobody has taken yet as an attack, and
/// ends the connection when their overhead is more than half of this. So it is large enough for what the windows of all file syncs
/// let in.
pub const SESSION_CONNECTION_WINDOW_BYTES: u32 = 80 << 20;
/// Bytes of answers that one call of ours to a builder may have waiting for us; further ones wait at the builder.
pub const CALL_WINDOW_BYTES: u32 = 1 << 20;
/// The same for a connection; see [`SESSION_CONNECTION_WINDOW_BYTES`].
pub const CALL_CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Bytes of answers that one call may keep waiting for the stream; the readers of files wait beyond it.
pub const SESSION_SEND_BUFFER_BYTES: usize = 1 << 20;
/// File syncs that may run in one session at once; one more is refused with `RESOURCE_EXHAUSTED`.
pub const SYNCS_RUNNING_MAX: usize = 16;
/// Bytes of metadata in one call of a builder: the patterns of a large ignore file travel there. Beyond it the call is
/// refused by HTTP/2, and the build fails.
pub const SESSION_HEADERS_BYTES_MAX: u32 = 4 << 20;
/// Largest secret, in bytes (BuildKit's own bound, 500 KiB). A larger one is refused by name.
pub const SECRET_BYTES_MAX: usize = 500 << 10;
/// Longest request to an SSH agent, in bytes (OpenSSH's own bound, 256 KiB). A longer one ends the forwarding.
pub const SSH_MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Bytes of an SSH agent's answers in one message.
pub const SSH_PIECE_BYTES: usize = 32 << 10;
/// Messages of an SSH agent's answers that wait for the connection; the agent waits when it is full.
pub const SSH_PIECES_QUEUED_MAX: usize = 4;
/// Bytes of an archive that is a build's context in one message.
pub const ARCHIVE_PIECE_BYTES: usize = 256 << 10;
/// Messages of an archive that wait for the connection; its file is not read on when it is full.
pub const ARCHIVE_PIECES_QUEUED_MAX: usize = 4;
/// Entries one file sync may announce. Beyond it the sync fails and says so.
pub const SYNC_ENTRIES_MAX: usize = 8_000_000;
/// Patterns one file sync may be filtered by, each kind. Beyond it the sync is refused.
pub const SYNC_PATTERNS_MAX: usize = 10_000;
/// Depth of directories in a context. Beyond it the sync fails and names the directory.
pub const SYNC_DEPTH_MAX: usize = 1_000;
/// Links followed for one path of `followpaths`. Beyond it the path is taken as it is.
pub const SYNC_LINKS_FOLLOWED_MAX: usize = 255;
/// Threads that read files for one sync.
pub const SYNC_READERS: usize = 4;
/// Bytes of a file in one packet.
pub const SYNC_CHUNK_BYTES: usize = 64 << 10;
/// Bytes sent of a file whose size was announced as 0 and that has content all the same: the file systems of the kernel do not
/// tell it. The rest is not sent. Any other file is sent to its announced size.
pub const SYNC_UNANNOUNCED_BYTES_MAX: u64 = 1 << 20;
/// Batches of packets that wait for the connection; the walk and the readers wait when it is full. It bounds the
/// memory of a sync to about this many chunks plus one per reader.
pub const SYNC_BATCHES_QUEUED_MAX: usize = 32;
/// Entries in one batch of announcements.
pub const SYNC_BATCH_ENTRIES: usize = 128;
/// Largest packet taken from a receiver, in bytes. They are requests and errors: small. Beyond it the sync fails.
pub const SYNC_PACKET_BYTES_MAX: usize = 1 << 20;
/// Largest ignore file, in bytes. A larger one is refused.
pub const IGNORE_FILE_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(SYNC_CHUNK_BYTES < MESSAGE_BYTES_MAX);
const _: () = assert!(SYNC_READERS < SYNC_BATCHES_QUEUED_MAX);
const _: () = assert!(ERROR_MESSAGE_BYTES_MAX < MESSAGE_BYTES_MAX);

/// Overhead of a window full of frames of so many bytes, as the h2 library counts it: what each lacks to 256.
const fn small_frames(window: u32, frame: usize) -> usize {
    window as usize / frame * (256 - frame)
}
// A message with one field behind gRPC's head of five bytes; a status with a digest.
const _: () = assert!(
    small_frames(SESSION_WINDOW_BYTES, 7) * SYNCS_RUNNING_MAX
        < SESSION_CONNECTION_WINDOW_BYTES as usize / 2
);
const _: () =
    assert!(small_frames(CALL_WINDOW_BYTES, 76) < CALL_CONNECTION_WINDOW_BYTES as usize / 2);

//! Every bound this binary keeps by itself, and what happens at it.

use std::time::Duration;

/// Connecting to the server, TLS included. Then: "cannot reach", exit 2.
pub(crate) const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
/// An answer to a GraphQL request that wakes nothing. Then: "did not answer", exit 2.
pub(crate) const API_WAIT_MAX: Duration = Duration::from_secs(60);
/// An answer to a request that may wake a builder: above the scheduler's own bound, so that its message is seen.
pub(crate) const WAKE_WAIT_MAX: Duration = Duration::from_secs(630);
/// Largest answer of the API that is read. Then: an error that says so, exit 2.
pub(crate) const API_ANSWER_BYTES_MAX: usize = 32 << 20;
/// Longest line of an event stream. Then: the stream counts as broken.
pub(crate) const EVENT_LINE_BYTES_MAX: usize = 1 << 20;
/// Silence on an event stream after which it counts as broken: the server sends a heartbeat far more often.
pub(crate) const EVENT_SILENCE_MAX: Duration = Duration::from_secs(90);
/// Silence on an export, or before the answer to an import, after which it counts as broken: a host reads and writes long
/// stretches of zeros without a word, and makes all of an import durable in the end.
pub(crate) const TRANSFER_SILENCE_MAX: Duration = Duration::from_secs(3700);
/// Bytes of an export or import that are read at once.
pub(crate) const TRANSFER_PIECE_BYTES: usize = 256 << 10;
/// Pieces of an import that wait to be sent, of a record each at most. Then its file is not read on.
pub(crate) const TRANSFER_PIECES_QUEUED_MAX: usize = 2;
/// Longest description of an export that is under way. A longer one is not ours, and refused.
pub(crate) const RESUME_BYTES_MAX: u64 = 4 << 10;
/// How often progress is drawn anew.
pub(crate) const PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// How often a command that waits for the move of a volume looks at it.
pub(crate) const MOVE_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the kernel asks a silent peer whether it is there.
pub(crate) const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
/// After so many questions without an answer the connection counts as broken.
pub(crate) const KEEPALIVES_LOST_MAX: u32 = 4;
/// How long a broken connection is tried again before the deploy gives up, exit 2. The build goes on without us. The same for an
/// export or import, from its last progress on.
pub(crate) const RECONNECT_FOR_MAX: Duration = Duration::from_secs(120);
/// First wait between two tries; it doubles up to [`RECONNECT_DELAY_MAX`].
pub(crate) const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two tries.
pub(crate) const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(8);
/// After Ctrl-C: how long the server may take to confirm the end of the build. Then: exit 130 all the same.
pub(crate) const CANCEL_WAIT_MAX: Duration = Duration::from_secs(10);
/// An answer of a credential helper of docker. Then: as if there were no login.
pub(crate) const CREDENTIAL_HELPER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Registries for which one deploy asks the server whether tokens are lent. For more none are.
pub(crate) const LENDING_REGISTRIES_MAX: usize = 64;
/// The first answer of an SSH agent that was started for keys. Then: exit 2.
pub(crate) const SSH_AGENT_WAIT_MAX: Duration = Duration::from_secs(10);
/// A Dockerfile from standard input. A longer one is refused.
pub(crate) const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;
/// A build context from standard input, which is kept in a temporary file. A longer one is refused.
pub(crate) const STDIN_CONTEXT_BYTES_MAX: u64 = 64 << 30;
/// An answer of the local Docker to a first question. Then: it counts as absent.
pub(crate) const LOCAL_DOCKER_WAIT_MAX: Duration = Duration::from_secs(3);
/// The local Docker's first word on an image that is loaded into it: it may read all of the archive before. Then: exit 2.
pub(crate) const LOCAL_LOAD_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Events of a local build that wait to be shown. Then: the build waits, too.
pub(crate) const SOLVE_EVENTS_QUEUED_MAX: usize = 1024;
/// A secret for a build (BuildKit refuses larger ones too).
pub(crate) const SECRET_BYTES_MAX: u64 = 500 << 10;
/// More than this sent to the builder is warned about: an ignore file is probably missing.
pub(crate) const CONTEXT_WARN_BYTES: u64 = 100 << 20;
/// Lines of one step's output that are kept to be shown again when it fails. Older ones are dropped, and that is said.
pub(crate) const FAILED_STEP_LINES_MAX: usize = 200;
/// Longest line of output that is printed in one piece. Longer ones are cut into lines of this length.
pub(crate) const OUTPUT_LINE_BYTES_MAX: usize = 8 << 10;
/// Lines the live tree takes at most, however tall the terminal is. Further running steps are counted in one line.
pub(crate) const TREE_LINES_MAX: usize = 24;
/// Output lines shown under a running step.
pub(crate) const TREE_LOG_LINES_MAX: usize = 6;
/// How often a deploy that waits for its builder asks what that waits for.
pub(crate) const WAIT_REASON_PERIOD: Duration = Duration::from_secs(2);
/// How often the live tree is drawn anew.
pub(crate) const TREE_PERIOD: Duration = Duration::from_millis(100);

const _: () = assert!(RECONNECT_DELAY_MIN.as_millis() < RECONNECT_DELAY_MAX.as_millis());
const _: () = assert!(RECONNECT_DELAY_MAX.as_secs() < RECONNECT_FOR_MAX.as_secs());
const _: () = assert!(TREE_LOG_LINES_MAX < TREE_LINES_MAX);
const _: () = assert!(
    WAKE_WAIT_MAX.as_secs() > slipway_core::limits::MACHINE_SILENCE_MAX.as_secs() * 2,
    "one wake and one second try with an empty cache fit in the client's wait"
);

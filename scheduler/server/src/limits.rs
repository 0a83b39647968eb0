//! The control plane's own bounds. docs/LIMITS.md lists each with its test.

use slipway_core::limits::{MACHINE_SILENCE_EMULATED_MAX, MACHINE_SILENCE_MAX};
use slipway_core::planner::END_WAIT_MAX;
use std::time::Duration;

/// Longest a connection waits for its builder to come up (over an end under way, a start, and starts anew with an empty
/// cache). Then it is refused, and the builder goes on starting.
pub const WAKE_WAIT_MAX: Duration = Duration::from_secs(600);
/// Machines of a builder that a caller who waits for it sees boot, one after the other's death. Then it gets the error.
pub const WAKE_TRIES_MAX: u32 = 3;
/// Longest a connection waits for a host that does not answer: enough for its daemon to be started anew. Then it is refused.
pub const HOST_AWAY_WAIT_MAX: Duration = Duration::from_secs(20);
/// First wait before a connection that the host refused is tried again; doubles up to [`CONNECT_RETRY_MAX`].
pub const CONNECT_RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest such wait.
pub const CONNECT_RETRY_MAX: Duration = Duration::from_secs(1);
/// One watch call to a host; then it is asked again.
pub const HOST_WATCH_WAIT: Duration = Duration::from_secs(25);
/// How long what a host said of its pool, memory and kinds of machines is gone by; then it is asked again after the next watch call.
pub const HOST_INFO_KEEP: Duration = Duration::from_secs(15);
/// First wait before a host that does not answer is asked again; doubles up to [`HOST_RETRY_MAX`].
pub const HOST_RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest such wait.
pub const HOST_RETRY_MAX: Duration = Duration::from_secs(2);
/// How long the start waits for the first word of each host; a host that is silent for longer joins later.
pub const HOST_FIRST_WORD_WAIT: Duration = Duration::from_secs(3);
/// One wait of the guest for its dockerd to be ready; then it is asked again.
pub const READY_ASK_WAIT: Duration = Duration::from_secs(20);
/// Longest a stop or a cache reset waits for the builder to have ended.
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(END_WAIT_MAX.as_secs() * 2);
/// Longest the shutdown waits for tasks to end; then they are dropped.
pub const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Connections through the gateway to one builder at once; one more is refused with a hint.
pub const BUILDER_CONNECTIONS_MAX: u32 = 1024;
/// Quick verbs (lists, stops, leases, the beginnings of transfers) asked of one host at once; further ones wait in order.
pub const HOST_QUICK_MAX: usize = 64;
/// Verbs that make or remove something asked of one host at once; further ones wait in order.
pub const HOST_MAKING_MAX: usize = 128;
/// Endpoints being opened on one host at once; further ones wait in order.
pub const HOST_ENDPOINTS_MAX: usize = 64;
/// Endpoints being opened at once on one port of a machine; further ones wait in order, up to [`ENDPOINT_PLACE_WAIT_MAX`].
pub const HOST_PORT_ENDPOINTS_MAX: usize = 4;
/// Longest wait for one of [`HOST_PORT_ENDPOINTS_MAX`] places. Then the machine counts as busy, and it is tried again.
pub const ENDPOINT_PLACE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause with such a place when the machine takes no connection.
pub const ENDPOINT_BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Pages of one list of a host; a list that is longer, which no host has, is an error. At 500 entries each it is a million.
pub const HOST_LIST_PAGES_MAX: usize = 2000;
/// Streams with a builder's descriptors in them that are being closed at once, where the kernel is older than 6.16. One more is
/// left open until the process ends.
pub const DISPOSALS_MAX: usize = 256;
/// Changes kept for a subscriber that is slow; then it is told to read everything anew.
pub const SUBSCRIBER_CHANGES_MAX: usize = 256;
/// Build events written to the store in one transaction.
pub const EVENT_BATCH_MAX: usize = 256;
/// A build whose builder cannot be asked (its host is silent) is given up after this.
pub const BUILD_SILENCE_MAX: Duration = Duration::from_secs(600);
/// A placement is tried so often when the pool it chose has filled up meanwhile; then the caller is told.
pub const PLACEMENT_TRIES_MAX: usize = 3;
/// A change of what is wanted of a volume is retried this many times when something else of it was changed meanwhile; then the
/// caller gets an error.
pub const POLICY_TRIES_MAX: usize = 10;
/// A connection gives up when it has seen so many generations crash.
pub const CRASHES_SEEN_MAX: u32 = 5;
/// Builders that start on one host at once; further ones wait in order, and are told how many come first. As many as a host
/// starts at once, so that a wake of many leaves its API to the builders that run.
pub const HOST_STARTS_MAX: usize = 8;
/// When a damaged cache could not be replaced, room for another one is looked for again after this.
pub const REPLACE_RETRY: Duration = Duration::from_secs(30);
/// A build whose builder does not run is given up after this: long enough for a host to tell of it after a restart.
pub const BUILD_GONE_WAIT: Duration = Duration::from_secs(5);
/// How long a builder is still asked for the builds of its Docker clients when the last stream that could carry one has ended.
pub const SEEN_LINGER: Duration = Duration::from_secs(2);
/// Builds of Docker clients that are recorded for one org at once; for further ones see [`SEEN_EVERY`].
pub const SEEN_MAX: u32 = 256;
/// After so long one more is recorded. Those beyond it run, and are not in the list of builds.
pub const SEEN_EVERY: Duration = Duration::from_secs(1);
/// Names of builds in the streams to one builder that are remembered, with who asked for them; the oldest is forgotten for one more.
pub const SEEN_ASKED_MAX: usize = 1024;
/// Pieces of a classic builder's answer that wait to be written down; further ones are left out of the build's log, but for the last
/// [`CLASSIC_LAST_MAX`].
pub const CLASSIC_PIECES_MAX: usize = 64;
/// Pieces at the end of such an answer that are kept, whatever is left out before them: they say how the build ended.
pub const CLASSIC_LAST_MAX: usize = 8;
/// Old builds are looked for this long after the start,
pub const RETENTION_FIRST_WAIT: Duration = Duration::from_secs(30);
/// and then every so often.
pub const RETENTION_EVERY: Duration = Duration::from_secs(600);
/// Old builds of one org deleted before others may write; further ones after [`RETENTION_PAUSE`].
pub const RETENTION_BATCH_MAX: u32 = 20;
/// Pause between such batches.
pub const RETENTION_PAUSE: Duration = Duration::from_millis(50);
/// How long the key of a volume is lent to a host. It is renewed after a third of it, and if that fails tried
/// again after a twentieth; what the host has opened stays open.
pub const KEY_LEASE_TTL: Duration = Duration::from_secs(600);
/// Leases of one host that are renewed at once.
pub const RENEWALS_AT_ONCE_MAX: usize = 8;
/// Longest wait for an answer of Vault. Then the key store counts as not answering, and the start is tried again later.
pub const VAULT_WAIT_MAX: Duration = Duration::from_secs(10);
/// Largest answer taken from Vault, in bytes. Beyond it the key store counts as not answering.
pub const VAULT_ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long a volume that its owner destroys is kept, so that it can be restored. It counts for the pool meanwhile.
pub const VOLUME_DESTROY_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Volumes and snapshots of a host are looked at every so often, and when something is to be done about them.
pub const VOLUMES_LOOK_EVERY: Duration = Duration::from_secs(60);
/// Volumes, and as many snapshots, of one host that something is done about at once.
pub const UPKEEP_AT_ONCE_MAX: usize = 4;
/// What a volume's owner has asked to be done by itself (scheduled snapshots, growth), and which failed, is tried again after
/// this.
pub const VOLUME_UPKEEP_RETRY: Duration = Duration::from_secs(600);
/// Exports and imports of one org at once; one more is refused with a hint.
pub const ORG_TRANSFERS_MAX: u32 = 2;
/// Exports and imports of all orgs at once; one more is refused with a hint.
pub const TRANSFERS_MAX: usize = 32;
/// Volumes that are sent to other hosts at once; further moves wait.
pub const MOVES_MAX: usize = 2;
/// How often it is looked whether a builder has ended whose cache is being moved, besides when it changes.
pub const STAND_STILL_LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the move of a cache waits for a host that does not answer, when the builder is kept from starting for it. Then the
/// move is given up.
pub const CATCH_UP_HOSTS_WAIT_MAX: Duration = Duration::from_secs(30);
/// Time of a client's own over which an export or import must have gone on by [`TRANSFER_PACE_BYTES_MIN`]. Else it breaks off,
/// and can be gone on with.
pub const TRANSFER_PACE_WINDOW: Duration = Duration::from_secs(60);
/// See [`TRANSFER_PACE_WINDOW`].
pub const TRANSFER_PACE_BYTES_MIN: u64 = 1 << 20;
/// How long an export or import waits for its client to take or give a byte. Then it breaks off, and can be gone on with.
pub const TRANSFER_IDLE_MAX: Duration = Duration::from_secs(60);
/// How long an import that broke off is waited for; then its volume is removed. A host keeps what it has for as long.
pub const IMPORT_KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often an import that goes on is recorded to be waited for anew.
pub const IMPORT_NOTED_EVERY: Duration = Duration::from_secs(3600);
/// Longest a host may take for a piece of an import, or to end one after its last byte: it writes zeros then, and makes all of it durable.
pub const IMPORT_HOST_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Longest a host may take to end an import whose client is gone. Then it is left to it.
pub const IMPORT_END_WAIT_MAX: Duration = Duration::from_secs(30);
/// After an import was refused, what its client still sends is read for so long, so that it sees why.
pub const REFUSED_BODY_READ_FOR: Duration = Duration::from_secs(5);
/// Bytes of an export that are read from the host at once. Each export holds so much.
pub const TRANSFER_BYTES: usize = 128 << 10;

const _: () = assert!(WAKE_WAIT_MAX.as_secs() > MACHINE_SILENCE_EMULATED_MAX.as_secs());
const _: () = assert!(READY_ASK_WAIT.as_secs() * 3 < MACHINE_SILENCE_MAX.as_secs());
const _: () = assert!(WAKE_WAIT_MAX.as_secs() > END_WAIT_MAX.as_secs());
const _: () = assert!(IMPORT_NOTED_EVERY.as_secs() * 2 < IMPORT_KEPT_FOR.as_secs());
const _: () = assert!(IMPORT_HOST_WAIT_MAX.as_secs() * 2 < IMPORT_KEPT_FOR.as_secs());
const _: () = assert!(WAKE_WAIT_MAX.as_secs() > HOST_AWAY_WAIT_MAX.as_secs());
const _: () =
    assert!(HOST_WATCH_WAIT.as_secs() < slipway_core::limits::HOST_API_WATCH_WAIT_MAX.as_secs());

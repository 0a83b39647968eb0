//! Every bound of this crate, with what happens at it.
//!
//! Knows numbers only.

use std::time::Duration;

/// Uncompressed bytes of one gzip member or zstd frame. They are compressed apart from each other, so this is the grain of parallel
/// work; twice as much makes a layer smaller by less than 1%. It is part of the digest: changing it changes every compressed layer
/// ([`crate::Codec::id`]).
pub const MEMBER_BYTES: usize = 512 << 10;

/// Members of one push that are being read, compressed or waited for, beyond the number of threads. At the limit the readers wait.
pub const MEMBERS_AHEAD: usize = 4;

/// Layers of one push that are streamed, while they are read and compressed, at the same time. The others wait.
pub const LAYERS_AT_ONCE: usize = 3;

/// Layers of one push that go whole, in one request, at the same time: what counts with them is the way to the registry. The others wait.
pub const SMALL_LAYERS_AT_ONCE: usize = 12;

/// Uncompressed bytes up to which a layer goes whole.
pub const SMALL_LAYER_BYTES: usize = MEMBER_BYTES;

/// Compression threads of one push, whatever the machine has. More would need more buffers than the memory bound allows.
pub const THREADS_MAX: usize = 8;

/// Tables of all compressors of one push. Levels that need more for each get fewer threads.
pub const TABLES_BYTES: usize = 12 << 20;

/// Compressed bytes of one layer kept in memory after they were handed to the network, so that a broken upload goes on
/// from the registry's offset. If the registry lost more than this, the layer is read and compressed again.
pub const REPLAY_BYTES: usize = 3 << 20;

/// Bytes handed to the connection at once. Small enough that a slow link shows progress well within [`IDLE_TIMEOUT`].
pub const FRAME_BYTES: usize = 256 << 10;

/// Blobs asked about, or asked for from another repository, at the same time. The others wait.
pub const CHECKS_AT_ONCE: usize = 16;

/// Blobs asked about when the repository already has the very manifest, which a registry takes only with all its blobs. One of them is
/// the config, the others are drawn by lot. With the question for the tag that makes four requests for an unchanged image of any size.
pub const UNCHANGED_CHECKS: usize = 3;

/// Longest wait for another push that uploads the same layer. Then the layer is uploaded a second time.
pub const TURN_WAIT_MAX: Duration = Duration::from_secs(600);

/// Pause between two looks at the lock of a layer that another process uploads.
pub const TURN_LOOK: Duration = Duration::from_millis(50);

/// Tags written by one push. More are refused.
pub const TAGS: usize = 32;

/// Memory above the process's base that one push may take; the sum of the buffers is asserted below and the whole is tested.
pub const MEMORY_BYTES: usize = 64 << 20;

/// Input and output of each member under way; for each streamed layer what is kept for another try, the piece after it, and a chunk;
/// each small layer; and the compressors.
const BUFFERS: usize = 2 * MEMBER_BYTES * (THREADS_MAX + MEMBERS_AHEAD)
    + LAYERS_AT_ONCE * (REPLAY_BYTES + MEMBER_BYTES + CHUNK_FIRST)
    + SMALL_LAYERS_AT_ONCE * SMALL_LAYER_BYTES
    + TABLES_BYTES;

const _: () = assert!(
    BUFFERS <= MEMORY_BYTES * 4 / 5,
    "the buffers of one push must fit its memory bound, with a fifth left for everything else"
);

/// Insecure registries of which a process remembers how they speak. Beyond it they are asked again.
pub const SCHEMES_KNOWN: usize = 64;

/// One connection attempt, TLS included. After it the attempt counts as failed and is retried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// No byte taken by the registry for this long while one is offered: the connection counts as broken.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// From the last byte sent to the head of the answer, for requests that move no blob. Then the attempt counts as failed.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The same for the request that closes an upload: the registry may have to move or hash the whole blob first.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);

/// Body of an answer that is read: error documents and tokens. The rest is dropped with the connection.
pub const ANSWER_BODY_BYTES: usize = 256 << 10;

/// Time for the body of an answer. Then it counts as read as far as it came.
pub const ANSWER_BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// Attempts at one request, and at one stretch of an upload in which the registry took nothing new. Then the push fails.
pub const ATTEMPTS: u32 = 6;

/// Attempts at finding out what a registry wants to be shown, for a push that is lent it. Then, if it could not be connected to, the
/// credential itself is lent; the push fails otherwise.
pub const EXCHANGE_ATTEMPTS: u32 = 3;

/// First wait between attempts; doubled each time up to [`BACKOFF_MAX`], with half of it random.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// Longest wait of our own choosing between attempts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Growth of the wait from attempt to attempt while a registry limits the rate without saying for how long; up to [`RATE_BACKOFF_MAX`].
pub const RATE_BACKOFF_FACTOR: u32 = 4;

/// Longest such wait. All of them together are some 45 s: such limits are counted by the minute.
pub const RATE_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Wait before a streamed upload goes on that a registry has stopped for its rate without saying for how long.
pub const RATE_STREAM_WAIT: Duration = Duration::from_secs(3);

/// Longest `Retry-After` that is obeyed. A registry that asks for more gets the push failed with its own words.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Redirects followed for one request. Then it fails as a registry fault.
pub const REDIRECTS: u32 = 5;

/// Bytes of one request once a streamed upload was lost to a broken connection; divided by [`CHUNK_STEP`] each time that happens
/// again. Docker's own registry takes nothing more into an upload whose request was cut, so smaller requests are the only way on.
pub const CHUNK_FIRST: usize = 1 << 20;

/// See [`CHUNK_FIRST`].
pub const CHUNK_STEP: usize = 4;

/// Smallest chunk; smaller ones would be all overhead.
pub const CHUNK_LEAST: usize = 64 << 10;

/// Most bytes of one streamed request after a proxy has refused a larger one with 413; divided by [`STREAM_STEP`] each time that happens
/// again, down to [`CHUNK_FIRST`]. 50 MiB passes the bounds that are common (100 MB).
pub const STREAM_FIRST: u64 = 50 << 20;

/// See [`STREAM_FIRST`].
pub const STREAM_STEP: u64 = 4;

/// Looks for a blob or manifest that was just taken, the first included. A store behind a cache may answer 404 for a moment.
pub const PROOF_LOOKS: u32 = 5;

/// First wait between two such looks; doubled each time.
pub const PROOF_WAIT: Duration = Duration::from_millis(250);

/// Times one layer is read again from its start because the registry lost more than [`REPLAY_BYTES`]. Then the push fails.
pub const REREADS: u32 = 5;

/// A token is renewed when it has less than this left.
pub const TOKEN_SLACK: Duration = Duration::from_secs(20);

/// Lifetime of a token whose server names none (the token specification says 60 s).
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// Longest time for which a token is used, whatever its server says. Then another is asked for.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(86_400);

/// Bytes of one tar-split line; longer ones are refused. A line holds at most one PAX header or a file name in base64.
pub const TAR_SPLIT_LINE_BYTES: u64 = 16 << 20;

/// Bytes of `repositories.json`; a larger one is refused.
pub const REPOSITORIES_BYTES: u64 = 64 << 20;

/// Bytes of an image config; registries refuse configs far smaller than this.
pub const CONFIG_BYTES: u64 = 8 << 20;

/// Bytes of a manifest, an index or a list of images; registries refuse more than 4 MiB (distribution-spec, "Pushing Manifests").
pub const MANIFEST_BYTES: u64 = 4 << 20;

/// Indexes that are descended from the first to a manifest.
pub const INDEX_DEPTH: u32 = 3;

/// Manifests of one index that is pushed whole, those with attestations included. More are refused.
pub const INDEX_MANIFESTS: usize = 64;

/// Bytes of one statement about an image that is read to be shown. A longer one is named only.
pub const STATEMENT_BYTES: u64 = 1 << 20;

/// Entries of an image archive; more are refused.
pub const ARCHIVE_ENTRIES: usize = 100_000;

/// Bytes of one entry's headers, its long names and extensions included; an archive with more is refused.
pub const ARCHIVE_HEADER_BYTES: u64 = 1 << 20;

/// Links that are followed from one entry of an image archive. Then it counts as missing.
pub const ARCHIVE_LINKS: u32 = 8;

/// Layers of one image (Docker itself stops at 128). More are refused.
pub const LAYERS: usize = 512;

/// Bytes of one small file of the layer store (cache-id, size). More is refused.
pub const SMALL_FILE_BYTES: u64 = 4 << 10;

/// Records of the digest index; at the limit the oldest half is dropped and the file written anew.
pub const INDEX_RECORDS: usize = 20_000;

/// Bytes of the digest index; a longer file is taken as broken and started anew.
pub const INDEX_BYTES: u64 = 32 << 20;

/// Repositories remembered for one blob. The oldest is forgotten.
pub const INDEX_PLACES: usize = 4;

/// Repositories tried as the origin of a mount for one blob. Then it is uploaded.
pub const MOUNTS_TRIED: usize = 2;

/// Pause between two looks for layers that dockerd begins to export.
pub const EXPORT_LOOK: Duration = Duration::from_millis(5);

/// Pause between two looks at a record that dockerd writes, when there was nothing new in it.
pub const RECORD_LOOK: Duration = Duration::from_millis(2);

/// Bytes of a record, as gzip, from which on its layer is sent ahead. dockerd's come in steps of some 20 KiB, for some 200 files; a
/// shorter one is there whole when there is anything of it, and so is the image soon.
pub const AHEAD_RECORD_BYTES: u64 = 8 << 10;

/// Bytes of a layer that containerd is given, from which on it is sent ahead. A smaller one is there whole soon, and goes in one request.
pub const AHEAD_BLOB_BYTES: u64 = 2 * SMALL_LAYER_BYTES as u64;

/// Bytes that are read of the name of what containerd is given. A layer's is far shorter.
pub const INGEST_NAME_BYTES: u64 = 1 << 10;

/// Files at a record's start that must be in the directory it is taken for.
pub const AHEAD_FILES: usize = 32;

/// Descriptors of dockerd's that are looked at for the directory it reads. Further ones are not.
pub const AHEAD_DESCRIPTORS: usize = 4096;

/// Looks at them, [`RECORD_LOOK`] apart, for a directory that fits. Then the layer is sent when the image is there.
pub const AHEAD_TRIES: usize = 50;

/// Records that are followed for one push, begun or passed over. Layers beyond it are sent when the image is there.
pub const AHEAD_RECORDS: usize = 512;

/// For the request that gives up what was sent ahead. Then the registry is left to forget it.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

//! Bounds of the network face: listeners, gateways, API. docs/LIMITS.md lists each with its test.

use std::time::Duration;

/// Connections one listener holds at once: the two shares below.
pub const LISTENER_CONNECTIONS_MAX: usize = UNAUTHENTICATED_MAX + AUTHENTICATED_MAX;
/// Connections on one listener that have shown no good credential yet. For one more, an old one is closed: the oldest of the site with the
/// most if it is [`UNAUTHENTICATED_ROOM_AFTER`] old, else the oldest of all.
pub const UNAUTHENTICATED_MAX: usize = 2048;
/// Those of one IPv4 address or IPv6 /64. For one more, its oldest is closed if it is [`UNAUTHENTICATED_ROOM_AFTER`] old, else the new one.
pub const UNAUTHENTICATED_PER_NETWORK_MAX: usize = 1024;
/// Those of one IPv6 /48, in the same way.
pub const UNAUTHENTICATED_PER_SITE_MAX: usize = 1024;
/// See [`UNAUTHENTICATED_MAX`].
pub const UNAUTHENTICATED_ROOM_AFTER: Duration = Duration::from_secs(2);
/// Longest a connection may take over its TLS handshake and the head of its first request; then it is closed.
pub const FIRST_REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest a connection may stay after that without a good credential: its one answer is sent in this time, or it is cut.
pub const UNAUTHENTICATED_ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Connections on one listener that have shown a good credential; a request on one more is answered 503.
pub const AUTHENTICATED_MAX: usize = 6144;
/// Those of one org (or of the administrator). It may also have no more than are left for all others: a request on one more is answered 429.
pub const ORG_CONNECTIONS_MAX: usize = 1024;
/// Longest a connection may take over a request's head, or be idle between two; then it is closed.
pub const REQUEST_HEAD_WAIT_MAX: Duration = Duration::from_secs(75);
/// A client that has been silent for so long is asked by the kernel whether it is still there (TCP keepalive).
pub const CLIENT_SILENCE_ASK: Duration = Duration::from_secs(60);
/// Then it is asked again after each of these,
pub const CLIENT_SILENCE_ASK_EVERY: Duration = Duration::from_secs(15);
/// and after so many questions without an answer the connection ends, and what it held a builder up for.
pub const CLIENT_SILENCE_ASKS_MAX: u32 = 8;
/// Longest time between two attempts to send a client what it has not acknowledged. The kernel gives up after some fifteen of them
/// (`net.ipv4.tcp_retries2`). Kernels before 6.15 do not know this bound: they take about a quarter of an hour.
pub const CLIENT_RESEND_EVERY_MAX: Duration = Duration::from_secs(15);
/// Header fields of one request; more are answered 431.
pub const REQUEST_HEADERS_MAX: usize = 128;
/// Bytes of one request's head; more are answered 431. Also the read buffer of one connection.
pub const REQUEST_HEAD_BYTES_MAX: usize = 128 << 10;
/// Longest path (before its query) that a gateway looks at; a longer one is answered 414.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest dockerd may take to begin the answer to the upgrade that carries a BuildKit connection.
pub const UPGRADE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Idle connections to one builder kept for the next request; one more is closed.
pub const POOLED_PER_BUILDER_MAX: usize = 16;
/// How long an idle connection to a builder is kept; then it is closed, so that a virtual machine can be paused.
pub const POOLED_IDLE_MAX: Duration = Duration::from_secs(20);
/// Idle connections kept in all; the pool is emptied of the old ones first.
pub const POOLED_MAX: usize = 512;
/// Bytes read from a client's connection at once: one full TLS record (RFC 8446, section 5.2). Each connection holds so much.
pub const TLS_READ_BYTES: usize = (16 << 10) + 256 + 5;
/// Bytes moved in one step of a hijacked stream. The buffer belongs to the thread, not to the stream.
pub const PUMP_BYTES: usize = 64 << 10;
/// Longest name of a build that is recognised in a BuildKit client's stream; a longer one is not looked at.
pub const SOLVE_NAME_BYTES_MAX: usize = 120;
/// Bytes of a request for a build that are looked at in a BuildKit client's stream, for the names of the image. Each such stream holds so much.
pub const SOLVE_LOOKED_AT_BYTES: usize = 4 << 10;
/// Bytes of a GraphQL request; more are answered 413.
pub const GRAPHQL_BODY_BYTES_MAX: usize = 1 << 20;
/// Longest a GraphQL request's body may take to arrive.
pub const GRAPHQL_BODY_WAIT_MAX: Duration = Duration::from_secs(30);
/// A comment is sent on a quiet event stream so often, so that both ends know that the other is there.
pub const SSE_HEARTBEAT: Duration = Duration::from_secs(15);
/// Events of a subscription that wait for a slow reader.
pub const SSE_QUEUE_MAX: usize = 16;
/// Good credentials remembered.
pub const AUTH_CACHE_MAX: usize = 4096;
/// How long a good credential is remembered. A revocation by another process takes effect on new requests after this at
/// the latest; one by this process, at once.
pub const AUTH_CACHE_KEEP: Duration = Duration::from_secs(5);
/// How often the tokens are looked at that something runs for. What runs for one that has expired, or that another process
/// has revoked, ends after this at the latest.
pub const TOKEN_LOOK_EVERY: Duration = Duration::from_secs(2);
/// Wrong credentials one network (an IPv4 address, an IPv6 /64) may present at once; further ones are answered 429. Good credentials are
/// always taken.
pub const AUTH_FAILURES_MAX: u32 = 30;
/// After so long it may present one more.
pub const AUTH_FAILURE_EVERY: Duration = Duration::from_secs(2);
/// Lines of one kind that others can cause at will (refused credentials, builders that break off) written to the log at once; further ones
/// are counted, and the next line tells how many.
pub const LOG_LINES_MAX: u32 = 60;
/// After so long one more is written.
pub const LOG_LINE_EVERY: Duration = Duration::from_secs(1);
/// Networks whose failures are counted; those with the fewest are forgotten first.
pub const AUTH_PEERS_MAX: usize = 8192;
/// How long the gateways go by an org's defaults (region, architecture) before they read them again.
pub const RECENT_ORGS_KEEP: Duration = Duration::from_secs(1);
/// Orgs whose defaults are remembered; those of further ones are read each time.
pub const RECENT_ORGS_MAX: usize = 4096;
/// A use of a token is recorded at most so often.
pub const TOKEN_TOUCH_EVERY: Duration = Duration::from_secs(60);
/// Lifetime of the server's certificate.
pub const SERVER_CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The server's certificate is replaced when so much of its life is left.
pub const SERVER_CERTIFICATE_RENEW_LEFT: Duration = Duration::from_secs(10 * 24 * 3600);
/// How often its age is looked at.
pub const SERVER_CERTIFICATE_LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Shortest life of a client certificate.
pub const CLIENT_CERTIFICATE_LIFE_MIN: Duration = Duration::from_secs(24 * 3600);
/// Longest life of a client certificate, and the one that is given when nobody asks for another.
pub const CLIENT_CERTIFICATE_LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longest the shutdown waits for requests to end; then they are cut. Builds are the guests' own and go on.
pub const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Largest `X-Registry-Auth` that is decoded.
pub const REGISTRY_AUTH_BYTES_MAX: usize = 32 << 10;
/// Largest list of images that is read to find the tags of a `docker push --all-tags`.
pub const IMAGE_LIST_BYTES_MAX: usize = 8 << 20;
/// Longest that list may take to arrive; then the push is refused.
pub const IMAGE_LIST_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest name of a token or an org, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest image name, session id, or name of a build's attribute, in bytes.
pub const REFERENCE_BYTES_MAX: usize = 1024;
/// Attributes of one build (build arguments, labels and so on).
pub const FRONTEND_ATTRS_MAX: usize = 1024;
/// Bytes of them in all.
pub const FRONTEND_ATTRS_BYTES_MAX: usize = 256 << 10;
/// Further names of one build's image, and as many allowed things, caches to look at and caches to write. More are refused.
pub const BUILD_LISTED_MAX: usize = 64;
/// Builds or events in one answer of the API; callers page on.
pub const PAGE_MAX: u32 = 200;
/// How long the API waits for a builder's guest to tell its disk and activity; then it answers without them.
pub const GUEST_LOOK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Tokens that one build or push is lent at once; then one each [`LOAN_EVERY`].
pub const LOANS_MAX: u32 = 32;
/// See [`LOANS_MAX`].
pub const LOAN_EVERY: Duration = Duration::from_secs(5);
/// How long a registry and its token server may take for one token. Then the push is told so.
pub const LOAN_ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// Pause before a builder that was not heard is asked again whether it wants a token.
pub const LOAN_RETRY: Duration = Duration::from_secs(1);
/// Times in a row that it is not heard; then no more is lent to this build or push.
pub const LOAN_FAILURES_MAX: u32 = 600;
/// Registry tokens that the deploys of one org are lent at once for what they pull; then one each [`PULL_LOAN_EVERY`]. More are refused.
pub const PULL_LOANS_MAX: u32 = 256;
/// See [`PULL_LOANS_MAX`].
pub const PULL_LOAN_EVERY: Duration = Duration::from_millis(200);
/// How long a registry and its token server may take for a token to pull with. BuildKit waits for 30 s.
pub const PULL_LOAN_WAIT_MAX: Duration = Duration::from_secs(20);
/// Repositories that one token to pull with may cover; more are refused.
pub const PULL_REPOSITORIES_MAX: usize = 16;
/// Registries, counted for each org, whose ways to tokens are remembered; the oldest one is forgotten for a new one.
pub const PULL_EXCHANGES_MAX: usize = 64;
/// For how long.
pub const PULL_EXCHANGE_KEPT: Duration = Duration::from_secs(300);
/// Longest user name or password that is stored.
pub const STORED_TEXT_BYTES_MAX: usize = 16 << 10;

const _: () = assert!(
    SERVER_CERTIFICATE_RENEW_LEFT.as_secs() + SERVER_CERTIFICATE_LOOK_EVERY.as_secs()
        < SERVER_CERTIFICATE_LIFE.as_secs()
);
const _: () = assert!(ORG_CONNECTIONS_MAX * 2 <= AUTHENTICATED_MAX);
const _: () = assert!(UNAUTHENTICATED_PER_NETWORK_MAX * 2 <= UNAUTHENTICATED_MAX);
const _: () = assert!(UNAUTHENTICATED_PER_SITE_MAX * 2 <= UNAUTHENTICATED_MAX);
const _: () = assert!(UNAUTHENTICATED_ROOM_AFTER.as_secs() < FIRST_REQUEST_WAIT_MAX.as_secs());
const _: () =
    assert!(CLIENT_CERTIFICATE_LIFE_MIN.as_secs() < CLIENT_CERTIFICATE_LIFE_MAX.as_secs());

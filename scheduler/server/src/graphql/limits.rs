//! Bounds of GraphQL requests and their answers. docs/LIMITS.md lists each.

use std::time::Duration;

/// Bytes of the document (`query`) of a GraphQL request; a longer one is INVALID. Values belong into variables.
pub(super) const GRAPHQL_DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Names, values and punctuation marks of a document; one with more is INVALID.
pub(super) const GRAPHQL_TOKENS_MAX: usize = 8192;
/// Longest name in a document, in bytes; a longer one is INVALID.
pub(super) const GRAPHQL_NAME_BYTES_MAX: usize = 128;
/// Nesting of brackets of any kind in a document, and of selections once fragments are expanded; more is INVALID.
pub(super) const GRAPHQL_NESTING_MAX: usize = 32;
/// Operations in a document; one more is INVALID.
pub(super) const GRAPHQL_OPERATIONS_MAX: usize = 32;
/// Fragments in a document; one more is INVALID.
pub(super) const GRAPHQL_FRAGMENTS_MAX: usize = 64;
/// Selections, arguments, directives and values of all operations once fragments are expanded; more is INVALID.
pub(super) const GRAPHQL_NODES_MAX: usize = 4096;
/// Fields at the top of one query; one more is INVALID.
pub(super) const GRAPHQL_ROOTS_MAX: usize = 64;
/// Fields at the top of one mutation; one more is INVALID.
pub(super) const GRAPHQL_MUTATIONS_MAX: usize = 16;
/// Values in the variables of a request; more is INVALID.
pub(super) const GRAPHQL_VALUES_MAX: usize = 16 << 10;
/// Nesting of fields of a GraphQL query (what reads the whole schema needs 15).
pub(super) const GRAPHQL_DEPTH_MAX: usize = 16;
/// Weight of a GraphQL request: 1 for each field, times the rows of the lists that it is in. More is INVALID.
pub(super) const GRAPHQL_COMPLEXITY_MAX: usize = 10_000;
/// Rows that a list without a limit of its own counts for.
pub(super) const GRAPHQL_LIST_WEIGHT: usize = 100;
/// What a field counts for that asks a builder's guest.
pub(super) const GRAPHQL_GUEST_WEIGHT: usize = 10;
/// Requests of one org that are parsed and validated at once; further ones wait in order.
pub(super) const GRAPHQL_CHECKS_MAX: usize = 2;
/// Longest a request waits for that, and takes; then it is answered UNAVAILABLE.
pub(super) const GRAPHQL_CHECK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest a query may take; then it is cut off and answered UNAVAILABLE.
pub(super) const GRAPHQL_QUERY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest a mutation may take; then it is answered UNAVAILABLE, and none of its further fields begins.
pub(super) const GRAPHQL_MUTATION_WAIT_MAX: Duration = Duration::from_secs(900);
/// Errors of one answer; further ones are only counted.
pub(super) const GRAPHQL_ERRORS_MAX: usize = 20;
/// Longest message of an error, in bytes; the rest is cut off.
pub(super) const GRAPHQL_ERROR_BYTES_MAX: usize = 1024;
/// Bytes of one answer; a larger one is cut off while it is made, and answered LIMIT.
pub(super) const GRAPHQL_ANSWER_BYTES_MAX: usize = 4 << 20;
/// The same for one event of a stream.
pub(super) const GRAPHQL_EVENT_BYTES_MAX: usize = 2 << 20;
/// Longest life that can be asked for a token; one without an end is another thing.
pub(super) const TOKEN_LIFE_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// What each answer and each body of a request may have without counting for [`GRAPHQL_ORG_ANSWERS_BYTES_MAX`] and [`GRAPHQL_ANSWERS_BYTES_MAX`].
pub(super) const GRAPHQL_ANSWER_FREE_BYTES: usize = 64 << 10;
/// Bytes of one org's answers that are being made or have not been sent yet, and of its requests' bodies until they are checked; what is
/// over it is LIMIT.
pub(super) const GRAPHQL_ORG_ANSWERS_BYTES_MAX: usize = 32 << 20;
/// The same of all orgs.
pub(super) const GRAPHQL_ANSWERS_BYTES_MAX: usize = 256 << 20;

const _: () = assert!(GRAPHQL_EVENT_BYTES_MAX <= GRAPHQL_ANSWER_BYTES_MAX);
const _: () = assert!(GRAPHQL_ANSWER_FREE_BYTES < GRAPHQL_ANSWER_BYTES_MAX);
const _: () = assert!(GRAPHQL_ANSWER_BYTES_MAX * 2 <= GRAPHQL_ORG_ANSWERS_BYTES_MAX);
const _: () = assert!(GRAPHQL_ORG_ANSWERS_BYTES_MAX * 4 <= GRAPHQL_ANSWERS_BYTES_MAX);
const _: () = assert!(GRAPHQL_DEPTH_MAX < GRAPHQL_NESTING_MAX);

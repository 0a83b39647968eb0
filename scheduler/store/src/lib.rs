//! What Slipway remembers, in domain verbs.
//!
//! Owns: the [`Store`] trait, its records, and the SQLite store with its migrations. A store on another database
//! implements the same trait and passes the same conformance suite (`tests/conformance`).
//!
//! Every verb that touches a tenant's data takes the [`slipway_core::id::OrgId`] and filters by it in the statement
//! itself, so that a forgotten check elsewhere shows an empty answer and not a neighbour's data. The few verbs for the
//! reconcilers, which see all tenants, are in a trait of their own, [`SystemStore`].
//!
//! Must not know: the planner's rules (it stores states and never chooses one), HTTP, hosts' APIs, clear secrets.

mod error;
pub mod limits;
mod model;
mod sqlite;
mod verbs;
mod volume;

pub use error::{ErrorKind, StoreError, What};
pub use model::*;
pub use sqlite::{SqliteStore, UnknownWordError};
pub use verbs::{Store, SystemStore};
pub use volume::*;

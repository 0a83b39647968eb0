//! A BuildKit client in two halves: [`Client`] asks a builder to solve a Dockerfile, and [`Session`] serves that
//! builder what the solve needs from the caller's side: the files of the build context, secrets and registry logins.
//!
//! The halves may live in different processes: they meet at the builder, by the session's id.
//!
//! It must not know Slipway's own API, nor how the streams it is given were made.

mod annotation;
mod ask;
mod client;
mod dial;
mod event;
mod filesync;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod ignore;
pub mod limits;
mod records;
mod session;
mod solve_error;

pub use annotation::{Annotation, BadAnnotation};
pub use ask::{NoAnswer, Question};
pub use client::{
    BadCacheEntry, CacheEntry, Client, ConnectError, Export, Exporter, SolveRequest, SolveResult,
};
pub use dial::{DialError, Upgraded, dial_docker_grpc, dial_docker_session};
pub use event::SolveEvent;
pub use records::{SolveEnd, SolveRecord};
pub use session::{
    ExportSink, Lends, LentToken, LocalDir, RegistryLogin, RegistryLogins, SecretSource, Session,
    SessionError, SessionOptions, SessionStats, StatsHandle,
};
pub use solve_error::{SolveError, SolveFailure, registry_out_of_reach};
pub use tonic::async_trait;

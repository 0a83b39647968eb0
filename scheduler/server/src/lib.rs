//! The control plane: GraphQL, the Docker and BuildKit gateways, and the reconcilers that execute plans without choosing.
//!
//! Must not know: how machines or volumes are made.

#[cfg(test)]
extern crate self as slipway_scheduler;

mod api;
pub mod auth;
mod backup;
pub mod bounds;
pub mod builds;
pub mod ca;
mod chain;
mod clock;
mod connection;
mod credentials;
mod data_dir;
mod edge;
pub mod entropy;
pub mod farm;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod gateway;
mod graphql;
pub mod guest_client;
pub mod host_client;
mod http;
pub mod keys;
pub mod lending;
pub mod limits;
mod listener;
mod liveness;
pub mod machine_stream;
mod origin;
mod parts;
mod places;
pub mod problem;
mod rate;
pub mod seal;
mod secret_file;
pub mod serve;
pub mod settings;
#[cfg(test)]
mod testing;
mod text;
mod tls;
mod transfer_path;
mod transfers;

pub use backup::{BackupError, backup};
pub use graphql::sdl;
pub use serve::{ServeError, run};
pub use settings::ServeSettings;

//! The control plane: GraphQL, the Docker and BuildKit gateways, and the reconcilers that execute plans without choosing.
//!
//! Must not know: how machines or volumes are made.

pub mod builds;
pub mod farm;
pub mod guest_client;
pub mod host_client;
pub mod limits;

//! The client of the server's API: GraphQL requests, event streams, upgraded connections, all over TLS.
//!
//! Owns addresses, TLS and HTTP. Must not know what is asked (that is [`queries`]) nor how it is shown.

mod address;
mod graphql;
mod http;
pub(crate) mod queries;
mod reply;
mod requests;
pub(crate) mod shapes;
mod sse;
mod tls;
pub(crate) mod transfers;
pub(crate) mod volumes;

pub(crate) use address::ServerAddress;
pub(crate) use graphql::ApiClient;
pub(crate) use http::open_upgraded;
pub(crate) use reply::ApiError;
pub(crate) use sse::{EventStream, StreamEnd};
pub(crate) use tls::Transport;

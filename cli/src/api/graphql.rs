//! GraphQL over HTTP POST: one request, one answer, and what its errors mean for the exit code.

use super::http::{self as wire, Answer, Connections};
use super::reply::{ApiError, interpret};
use super::{EventStream, ServerAddress, Transport};
use crate::limits::{API_ANSWER_BYTES_MAX, API_WAIT_MAX};
use crate::settings::Access;
use crate::token::Token;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slipway_terminal::exit::{Failure, Outcome};
use std::time::Duration;

const PATH: &str = "/graphql";

/// A request text, and the one field of its answer that matters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    /// The text.
    pub(crate) text: &'static str,
    /// The root field.
    pub(crate) field: &'static str,
}

/// The server as seen by one caller. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    transport: Transport,
    address: ServerAddress,
    token: Token,
    connections: Connections,
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self {
            code: String::new(),
            failure,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        error.failure
    }
}

impl ApiClient {
    /// A client for what was resolved from flags, environment and file.
    ///
    /// # Errors
    /// The caller's fault: a bad address or authority.
    pub(crate) fn new(access: &Access) -> Outcome<Self> {
        Ok(Self {
            transport: Transport::new(access.ca_pem.as_deref())?,
            address: ServerAddress::parse(&access.server)?,
            token: access.token.clone(),
            connections: Connections::default(),
        })
    }

    /// Where the API is.
    pub(crate) fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// For connections to the gateways, which have the same authority.
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// A refusal of any page of the API, from its body.
    pub(super) fn refusal(status: StatusCode, body: &[u8]) -> ApiError {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) if value.get("errors").is_some() => interpret::<Value>(value, "")
                .err()
                .unwrap_or_else(|| wire::refused(status, body).into()),
            Ok(_) | Err(_) => wire::refused(status, body).into(),
        }
    }

    /// For requests to the gateways.
    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    /// Asks, and gives the field of the answer.
    ///
    /// # Errors
    /// The network's fault, or what the server says.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        query: Query,
        variables: Value,
    ) -> Result<T, ApiError> {
        self.call_within(query, variables, API_WAIT_MAX).await
    }

    /// Like [`ApiClient::call`], waiting up to `wait` for the answer.
    ///
    /// # Errors
    /// The network's fault, or what the server says.
    pub(crate) async fn call_within<T: DeserializeOwned>(
        &self,
        query: Query,
        variables: Value,
        wait: Duration,
    ) -> Result<T, ApiError> {
        let request = self.request(query, &variables, "application/json")?;
        let answer = self.send(request, wait).await?;
        let server = answer.server_version();
        let (status, body) = self.connections.read(answer, wait).await?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) if value.get("data").is_some() || value.get("errors").is_some() => {
                interpret(value, query.field).map_err(|error| error.with_versions(server))
            }
            Ok(_) if status == StatusCode::OK => Err(not_ours(&self.address).into()),
            Err(_) if status == StatusCode::OK => Err(not_ours(&self.address).into()),
            Ok(_) | Err(_) => Err(wire::refused(status, &body).into()),
        }
    }

    /// Opens a subscription.
    ///
    /// # Errors
    /// The network's fault, or what the server says before the first event.
    pub(crate) async fn subscribe(
        &self,
        query: Query,
        variables: Value,
    ) -> Result<EventStream, ApiError> {
        let request = self.request(query, &variables, "text/event-stream")?;
        let answer = self.send(request, API_WAIT_MAX).await?;
        let is_stream = answer
            .response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with("text/event-stream"));
        if answer.response.status() == StatusCode::OK && is_stream {
            return Ok(EventStream::new(answer.response.into_body(), query.field));
        }
        let server = answer.server_version();
        let (status, body) = self.connections.read(answer, API_WAIT_MAX).await?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) if value.get("errors").is_some() => {
                Err(interpret::<Value>(value, query.field)
                    .err()
                    .map(|error| error.with_versions(server))
                    .unwrap_or_else(|| not_ours(&self.address).into()))
            }
            Ok(_) | Err(_) => Err(wire::refused(status, &body).into()),
        }
    }

    async fn send(&self, request: http::Request<Full<Bytes>>, wait: Duration) -> Outcome<Answer> {
        self.connections
            .send(&self.transport, &self.address, request, wait)
            .await
    }

    fn request(
        &self,
        query: Query,
        variables: &Value,
        accept: &'static str,
    ) -> Outcome<http::Request<Full<Bytes>>> {
        let body = json!({ "query": query.text, "variables": variables }).to_string();
        wire::request(Method::POST, &self.address, PATH, &self.token)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, accept)
            .body(Full::from(body))
            .map_err(|error| wire::unsendable(&error))
    }
}

fn not_ours(address: &ServerAddress) -> Failure {
    Failure::user(format!("{address} is not a slipway server"))
        .hint("`slipway login --server` takes the address of the API, not of a gateway")
}

const _: () = assert!(API_ANSWER_BYTES_MAX > slipway_core::limits::BUILD_EVENTS_BYTES_MAX);

//! Which error an answer, or the lack of one, stands for.
//!
//! Knows statuses and transport errors; sends nothing.

use super::endpoint::{Answer, Endpoint, NoAddress};
use super::retry::{is_caused_by, is_rate_limit};
use crate::error::{ProtocolFault, PushError, Said};
use http::StatusCode;
use std::time::Duration;

impl Endpoint {
    pub(crate) fn protocol(&self, item: &str, fault: ProtocolFault) -> PushError {
        PushError::Protocol {
            host: self.host.clone(),
            item: item.to_string(),
            fault,
        }
    }

    pub(super) fn timed_out(&self, item: &str, after: Duration) -> PushError {
        PushError::TimedOut {
            host: self.host.clone(),
            item: item.to_string(),
            after,
        }
    }

    pub(super) fn unauthorized(&self, said: Said) -> PushError {
        PushError::Unauthorized {
            host: self.host.clone(),
            anonymous: !self.has_credential(),
            said,
        }
    }

    /// A request that got no answer. URLs are taken out: they may be signed.
    pub(super) fn transport(&self, item: &str, attempts: u32, source: reqwest::Error) -> PushError {
        if is_caused_by::<NoAddress>(&source) {
            // The registry, its token server, or where one of them redirects to.
            let host = source.url().and_then(|url| url.host_str());
            let host = host.unwrap_or(&self.host).to_owned();
            return PushError::Closed { host };
        }
        let (host, source) = (self.host.clone(), source.without_url());
        if source.is_connect() {
            return PushError::Unreachable { host, source };
        }
        PushError::Broken {
            host,
            item: item.to_string(),
            attempts,
            source,
        }
    }

    /// The error that a final answer stands for.
    pub(crate) fn failed(&self, item: &str, answer: &Answer, attempts: u32) -> PushError {
        let said = Said::from_body(&answer.body);
        let (host, item, repository) =
            (self.host.clone(), item.to_string(), self.repository.clone());
        match answer.status {
            StatusCode::UNAUTHORIZED => self.unauthorized(said),
            status if is_rate_limit(status, &answer.headers, &said) => PushError::RateLimited {
                host,
                attempts,
                said,
            },
            StatusCode::INSUFFICIENT_STORAGE => PushError::Quota {
                host,
                repository,
                said,
            },
            status if status.is_client_error() && said.mentions("quota") => PushError::Quota {
                host,
                repository,
                said,
            },
            StatusCode::FORBIDDEN => PushError::Forbidden {
                host,
                repository,
                said,
            },
            StatusCode::NOT_FOUND => PushError::NotFound {
                host,
                repository,
                said,
            },
            StatusCode::PAYLOAD_TOO_LARGE => PushError::TooLarge { host, item, said },
            status if status.is_server_error() => PushError::RegistryFailed {
                host,
                item,
                status,
                attempts,
                said,
            },
            status if status.is_client_error() => PushError::Rejected {
                host,
                item,
                status,
                said,
            },
            status => PushError::Protocol {
                host,
                item,
                fault: ProtocolFault::Status(status),
            },
        }
    }
}

impl PushError {
    pub(super) fn with_attempts(mut self, made: u32) -> PushError {
        if let PushError::Broken { attempts, .. } = &mut self {
            *attempts = made;
        }
        self
    }
}

//! A build's events over any number of connections: a broken one is opened again after the last event that was seen.
//!
//! Must not know what is done with an event.

use crate::api::queries;
use crate::api::{ApiClient, ApiError, EventStream, StreamEnd};
use crate::backoff::Backoff;
use crate::limits::RECONNECT_FOR_MAX;
use slipway_core::build::NumberedEvent;
use slipway_terminal::exit::{Failure, FailureKind, Outcome};
use std::time::Instant;

/// Follows one build.
#[derive(Debug)]
pub(super) struct Follower<'a> {
    client: &'a ApiClient,
    build: &'a str,
    stream: Option<EventStream>,
    backoff: Backoff,
    /// Why the last connection broke; the next one waits first.
    broken: Option<Failure>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Heard {
    /// An event.
    Event(Box<NumberedEvent>),
    /// The connection broke, for this reason; the next call tries again.
    Broken(String),
}

impl<'a> Follower<'a> {
    /// Connects when it is first asked.
    pub(super) fn new(client: &'a ApiClient, build: &'a str) -> Self {
        Self {
            client,
            build,
            stream: None,
            backoff: Backoff::default(),
            broken: None,
        }
    }

    /// The next event after number `after`. Cancel-safe: what was not given is given by the next call.
    ///
    /// # Errors
    /// The server refuses, or could not be reached for [`RECONNECT_FOR_MAX`].
    pub(super) async fn hear(&mut self, after: u64) -> Outcome<Heard> {
        if let Some(why) = &self.broken {
            match self.backoff.next(Instant::now()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(self.lost(why)),
            }
            self.broken = None;
        }
        let broken = match self.listen(after).await {
            Ok(Some(event)) => {
                self.backoff.reset();
                return Ok(Heard::Event(Box::new(event)));
            }
            Ok(None) => Failure::system("the server ended the event stream early"),
            Err(StreamEnd::Broken(failure)) => failure,
            // A server that is starting, stopping or overloaded refuses for its own reasons.
            Err(StreamEnd::Refused(error)) if error.failure.kind() == FailureKind::System => {
                error.failure
            }
            Err(end @ StreamEnd::Refused(_)) => return Err(end.into_failure()),
        };
        self.stream = None;
        let told = broken.message().to_owned();
        self.broken = Some(broken);
        Ok(Heard::Broken(told))
    }

    async fn listen(&mut self, after: u64) -> Result<Option<NumberedEvent>, StreamEnd> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let opened = queries::build_events(self.client, self.build, after).await;
                let stream = opened.map_err(|error: ApiError| StreamEnd::Refused(error))?;
                self.stream.insert(stream)
            }
        };
        queries::next_event(stream).await
    }

    fn lost(&self, why: &Failure) -> Failure {
        Failure::system(format!(
            "the server could not be reached for {} s: {}",
            RECONNECT_FOR_MAX.as_secs(),
            why.message()
        ))
        .hint(format!(
            "the build may still run; `slipway builds attach {}` shows it",
            self.build
        ))
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;

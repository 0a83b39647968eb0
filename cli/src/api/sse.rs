//! A GraphQL subscription over server-sent events (the WHATWG's event stream format): each event's data is one
//! GraphQL response.

use super::reply::{ApiError, interpret};
use crate::limits::{EVENT_LINE_BYTES_MAX, EVENT_SILENCE_MAX};
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;
use slipway_terminal::exit::{Failure, Outcome};

/// The answers of a running subscription, in order.
#[derive(Debug)]
pub(crate) struct EventStream {
    body: Incoming,
    parser: Parser,
    field: &'static str,
}

impl EventStream {
    pub(super) fn new(body: Incoming, field: &'static str) -> Self {
        Self {
            body,
            parser: Parser::default(),
            field,
        }
    }

    /// The next answer; `None` when the server has said that there is no more.
    ///
    /// # Errors
    /// [`StreamEnd::Broken`] may be tried again from the last event; [`StreamEnd::Refused`] may not.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, StreamEnd> {
        loop {
            while let Some(message) = self.parser.next() {
                match message.kind.as_str() {
                    "complete" => return Ok(None),
                    "" | "message" | "next" if !message.data.is_empty() => {
                        return self.answer(&message.data).map(Some);
                    }
                    _ => {}
                }
            }
            let frame = tokio::time::timeout(EVENT_SILENCE_MAX, self.body.frame()).await;
            match frame {
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.parser.push(data).map_err(StreamEnd::Broken)?;
                    }
                }
                Ok(Some(Err(error))) => {
                    tracing::debug!(
                        error = slipway_terminal::exit::chain(&error),
                        "event stream"
                    );
                    return Err(StreamEnd::Broken(Failure::system(
                        "the connection to the server broke",
                    )));
                }
                Ok(None) => {
                    return Err(StreamEnd::Broken(Failure::system(
                        "the connection to the server broke",
                    )));
                }
                Err(_elapsed) => {
                    return Err(StreamEnd::Broken(Failure::system(
                        "the server has gone silent",
                    )));
                }
            }
        }
    }

    fn answer<T: DeserializeOwned>(&self, data: &str) -> Result<T, StreamEnd> {
        let value: Value = serde_json::from_str(data).map_err(|error| {
            StreamEnd::Refused(
                Failure::system_caused("the server sent an event that is not json", &error).into(),
            )
        })?;
        interpret(value, self.field).map_err(StreamEnd::Refused)
    }
}

/// Why a stream gives no more.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The connection is at fault.
    Broken(Failure),
    /// The server said no.
    Refused(ApiError),
}

impl StreamEnd {
    /// As the command's own failure.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::Broken(failure) => failure,
            Self::Refused(error) => error.failure,
        }
    }
}

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: String,
    data: String,
}

/// Cuts bytes into events, wherever the bytes were cut.
#[derive(Debug, Default)]
struct Parser {
    buffer: BytesMut,
    current: Message,
    ready: std::collections::VecDeque<Message>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end + 1);
            let text = String::from_utf8_lossy(&line);
            self.line(text.trim_end_matches(['\r', '\n']));
        }
        if self.buffer.len() > EVENT_LINE_BYTES_MAX {
            return Err(Failure::system("the event stream has a line without end"));
        }
        if self.current.data.len() > EVENT_LINE_BYTES_MAX {
            return Err(Failure::system("the event stream has an event without end"));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let message = std::mem::take(&mut self.current);
            if message != Message::default() {
                self.ready.push_back(message);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => {
                if !self.current.data.is_empty() {
                    self.current.data.push('\n');
                }
                self.current.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.current.kind),
            // Comments (heartbeats), ids and retry times mean nothing to us.
            _ => {}
        }
    }

    fn next(&mut self) -> Option<Message> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_survive_any_cut() {
        let text = ": hello\n\nevent: next\ndata: {\"a\":\ndata: 1}\n\ndata: {}\r\n\r\nevent: complete\n\n";
        let message = |kind: &str, data: &str| Message {
            kind: kind.to_owned(),
            data: data.to_owned(),
        };
        let want = [
            message("next", "{\"a\":\n1}"),
            message("", "{}"),
            message("complete", ""),
        ];
        for cut in 1..text.len() {
            let mut parser = Parser::default();
            for piece in text.as_bytes().chunks(cut) {
                parser.push(piece).unwrap();
            }
            let got: Vec<_> = std::iter::from_fn(|| parser.next()).collect();
            assert_eq!(got, want, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; EVENT_LINE_BYTES_MAX / 2 + 1];
        assert!(parser.push(&piece).is_ok());
        assert!(parser.push(&piece).is_err());
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut parser = Parser::default();
        let line = [b"data: ", &vec![b'x'; EVENT_LINE_BYTES_MAX / 2][..], b"\n"].concat();
        assert!(parser.push(&line).is_ok());
        let rest = [parser.push(&line), parser.push(&line)];
        assert!(rest.iter().any(Result::is_err));
    }

    proptest! {
        #[test]
        fn any_bytes_are_cut_into_the_same_events_however_they_come(
            lines in proptest::collection::vec("(data|event|id|)(: ?|)[ -~\u{e9}\r]{0,8}", 0..12), cut in 1..40_usize,
        ) {
            let text = lines.join("\n");
            let events = |cut: usize| {
                let mut parser = Parser::default();
                for piece in text.as_bytes().chunks(cut) {
                    parser.push(piece).unwrap();
                }
                std::iter::from_fn(|| parser.next()).collect::<Vec<_>>()
            };
            prop_assert_eq!(events(cut), events(text.len().max(1)));
        }
    }
}

//! What fuzzing calls: a function for each parser of foreign bytes, which panics when the parser breaks its word.
//! `loadtests/fuzz` runs them.

use crate::dial::read_answer;
use crate::event::{SolveEvent, events_of};
use crate::filesync::fuzz as filesync;
use crate::ignore::{self, Matcher, ParentMatches, matches_name};
use crate::limits::{
    ERROR_MESSAGE_BYTES_MAX, EXCERPT_BYTES_MAX, UPGRADE_HEAD_BYTES_MAX, UPGRADE_REFUSAL_BYTES_MAX,
};
use crate::{DialError, SolveFailure};
use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use bytes::Bytes;
use prost::Message as _;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tonic::{Code, Status};

/// A target: takes any bytes.
pub type Function = fn(&[u8]);

/// Name and function of each target.
pub const TARGETS: &[(&str, Function)] = &[
    ("ignore_file", ignore_file),
    ("ignore_pattern", ignore_pattern),
    ("upgrade_answer", upgrade_answer),
    ("solve_error", solve_error),
    ("solve_status", solve_status),
    ("sync_packet", filesync::packet),
    ("sync_wish", filesync::wish),
    ("sync_follow", filesync::follow),
];

/// An ignore file, a NUL, and a path. Without exceptions, a walk down to the path finds what a look at the whole path finds.
fn ignore_file(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (file, path) = (parts.next().unwrap_or_default(), parts.next());
    let Ok(matcher) = ignore::matcher(file) else {
        return;
    };
    let path = String::from_utf8_lossy(path.unwrap_or(b"a/b/c"));
    let names: Vec<&str> = path
        .split('/')
        .filter(|name| !matches!(*name, "" | "." | ".."))
        .collect();
    if names.is_empty() {
        return;
    }
    let (mut walked, mut parent) = (false, ParentMatches::default());
    for end in 1..=names.len() {
        (walked, parent) = matcher.matches_within(&names[..end].join("/"), &parent);
    }
    if !matcher.has_negations() {
        assert_eq!(walked, matcher.matches(&names.join("/")));
    }
}

/// A pattern, a NUL, and a name. Where both grammars mean the same, a pattern of a list matches what Go's `Match` does.
fn ignore_pattern(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (pattern, name) = text.split_once('\0').unwrap_or((&text, "a"));
    let matched = matches_name(pattern, name);
    let listed = Matcher::new(&[pattern]).map(|list| list.matches(name));
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "*?-_".contains(char);
    let comparable = !pattern.is_empty()
        && pattern.chars().all(is_plain)
        && !pattern.contains("**")
        && !name.is_empty()
        && !name.contains(['/', '\n']);
    if comparable {
        assert_eq!(listed, Ok(matched), "{pattern:?} {name:?}");
    }
}

/// The answer to an upgrade. What follows the head is not lost; a refusal is not kept beyond its bound.
fn upgrade_answer(bytes: &[u8]) {
    let mut stream = bytes;
    let answered = {
        let mut answer = pin!(read_answer(&mut stream, "/session"));
        match answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(answered) => answered,
            Poll::Pending => panic!("bytes that are there are not waited for"),
        }
    };
    match answered {
        Ok(early) => {
            let rest = [&early[..], stream].concat();
            assert!(bytes.ends_with(&rest));
            let head = &bytes[..bytes.len() - rest.len()];
            assert!(head.ends_with(b"\r\n\r\n") && head.starts_with(b"HTTP/1."));
        }
        Err(DialError::Refused { message, .. }) => {
            // A byte that is no text becomes three.
            assert!(message.len() <= 3 * UPGRADE_REFUSAL_BYTES_MAX);
            assert!(!message.contains(['\r', '\n']));
        }
        Err(DialError::NotHttp { .. }) => {
            // It does not read on without end.
            assert!(bytes.len() - stream.len() <= 2 * UPGRADE_HEAD_BYTES_MAX + 4096);
        }
        Err(_) => {}
    }
}

/// A gRPC code, a message and its details: the same bytes serve as both.
fn solve_error(bytes: &[u8]) {
    let Some((code, message)) = bytes.split_first() else {
        return;
    };
    let details = Bytes::copy_from_slice(message);
    let message = String::from_utf8_lossy(message);
    let code = Code::from(i32::from(*code));
    let status = Status::with_details(code, message.clone(), details);
    let SolveFailure { error, excerpt } =
        SolveFailure::of_status(status, |_| Some(message.into_owned()));
    let _ = (error.is_user_fault(), error.hint());
    assert!(error.to_string().len() <= ERROR_MESSAGE_BYTES_MAX + 200);
    let excerpt = excerpt.unwrap_or_default();
    assert!(excerpt.len() <= EXCERPT_BYTES_MAX);
    assert!(!excerpt.contains(|char: char| char.is_control() && char != '\n'));
}

/// A status message: every part of it becomes one event, and no event is larger than what it was made of.
fn solve_status(bytes: &[u8]) {
    let Ok(status) = StatusResponse::decode(bytes) else {
        return;
    };
    let parts =
        status.vertexes.len() + status.statuses.len() + status.logs.len() + status.warnings.len();
    let events: Vec<SolveEvent> = events_of(status).collect();
    assert_eq!(events.len(), parts);
}

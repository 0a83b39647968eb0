//! What the text of an error says. Pure.
//!
//! Texts quote what the user wrote: commands, paths, names. Words are looked for outside of quotes, and never in the command
//! of a step.

use super::details::Details;
use super::excerpt::syntax_line;
use super::tidy::tidy;
use super::{SolveError, advice};
use std::borrow::Cow;
use tonic::Code;

/// Longest command shown in the message of a failed step, in characters.
const COMMAND_CHARS_MAX: usize = 200;
const FAILED: &str = " did not complete successfully: ";

/// What an error is. `name` is the name of the step that failed, where it is known.
pub(super) fn classify(
    code: Code,
    message: &str,
    details: &Details,
    name: Option<&str>,
) -> SolveError {
    let message = unwrapped(message);
    if let Some((command, end)) = step_failure(message) {
        return step_error(code, command, end, details);
    }
    let message = tidy(message).into_owned();
    if let Some(exit_code) = details.exit_code {
        return SolveError::StepFailed { message, exit_code };
    }
    if is_of_the_reader(&message) {
        return dockerfile(message, details);
    }
    let plain = unquoted(&message);
    if let Some(error) = of_ours(code, &message, &plain) {
        return error;
    }
    if let Some(hint) = advice::of(&plain) {
        return SolveError::Instruction {
            message: advice::reworded(&message, name),
            hint,
        };
    }
    if advice::is_of_a_source(&plain) {
        return SolveError::SourceUnreachable {
            message: advice::reworded(&message, name),
        };
    }
    if plain.contains("target stage") && plain.contains("could not be found") {
        return SolveError::UnknownTarget { message };
    }
    if dockerfile_is_wrong(&plain) {
        return dockerfile(message, details);
    }
    if let Some(message) = missing_file(&message, &plain) {
        return SolveError::MissingFile { message };
    }
    if secret_is_missing(&message) {
        return SolveError::MissingSecret { message };
    }
    if image_cannot_be_had(&plain) {
        return unavailable(message, &plain, details);
    }
    if let Some(message) = device_not_made(&message) {
        return SolveError::Device { message };
    }
    if code == Code::InvalidArgument
        || plain.contains("invalid reference format")
        || plain.contains("failed to parse target platform")
        || plain.contains("unknown operating system or architecture")
    {
        return SolveError::InvalidRequest { message };
    }
    // A place in the Dockerfile and no step at work: the frontend does not understand what stands there.
    if details.source.is_some() && details.step.is_none() {
        return dockerfile(message, details);
    }
    SolveError::Other { message, code }
}

/// A process that ended badly, or that could not be started.
fn step_error(code: Code, command: &str, end: &str, details: &Details) -> SolveError {
    let command = match command.char_indices().nth(COMMAND_CHARS_MAX) {
        Some((cut, _)) => Cow::from(format!("{}...\"", &command[..cut])),
        None => Cow::from(command),
    };
    let end = tidy(end);
    let message = tidy(&format!("process {command}{FAILED}{end}")).into_owned();
    let told = end.strip_prefix("exit code: ").and_then(leading_number);
    if let Some(exit_code) = details.exit_code.or(told) {
        return SolveError::StepFailed { message, exit_code };
    }
    let plain = unquoted(&end);
    if let Some(error) = of_ours(code, &message, &plain) {
        return error;
    }
    match advice::of(&plain) {
        Some(hint) => SolveError::Instruction { message, hint },
        None => SolveError::Other { message, code },
    }
}

/// What can happen at any step, by nobody's doing.
fn of_ours(code: Code, message: &str, plain: &str) -> Option<SolveError> {
    let own = || message.to_owned();
    if let Some((_, reason)) = message.split_once(crate::filesync::READ_FAILURE) {
        let message = format!("{}{reason}", crate::filesync::READ_FAILURE);
        return Some(SolveError::Context { message });
    }
    if let Some((_, reason)) = message.split_once(crate::session::EXPORT_FAILURE) {
        let message = format!("{}{reason}", crate::session::EXPORT_FAILURE);
        return Some(SolveError::Export { message });
    }
    if [": no space left on device", ": disk quota exceeded"]
        .iter()
        .any(|part| plain.contains(part))
    {
        return Some(SolveError::NoSpace { message: own() });
    }
    if session_lost(plain) {
        return Some(SolveError::SessionLost { message: own() });
    }
    if code == Code::Cancelled || plain.ends_with("context canceled") {
        return Some(SolveError::Cancelled);
    }
    if plain.contains("excludepatterns") || plain.contains("includepatterns") {
        return Some(SolveError::Context { message: own() });
    }
    None
}

/// Parse errors, which repeat pieces of the Dockerfile without quotes.
fn is_of_the_reader(message: &str) -> bool {
    [
        "dockerfile parse error",
        "Dockerfile parse error",
        "failed to process \"",
        "failed to parse stage name",
    ]
    .iter()
    .any(|start| message.starts_with(start))
}

fn dockerfile_is_wrong(plain: &str) -> bool {
    [
        "failed to read dockerfile",
        "the Dockerfile cannot be empty",
        "file with no instructions",
        "no build stage in current context",
        "base name (",
        "circular dependency detected",
        "unknown instruction",
        "invalid from flag value",
        "invalid stage index",
    ]
    .iter()
    .any(|part| plain.contains(part))
}

fn dockerfile(message: String, details: &Details) -> SolveError {
    let source = details.source.as_ref();
    let first = source.and_then(|source| source.ranges.iter().map(|(start, _)| *start).min());
    let line = match first {
        Some(line) if line > 0 => u32::try_from(line).ok(),
        _ => message
            .split_once(" on line ")
            .and_then(|(_, rest)| leading_number(rest)),
    };
    SolveError::Dockerfile { message, line }
}

fn session_lost(plain: &str) -> bool {
    [
        "no active session for",
        "no active sessions",
        "session healthcheck failed",
        "no local sources enabled",
        "error reading from server: EOF",
        "connection error: desc",
        "transport is closing",
        "the client connection is closing",
        "only one connection allowed",
    ]
    .iter()
    .any(|part| plain.contains(part))
}

/// `... failed to calculate checksum of ref X::Y: "/path": not found`. The reference is noise.
fn missing_file(message: &str, plain: &str) -> Option<String> {
    if !plain.contains("failed to calculate checksum")
        && !plain.contains("failed to compute cache key")
    {
        return None;
    }
    let head = message.strip_suffix(": not found")?;
    let path = head.rsplit_once(": ").map_or(head, |(_, path)| path);
    Some(format!("{path}: not found in the build context or stage"))
}

fn secret_is_missing(message: &str) -> bool {
    message.ends_with(": not found")
        && (message.starts_with("secret ") || message.contains(": secret "))
}

/// `failed to create device .../path: operation not permitted`.
fn device_not_made(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("failed to create device ")?;
    let path = rest.strip_suffix(": operation not permitted")?;
    Some(format!(
        "{} is a device, which no build context can hold",
        path.trim_start_matches('/')
    ))
}

fn image_cannot_be_had(plain: &str) -> bool {
    [
        "pull access denied",
        "failed to resolve source metadata for",
        "insufficient_scope",
        "failed to authorize",
        "manifest unknown",
        "no match for platform in manifest",
        "unexpected status from HEAD request",
    ]
    .iter()
    .any(|part| plain.contains(part))
}

fn unavailable(message: String, plain: &str, details: &Details) -> SolveError {
    let is_unreachable = registry_out_of_reach(plain);
    // A base image has its name before the words; a frontend is fetched before anything else.
    let source = details.source.as_ref();
    let frontend = source.and_then(|source| syntax_line(&source.text));
    let metadata = "failed to resolve source metadata for ";
    if message.starts_with(metadata) && frontend.is_some() {
        return SolveError::FrontendUnavailable {
            message,
            is_unreachable,
        };
    }
    if is_unreachable {
        SolveError::RegistryUnreachable { message }
    } else {
        SolveError::ImageUnavailable { message }
    }
}

/// Whether words of dockerd or BuildKit about a registry say that the network or the registry failed: not the caller's
/// fault.
pub fn registry_out_of_reach(message: &str) -> bool {
    [
        "dial tcp",
        "no such host",
        "connection refused",
        "i/o timeout",
        "TLS handshake timeout",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway",
        "context deadline exceeded",
        "unexpected EOF",
        "connection reset by peer",
    ]
    .iter()
    .any(|part| message.contains(part))
}

/// `process "..." did not complete successfully: ...`: the command with its quotes, and what comes after it.
fn step_failure(message: &str) -> Option<(&str, &str)> {
    let quoted = message.strip_prefix("process ")?;
    let command = &quoted[..quoted_length(quoted)?];
    let end = quoted[command.len()..].strip_prefix(FAILED)?;
    Some((command, end))
}

/// Bytes of the string in Go's quotes that `text` begins with, quotes included.
fn quoted_length(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, char) in inner.char_indices() {
        match char {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// The text without what stands in double quotes.
fn unquoted(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        plain.push_str(&rest[..at]);
        let Some(length) = quoted_length(&rest[at..]) else {
            rest = &rest[at + 1..];
            continue;
        };
        plain.push_str("\"\"");
        rest = &rest[at + length..];
    }
    plain.push_str(rest);
    plain
}

fn leading_number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let digits = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    text[..digits].parse().ok()
}

/// Drops the wrapping that each layer of BuildKit and gRPC adds.
fn unwrapped(message: &str) -> &str {
    const NOISE: [&str; 13] = [
        "failed to solve: ",
        "failed to solve with frontend dockerfile.v0: ",
        "failed to solve with frontend gateway.v0: ",
        "failed to build LLB: ",
        "failed to load LLB: ",
        "failed to create LLB definition: ",
        "rpc error: code = Unknown desc = ",
        "rpc error: code = NotFound desc = ",
        "rpc error: code = InvalidArgument desc = ",
        "InvalidArgument: ",
        "FailedPrecondition: ",
        "NotFound: ",
        "Unknown: ",
    ];
    let mut rest = message.trim();
    while let Some(shorter) = NOISE.iter().find_map(|noise| rest.strip_prefix(noise)) {
        rest = shorter.trim_start();
    }
    rest
}

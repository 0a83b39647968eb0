//! How a command ends when it does not end well: whose fault, one line, and what to do about it.
//!
//! Owns the exit codes and the shape of every error text. Must not know any command; the last hint, where nobody knew one, is the
//! program's.

use slipway_core::build::Fault;
use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

/// Everything was done.
pub const EXIT_OK: u8 = 0;
/// The caller's fault: arguments, configuration, Dockerfile, credentials.
pub const EXIT_USER: u8 = 1;
/// Our fault, or the network's: trying again may help.
pub const EXIT_SYSTEM: u8 = 2;
/// Interrupted by the caller (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;

/// What every fallible step of the binary gives.
pub type Outcome<T> = Result<T, Failure>;

/// Why a command did not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: FailureKind,
    message: String,
    hint: Option<String>,
    /// Lines shown before the message: where it happened.
    excerpt: Option<String>,
}

/// What chooses the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The caller's fault.
    User,
    /// Ours, or the network's.
    System,
    /// Interrupted.
    Interrupted,
}

impl Failure {
    /// The caller's fault. `message` is lower case, one line, without final period.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(FailureKind::User, message)
    }

    /// Ours, or the network's.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(FailureKind::System, message)
    }

    /// Like [`Failure::system`], with the whole chain of causes after the action that failed.
    pub fn system_caused(action: impl fmt::Display, cause: &dyn std::error::Error) -> Self {
        Self::system(format!("{action}: {}", chain(cause)))
    }

    /// Like [`Failure::user`], with the whole chain of causes after the action that failed. `action` names the file: then a full disk
    /// is told as one of this computer, with its place.
    pub fn user_caused(
        action: impl fmt::Display,
        cause: &(dyn std::error::Error + 'static),
    ) -> Self {
        let kind = cause
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind);
        if kind == Some(ErrorKind::StorageFull) {
            return Self::user(format!("{action}: the disk of this computer is full"))
                .hint("make room on that disk, then run the command again");
        }
        if kind == Some(ErrorKind::QuotaExceeded) {
            return Self::user(format!(
                "{action}: your disk quota on this computer is used up"
            ))
            .hint("make room below your quota, then run the command again");
        }
        let failure = Self::user(format!("{action}: {}", chain(cause)));
        match kind == Some(ErrorKind::PermissionDenied) {
            true => failure.hint("you may not read it: look at its owner and mode"),
            false => failure,
        }
    }

    /// The caller pressed Ctrl-C, or sent SIGTERM.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Interrupted, message)
    }

    /// With the fault that somebody else decided on.
    pub fn with_fault(fault: Fault, message: impl Into<String>) -> Self {
        match fault {
            Fault::User => Self::user(message),
            Fault::System => Self::system(message),
        }
    }

    fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            excerpt: None,
        }
    }

    /// With the lines of a file round the fault, which are shown before the message.
    #[must_use]
    pub fn at(mut self, excerpt: Option<String>) -> Self {
        self.excerpt = excerpt;
        self
    }

    /// Says what to do about it. The first hint stays: who is nearest to the cause knows best.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// With a hint, if there is one.
    #[must_use]
    pub fn maybe_hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// What chooses the exit code.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The lines round the fault.
    pub fn excerpt(&self) -> Option<&str> {
        self.excerpt.as_deref()
    }

    /// What to do, if somebody knew.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The number the process ends with.
    pub fn code(&self) -> u8 {
        match self.kind {
            FailureKind::User => EXIT_USER,
            FailureKind::System => EXIT_SYSTEM,
            FailureKind::Interrupted => EXIT_INTERRUPTED,
        }
    }

    /// [`Failure::code`] as `main` returns it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(excerpt) = &self.excerpt {
            writeln!(f, "{excerpt}")?;
        }
        write!(f, "error: {}", self.message)?;
        match self.hint_text() {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// An error and its causes on one line, without saying the same thing twice (some libraries print their source).
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    without_numbers(text)
}

/// Without the kernel's numbers, as in `Permission denied (os error 13)`: the words say it.
fn without_numbers(mut text: String) -> String {
    const NUMBER: &str = " (os error ";
    while let Some(at) = text.find(NUMBER)
        && let Some(length) = text[at + NUMBER.len()..].find(')')
    {
        text.replace_range(at..=at + NUMBER.len() + length, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_error_and_hint_and_keeps_the_first_hint() {
        let failure = Failure::user("no such app")
            .hint("create it")
            .hint("later one");
        assert_eq!(failure.to_string(), "error: no such app\nhint: create it");
        assert_eq!(failure.code(), 1);
        let place = Some("Dockerfile:2\n   2 | >>> RUN x".to_owned());
        assert_eq!(
            Failure::user("x").hint("y").at(place).to_string(),
            "Dockerfile:2\n   2 | >>> RUN x\nerror: x\nhint: y"
        );
        assert_eq!(Failure::system("x").code(), 2);
        assert_eq!(Failure::interrupted("x").code(), 130);
    }

    #[test]
    fn what_cannot_be_read_is_told_in_words() {
        let error = std::io::Error::from_raw_os_error(13);
        let failure = Failure::user_caused("read /x", &error);
        assert_eq!(
            failure.to_string(),
            "error: read /x: Permission denied\nhint: you may not read it: look at its owner and mode"
        );
    }

    #[test]
    fn a_full_disk_is_told_as_one_of_this_computer() {
        let full = std::io::Error::from_raw_os_error(28);
        let failure = Failure::user_caused("write /x", &full);
        assert_eq!(failure.code(), EXIT_USER);
        assert_eq!(
            failure.to_string(),
            "error: write /x: the disk of this computer is full\n\
             hint: make room on that disk, then run the command again"
        );
        // As libraries wrap it.
        let wrapped = std::io::Error::new(full.kind(), "failed to unpack `y`");
        let failure = Failure::user_caused("write /x", &wrapped);
        assert!(failure.message().ends_with("is full"), "{failure}");
        let quota = std::io::Error::from(ErrorKind::QuotaExceeded);
        let failure = Failure::user_caused("write /x", &quota);
        assert!(failure.message().contains("quota"), "{failure}");
    }

    #[test]
    fn a_chain_says_each_thing_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner;
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Printing(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Silent(#[source] Inner);
        assert_eq!(chain(&Printing(Inner)), "outer: inner");
        assert_eq!(chain(&Silent(Inner)), "outer: inner");
    }
}

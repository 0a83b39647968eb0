//! How a build ended, told to people: whose fault it is, in one line, and what to do about it.
//!
//! Pure. It must not know how anything is tried again.

use crate::limits;
use crate::push::PushFailure;
use slipway_buildkit::{SolveError, SolveFailure};
use slipway_core::build::{BuildOutcome, Fault};

const EMULATION_HINT: &str = "have the org's builders be virtual machines, which always emulate: `slipway orgs update --isolation vm`; \
     or build with FROM --platform=$BUILDPLATFORM what can be compiled for another processor";
const DISK_FULL_HINT: &str = "have an admin of the org grow the cache: `slipway volumes list` names it, `slipway volumes extend VOLUME --size SIZE` grows it; or \
     empty it: `slipway builders reset-cache`";

/// The outcome of a solve that failed and is not tried again.
pub(crate) fn of_solve(failure: &SolveFailure) -> BuildOutcome {
    let error = &failure.error;
    let fault = if error.is_user_fault() {
        Fault::User
    } else {
        Fault::System
    };
    let hint = match error {
        SolveError::Cancelled => return BuildOutcome::Cancelled,
        SolveError::NoSpace { .. } => Some(DISK_FULL_HINT),
        SolveError::SessionLost { .. } => {
            Some("the client that serves the build context went away or was cut off; run it again")
        }
        SolveError::Transport(_) | SolveError::NoImage => Some("run it again"),
        SolveError::Dockerfile { .. }
        | SolveError::MissingFile { .. }
        | SolveError::StepFailed { .. }
        | SolveError::Instruction { .. }
        | SolveError::UnknownTarget { .. }
        | SolveError::ImageUnavailable { .. }
        | SolveError::RegistryUnreachable { .. }
        | SolveError::SourceUnreachable { .. }
        | SolveError::FrontendUnavailable { .. }
        | SolveError::Device { .. }
        | SolveError::MissingSecret { .. }
        | SolveError::Context { .. }
        | SolveError::Export { .. }
        | SolveError::InvalidRequest { .. }
        | SolveError::Other { .. } => error.hint(),
    };
    at(failed(fault, &error.to_string(), hint), failure)
}

/// The outcome of a step that failed while the builder's memory ran out, of which there are `bytes`. Whatever its exit code: the
/// program that the kernel ended may be a child, of which a shell or `make` says but that it failed.
pub(crate) fn out_of_memory(failure: &SolveFailure, bytes: Option<u64>) -> BuildOutcome {
    let all = bytes.map_or_else(String::new, |bytes| format!(" ({} MiB)", bytes >> 20));
    let hint = format!(
        "the builder's memory{all} ran out while the step ran, and the kernel ended a program of the step's, or of what ran \
         beside it: have the step do less at once, or give the builder more with `slipway orgs update --memory`"
    );
    let message = failure.error.to_string();
    at(failed(Fault::User, &message, Some(&hint)), failure)
}

/// The outcome with the place in the Dockerfile.
fn at(mut outcome: BuildOutcome, failure: &SolveFailure) -> BuildOutcome {
    if let BuildOutcome::Failed { excerpt, .. } = &mut outcome {
        excerpt.clone_from(&failure.excerpt);
    }
    outcome
}

/// The outcome of a step that failed because the volume was full, after the garbage was collected: the build needs more than
/// its owner has given the builder, and trying again is of no use.
pub(crate) fn disk_full(failure: &SolveFailure) -> BuildOutcome {
    let message =
        format!("the builder's disk is full, even after its garbage was collected: {failure}");
    at(failed(Fault::User, &message, Some(DISK_FULL_HINT)), failure)
}

/// The outcome of a step that runs a program of a processor which this builder does not emulate.
pub(crate) fn unemulated(failure: &SolveFailure, why: &str) -> BuildOutcome {
    let message = format!("{failure}: {why}");
    at(failed(Fault::User, &message, Some(EMULATION_HINT)), failure)
}

/// The outcome of a push that failed after the image was built.
pub(crate) fn of_push(error: &PushFailure) -> BuildOutcome {
    failed(error.fault(), &chain(error), error.hint())
}

/// A failure that is not the caller's.
pub(crate) fn of_system(message: &str) -> BuildOutcome {
    failed(Fault::System, message, None)
}

/// A failure in one line, with its bounds kept.
pub(crate) fn failed(fault: Fault, message: &str, hint: Option<&str>) -> BuildOutcome {
    BuildOutcome::Failed {
        fault,
        message: one_line(message),
        hint: hint.map(one_line),
        excerpt: None,
    }
}

/// An error with its causes, as `a: b: c`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The text without line breaks and final period; of a long one its end, where the cause is.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let line = lines.join(" ");
    let line = line.strip_suffix('.').unwrap_or(&line);
    let start = line.ceil_char_boundary(line.len().saturating_sub(limits::MESSAGE_BYTES_MAX));
    line[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(outcome: BuildOutcome) -> (Fault, String, Option<String>) {
        match outcome {
            BuildOutcome::Failed {
                fault,
                message,
                hint,
                excerpt: _,
            } => (fault, message, hint),
            other @ (BuildOutcome::Succeeded { .. } | BuildOutcome::Cancelled) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn the_users_faults_are_told_from_ours() {
        let message = || "m".to_owned();
        for (error, fault, hinted) in [
            (
                SolveError::StepFailed {
                    message: message(),
                    exit_code: 1,
                },
                Fault::User,
                false,
            ),
            (
                SolveError::MissingFile { message: message() },
                Fault::User,
                true,
            ),
            (
                SolveError::Dockerfile {
                    message: message(),
                    line: Some(1),
                },
                Fault::User,
                true,
            ),
            (
                SolveError::NoSpace { message: message() },
                Fault::System,
                true,
            ),
            (
                SolveError::SessionLost { message: message() },
                Fault::System,
                true,
            ),
            (SolveError::NoImage, Fault::System, true),
        ] {
            let failure = SolveFailure::from(error);
            let (got, _, hint) = parts(of_solve(&failure));
            assert_eq!((got, hint.is_some()), (fault, hinted), "{failure:?}");
        }
        assert_eq!(
            of_solve(&SolveError::Cancelled.into()),
            BuildOutcome::Cancelled
        );
    }

    #[test]
    fn memory_that_ran_out_is_told_with_how_much_there_is_and_how_to_have_more() {
        for exit_code in [1, 2, 137] {
            let error = SolveError::StepFailed {
                message: "m".to_owned(),
                exit_code,
            };
            let (fault, _, hint) = parts(out_of_memory(&error.into(), Some(4 << 30)));
            let hint = hint.expect("a hint");
            assert_eq!(fault, Fault::User);
            assert!(
                hint.contains("(4096 MiB)") && hint.contains("--memory"),
                "{hint}"
            );
        }
    }

    #[test]
    fn messages_are_one_line_within_a_bound() {
        let (_, message, _) = parts(of_system("  a\n\n b.\r\n"));
        assert_eq!(message, "a b");
        let (_, message, _) = parts(of_system(&format!(
            "{}end",
            "é".repeat(limits::MESSAGE_BYTES_MAX)
        )));
        assert!(message.len() <= limits::MESSAGE_BYTES_MAX && message.ends_with("éend"));
    }
}

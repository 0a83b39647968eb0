use super::*;

fn of(message: &str) -> SolveError {
    SolveError::of_status(Status::unknown(message))
}

#[test]
fn a_failed_command_gives_its_code() {
    let error = of(
        "failed to solve: process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3",
    );
    assert!(
        matches!(error, SolveError::StepFailed { exit_code: 3, .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().starts_with("process \"/bin/sh"),
        "{error}"
    );
    assert!(error.is_user_fault());
}

#[test]
fn a_missing_file_is_named_without_references() {
    let error = of(
        "failed to compute cache key: failed to calculate checksum of ref abc::def: \"/missing\": not found",
    );
    assert_eq!(
        error.to_string(),
        "\"/missing\": not found in the build context or stage"
    );
    assert!(error.hint().is_some());
}

#[test]
fn a_parse_error_gives_its_line() {
    let error = of("dockerfile parse error on line 12: unknown instruction: RUNN");
    assert!(
        matches!(error, SolveError::Dockerfile { line: Some(12), .. }),
        "{error:?}"
    );
}

#[test]
fn faults_are_told_apart() {
    let cases = [
        (
            "target stage \"x\" could not be found",
            "UnknownTarget",
            true,
        ),
        ("target stage x could not be found", "UnknownTarget", true),
        (
            "a:b: failed to resolve source metadata for docker.io/library/a:b: docker.io/library/a:b: not found",
            "ImageUnavailable",
            true,
        ),
        (
            "a: failed to do request: failed to resolve source metadata for r/a: dial tcp: lookup r: no such host",
            "RegistryUnreachable",
            false,
        ),
        (
            "failed to create device /var/lib/docker/overlay2/x/diff/sub/null: operation not permitted",
            "Device { message: \"sub/null is a device",
            true,
        ),
        (
            "pull access denied, repository does not exist or may require authorization",
            "ImageUnavailable",
            true,
        ),
        ("write /x: no space left on device", "NoSpace", false),
        (
            "failed to read dockerfile: open Dockerfile: no such file or directory",
            "Dockerfile",
            true,
        ),
        (
            "no active session for abc: context deadline exceeded",
            "SessionLost",
            false,
        ),
        ("context canceled", "Cancelled", false),
        ("secret token: not found", "MissingSecret", true),
        ("something new", "Other", false),
    ];
    for (message, variant, user) in cases {
        let error = of(message);
        assert!(
            format!("{error:?}").starts_with(variant),
            "{message}: {error:?}"
        );
        assert_eq!(error.is_user_fault(), user, "{message}");
    }
}

#[test]
fn a_long_message_keeps_its_end() {
    let error = of(&format!("{}the cause", "ä".repeat(10_000)));
    let text = error.to_string();
    assert!(text.len() <= limits::ERROR_MESSAGE_BYTES_MAX + 4 && text.ends_with("the cause"));
}

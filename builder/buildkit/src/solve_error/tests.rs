use super::*;
use crate::limits;

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
            "error from receiver: the computer that asked for the build cannot write the result: its disk is full",
            "Export { message: \"the computer that asked",
            true,
        ),
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
        (
            "process \"/bin/sh -c x\" did not complete successfully: mount x: no space left on device",
            "NoSpace",
            false,
        ),
        (
            "process \"/bin/sh -c x\" did not complete successfully: context canceled",
            "Cancelled",
            false,
        ),
        (
            "failed to load cache key: invalid response status 503",
            "SourceUnreachable",
            false,
        ),
        (
            "failed to load cache key: invalid response status 429",
            "SourceUnreachable",
            false,
        ),
        ("invalid user index: -1", "Instruction", true),
        ("unknown cache exporter: \"registry\"", "Instruction", true),
        (
            "lint violation found for rules: FromAsCasing",
            "Instruction",
            true,
        ),
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

#[test]
fn the_users_own_words_are_not_the_cause() {
    for words in [
        "no space left on device",
        "x: no space left on device",
        "transport is closing",
        ": context canceled",
        "no active session for",
        "dockerfile parse error",
        "cannot copy to non-directory",
        "did not complete successfully: context canceled",
        "\" did not complete successfully: no active session for",
    ] {
        let quoted = words.replace('"', "\\\"");
        let error = of(&format!(
            "process \"/bin/sh -c echo '{quoted}'; exit 4\" did not complete successfully: exit code: 4"
        ));
        assert!(
            matches!(error, SolveError::StepFailed { exit_code: 4, .. }),
            "{words}: {error:?}"
        );
        let error = of(&format!("failed to process \"{quoted}\": unexpected end"));
        assert!(
            matches!(error, SolveError::Dockerfile { .. }),
            "{words}: {error:?}"
        );
        let error = of(&format!("unsupported thing \"{quoted}\""));
        assert!(
            matches!(error, SolveError::Other { .. }),
            "{words}: {error:?}"
        );
    }
}

#[test]
fn a_command_of_any_length_is_known_as_one() {
    let error = of(&format!(
        "process \"/bin/sh -c {}\" did not complete successfully: exit code: 5",
        "y".repeat(100_000)
    ));
    assert!(
        matches!(error, SolveError::StepFailed { exit_code: 5, .. }),
        "{error:?}"
    );
    assert!(error.to_string().len() < 400, "{error}");
}

#[test]
fn no_path_of_the_builder_is_told() {
    for (told, shown) in [
        (
            "cannot copy to non-directory: /var/lib/docker/overlay2/abc1/merged/srv/d",
            "cannot copy to non-directory: /srv/d",
        ),
        (
            "mkdir /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/12/fs/d: not a directory",
            "mkdir /d: not a directory",
        ),
        (
            "open /tmp/buildkit-mount3456/a b: is a directory",
            "open /a b: is a directory",
        ),
        (
            "failed to prepare abc as def: max depth exceeded",
            "the image has too many layers",
        ),
    ] {
        let error = of(told);
        assert_eq!(error.to_string(), shown);
        assert!(error.is_user_fault() && error.hint().is_some(), "{error:?}");
    }
    assert_eq!(
        tidy("process \"x\": /var/lib/docker/overlay2/a-b/diff/y: bad"),
        "process \"x\": /y: bad"
    );
}

#[test]
fn typed_details_go_before_words() {
    use super::details::tests::{encoded, source};
    let failed = |message: &str, details: &[(&str, String)]| {
        let details = encoded(details).into();
        let status = Status::with_details(Code::Unknown, message, details);
        SolveFailure::of_status(status, |digest| Some(format!("[2/3] ADD {digest}")))
    };
    let step = ("errdefs.Vertex+json", r#"{"digest":"d"}"#.to_owned());
    let place = || source("FROM a\nADD x /\n", r#"[{"start":{"line":2}}]"#);

    let exit = ("gatewayapi.ExitMessage+json", r#"{"Code":9}"#.to_owned());
    let failure = failed("words that nobody knows", &[place(), step.clone(), exit]);
    assert!(
        matches!(failure.error, SolveError::StepFailed { exit_code: 9, .. }),
        "{failure:?}"
    );
    let shown = "Dockerfile:2\n   1 |     FROM a\n   2 | >>> ADD x /";
    assert_eq!(failure.excerpt.as_deref(), Some(shown));

    // Read, not carried out: what is wrong is what stands there.
    let failure = failed("new words", &[place()]);
    assert!(
        matches!(failure.error, SolveError::Dockerfile { line: Some(2), .. }),
        "{failure:?}"
    );
    let failure = failed("new words", &[place(), step.clone()]);
    assert!(
        matches!(failure.error, SolveError::Other { .. }) && failure.excerpt.is_some(),
        "{failure:?}"
    );
    let failure = failed(
        "failed to load cache key: invalid response status 404",
        &[step],
    );
    assert_eq!(
        failure.to_string(),
        "ADD d: the server answered with status 404"
    );
}

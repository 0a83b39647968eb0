//! Whose fault a failed build is, and where it happened: every way in which people's Dockerfiles fail.

use crate::common::{BASE, Build, Built, Dockerd, dockerd, write_files};
use slipway_buildkit::{SolveError, SolveEvent};
use std::path::Path;

/// Builds this Dockerfile in a directory that has `a` and `dir/x`.
async fn failed(dockerd: &Dockerd, context: &Path, dockerfile: &str) -> Built {
    write_files(context, &[("Dockerfile", dockerfile)]);
    Build::new(dockerd, context).run(dockerd).await
}

fn context(dockerd: &Dockerd) -> std::path::PathBuf {
    let context = dockerd.work_dir("blame");
    write_files(&context, &[("a", "a"), ("dir/x", "x")]);
    context
}

/// What stands behind FROM, the kind of error, words of its message, and the line that is marked; BuildKit does not tell the place
/// of some.
const MISTAKES: [(&str, &str, &str, &str); 16] = [
    (
        "RUN touch /d\nCOPY dir /d",
        "Instruction",
        "cannot copy to non-directory: /d",
        "3 | >>> COPY dir /d",
    ),
    (
        "RUN touch /d\nCOPY a /d/",
        "Instruction",
        "/d: not a directory",
        "3 | >>> COPY a /d/",
    ),
    (
        "USER nosuch\nRUN true",
        "Instruction",
        "unable to find user nosuch",
        "3 | >>> RUN true",
    ),
    (
        "RUN --mount=type=ssh,required=true true",
        "Instruction",
        "no SSH key",
        "2 | >>> RUN --mount=type=ssh",
    ),
    (
        "RUN --mount=type=nosuch true",
        "Dockerfile",
        "unsupported mount type",
        "2 | >>> RUN --mount",
    ),
    (
        "RUN --mount=type=cache true",
        "Dockerfile",
        "invalid mount target",
        "2 | >>> RUN --mount",
    ),
    ("ENV X", "Dockerfile", "ENV", "2 | >>> ENV X"),
    ("EXPOSE abc", "Dockerfile", "abc", "2 | >>> EXPOSE abc"),
    ("STOPSIGNAL NO", "Dockerfile", "NO", "2 | >>> STOPSIGNAL NO"),
    (
        "RUN <<EOF\ntrue",
        "Dockerfile",
        "unterminated heredoc",
        "2 | >>> RUN <<EOF",
    ),
    (
        "RUNN x",
        "Dockerfile",
        "unknown instruction: RUNN",
        "2 | >>> RUNN x",
    ),
    (
        "COPY nosuch /x",
        "MissingFile",
        "/nosuch",
        "2 | >>> COPY nosuch /x",
    ),
    (
        "ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 http://127.0.0.1:5000/ /x",
        "Instruction",
        "http://127.0.0.1:5000/ /x: digest mismatch",
        "",
    ),
    (
        "ADD http://127.0.0.1:5000/nothing /x",
        "Instruction",
        "http://127.0.0.1:5000/nothing /x: the server answered with status 404",
        "",
    ),
    (
        "RUN --network=host true",
        "Instruction",
        "network.host is not allowed",
        "",
    ),
    (
        "COPY --from=5 /x /x",
        "Dockerfile",
        "invalid stage index 5",
        "",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_a_dockerfile_are_the_users_with_a_hint_and_the_place() {
    let Some(dockerd) = dockerd() else { return };
    let context = context(&dockerd);
    let many = "COPY --link a /a\n".repeat(130);
    let long = format!("RUN echo {}", "x".repeat(200_000));
    let large = [
        (
            many.as_str(),
            "Instruction",
            "too many layers",
            "| >>> COPY --link a /a",
        ),
        (
            long.as_str(),
            "Instruction",
            "line greater than max",
            "RUN echo xxx",
        ),
    ];
    for (rest, variant, words, place) in MISTAKES.into_iter().chain(large) {
        let built = failed(&dockerd, &context, &format!("FROM {BASE}\n{rest}\n")).await;
        let (error, shown) = (built.error(), &rest[..rest.len().min(60)]);
        assert!(
            format!("{error:?}").starts_with(variant),
            "{shown}: {error:?}"
        );
        let told = error.to_string();
        assert!(told.contains(words), "{shown}: {told}");
        assert!(!told.contains("overlay2"), "{shown}: {told}");
        assert!(
            error.is_user_fault() && error.hint().is_some(),
            "{shown}: {error:?}"
        );
        assert!(
            built.excerpt().contains(place),
            "{shown}: {}",
            built.excerpt()
        );
        for event in &built.events {
            if let SolveEvent::Step {
                error: Some(error), ..
            } = event
            {
                assert!(!error.contains("overlay2"), "{shown}: {error}");
            }
        }
    }
    let built = failed(&dockerd, &context, &format!("# escape=x\nFROM {BASE}\n")).await;
    assert!(built.error().is_user_fault(), "{:?}", built.error());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_failed_step_are_shown() {
    let Some(dockerd) = dockerd() else { return };
    let context = context(&dockerd);
    let alike = "RUN true\n".repeat(20);
    let dockerfile = format!("FROM {BASE}\n{alike}RUN true; \\\n    exit 3\n{alike}");
    let built = failed(&dockerd, &context, &dockerfile).await;
    assert_eq!(
        built.excerpt(),
        "Dockerfile:22\n  20 |     RUN true\n  21 |     RUN true\n  22 | >>> RUN true; \\\n  23 | >>>     exit 3\n  24 |     RUN true\n  25 |     RUN true"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_of_two_megabytes_has_its_own_errors() {
    let Some(dockerd) = dockerd() else { return };
    let context = context(&dockerd);
    let comments = format!("# {}\n", "x".repeat(100)).repeat(19_000);
    for (last, variant) in [("RUN exit 3", "StepFailed"), ("RUNN x", "Dockerfile")] {
        let dockerfile = format!("FROM {BASE}\n{comments}{last}\n");
        assert!(dockerfile.len() > 1_900_000);
        let built = failed(&dockerd, &context, &dockerfile).await;
        assert!(
            format!("{:?}", built.error()).starts_with(variant),
            "{:?}",
            built.error()
        );
        let place = format!("19002 | >>> {last}");
        assert!(built.excerpt().contains(&place), "{}", built.excerpt());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_in_a_command_are_not_taken_for_the_cause() {
    let Some(dockerd) = dockerd() else { return };
    let context = context(&dockerd);
    for words in [
        "x: no space left on device",
        "transport is closing",
        "x: context canceled",
    ] {
        let dockerfile = format!("FROM {BASE}\nRUN echo \"{words}\"; exit 7\n");
        let built = failed(&dockerd, &context, &dockerfile).await;
        assert!(
            matches!(built.error(), SolveError::StepFailed { exit_code: 7, .. }),
            "{words}: {:?}",
            built.error()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_that_cannot_be_fetched_is_no_base_image() {
    let Some(dockerd) = dockerd() else { return };
    let context = context(&dockerd);
    let dockerfile = format!("# syntax=no.such.host.invalid/df:1\nFROM {BASE}\n");
    let built = failed(&dockerd, &context, &dockerfile).await;
    let error = built.error();
    assert!(
        matches!(
            error,
            SolveError::FrontendUnavailable {
                is_unreachable: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error.hint().is_some_and(|hint| hint.contains("# syntax=")),
        "{error:?}"
    );
    assert!(
        built.excerpt().contains("1 | >>> # syntax="),
        "{}",
        built.excerpt()
    );

    let built = failed(
        &dockerd,
        &context,
        &format!("FROM {BASE}\nADD http://127.0.0.1:1/x /x\n"),
    )
    .await;
    assert!(
        matches!(built.error(), SolveError::SourceUnreachable { .. }),
        "{:?}",
        built.error()
    );
}

//! Whole builds: what succeeds, and how what fails is told.

use crate::common::{BASE, Build, dockerd, write_files};
use slipway_buildkit::{SecretSource, SolveEvent};

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_becomes_an_image() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("plain");
    let dockerfile = format!("FROM {BASE}\nCOPY --link a b/ /x/\nRUN cat /x/a >&2; echo out\n");
    write_files(
        &context,
        &[("Dockerfile", &dockerfile), ("a", "from a\n"), ("b/c", "c")],
    );

    let build = Build::new(&dockerd, &context);
    let name = build.image.clone();
    let built = build.run(&dockerd).await;
    let image_id = &built.image().image_id;
    assert!(image_id.starts_with("sha256:"), "{image_id}");
    let inspected = dockerd.docker(&["image", "inspect", "--format", "{{.Id}}", &name]);
    assert_eq!(inspected.trim(), image_id);

    assert!(
        built.log().contains("from a") && built.log().contains("out"),
        "{}",
        built.log()
    );
    let completed = built.events.iter().any(|event| {
        matches!(event, SolveEvent::Step { name, completed_at: Some(_), started_at: Some(_), .. } if name.contains("RUN cat"))
    });
    assert!(completed, "{:#?}", built.events);
    assert_eq!(
        (built.stats.files, built.stats.changed),
        (3, 0),
        "{:?}",
        built.stats
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_apart() {
    let Some(dockerd) = dockerd() else { return };
    let from = format!("FROM {BASE}\n");
    let context = dockerd.work_dir("failures");
    write_files(
        &context,
        &[("a", "a"), (".dockerignore", "ignored\n"), ("ignored", "x")],
    );
    let long = "x".repeat(5000);
    let cases = [
        ("RUN exit 3", "StepFailed", "exit code: 3"),
        ("RUN echo told >&2 && false", "StepFailed", "exit code: 1"),
        ("COPY missing /", "MissingFile", "\"/missing\": not found"),
        ("COPY ignored /", "MissingFile", "\"/ignored\": not found"),
        ("RUNN x", "Dockerfile", "unknown instruction: RUNN"),
        (
            "RUN --mount=type=secret,id=absent,required cat /run/secrets/absent",
            "MissingSecret",
            "absent",
        ),
        (
            "RUN test -z \"$(cat /none)\" && exit 127",
            "StepFailed",
            "exit code: 127",
        ),
        (
            &format!("RUN echo {long} && false"),
            "StepFailed",
            "exit code: 1",
        ),
    ];
    for (instruction, variant, part) in cases {
        write_files(
            &context,
            &[("Dockerfile", &format!("{from}{instruction}\n"))],
        );
        let built = Build::new(&dockerd, &context).run(&dockerd).await;
        let error = built.error();
        assert!(
            format!("{error:?}").starts_with(variant),
            "{instruction}: {error:?}"
        );
        assert!(
            error.is_user_fault() && error.to_string().len() < 500,
            "{instruction}: {error}"
        );
        assert!(error.to_string().contains(part), "{instruction}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_met_are_the_users_fault() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("requests");
    write_files(
        &context,
        &[
            ("Dockerfile", &format!("FROM {BASE} AS one\n")),
            ("Empty", ""),
        ],
    );
    let cases = [
        ("target", "two", "UnknownTarget", "two"),
        ("filename", "Absent", "Dockerfile", "Absent"),
        ("filename", "Empty", "Dockerfile", "empty"),
        (
            "platform",
            "no/such/thing/at/all",
            "InvalidRequest",
            "no/such",
        ),
    ];
    for (key, value, variant, part) in cases {
        let built = Build::new(&dockerd, &context)
            .attr(key, value)
            .run(&dockerd)
            .await;
        let error = built.error();
        assert!(
            format!("{error:?}").starts_with(variant),
            "{key}={value}: {error:?}"
        );
        assert!(
            error.to_string().contains(part) && error.is_user_fault(),
            "{key}={value}: {error}"
        );
    }
    let mut build = Build::new(&dockerd, &context);
    build.image = "Not A Name".to_owned();
    let error = build.run(&dockerd).await;
    assert!(error.error().is_user_fault(), "{:?}", error.error());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_a_step_and_nothing_else() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("secrets");
    let mount = |id: &str| format!("--mount=type=secret,id={id}");
    let dockerfile = format!(
        "FROM {BASE}\nRUN {} {} {} {} test \"$(cat /run/secrets/file)\" = from-file \
         && test \"$(cat /run/secrets/bytes)\" = from-bytes && test \"$(cat /run/secrets/env)\" = \"$WANTED\" \
         && test ! -e /run/secrets/absent\n",
        mount("file"),
        mount("bytes"),
        mount("env"),
        mount("absent")
    );
    let dockerfile = dockerfile.replace("RUN", "ARG WANTED\nRUN");
    write_files(&context, &[("Dockerfile", &dockerfile)]);
    let elsewhere = dockerd.work_dir("secret-files");
    write_files(&elsewhere, &[("file", "from-file")]);
    let wanted = std::env::var("CARGO_PKG_NAME").unwrap();
    let mut build = Build::new(&dockerd, &context).attr("build-arg:WANTED", &wanted);
    build.secrets.insert(
        "file".to_owned(),
        SecretSource::File(elsewhere.join("file")),
    );
    build.secrets.insert(
        "bytes".to_owned(),
        SecretSource::Bytes(b"from-bytes".to_vec()),
    );
    build.secrets.insert(
        "env".to_owned(),
        SecretSource::Env("CARGO_PKG_NAME".to_owned()),
    );
    build.run(&dockerd).await.image();

    let mut build = Build::new(&dockerd, &context).attr("no-cache", "");
    build.secrets.insert(
        "file".to_owned(),
        SecretSource::Bytes(vec![0; (500 << 10) + 1]),
    );
    let built = build.run(&dockerd).await;
    assert!(
        built.error().to_string().contains("larger than 500 KiB"),
        "{}",
        built.error()
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("unreadable");
    write_files(
        &context,
        &[
            ("Dockerfile", "FROM scratch\nCOPY . /\n"),
            ("dir/private", "x"),
        ],
    );
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(context.join("dir/private"), mode(0o600)).unwrap();
    // The threads that read files do so as nobody; the test itself stays root.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(|| {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        })
        .build()
        .unwrap();
    let built = runtime.block_on(Build::new(&dockerd, &context).run(&dockerd));
    let error = built.error();
    assert_eq!(
        error.to_string(),
        "read build context: open dir/private: permission denied"
    );
    assert!(error.is_user_fault(), "{error:?}");

    // Left out, it need not be readable; nor a directory.
    std::fs::set_permissions(context.join("dir"), mode(0o700)).unwrap();
    write_files(&context, &[(".dockerignore", "dir\n!other\n")]);
    runtime
        .block_on(Build::new(&dockerd, &context).run(&dockerd))
        .image();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_context_is_the_users_fault() {
    let Some(dockerd) = dockerd() else { return };
    let absent = dockerd.work_dir("gone").join("absent");
    let built = Build::new(&dockerd, &absent).run(&dockerd).await;
    assert!(
        built.error().to_string().contains("absent"),
        "{}",
        built.error()
    );
    assert!(built.error().is_user_fault(), "{:?}", built.error());
}

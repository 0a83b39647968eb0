//! Base images behind a login, from a real registry next to the dockerd.

use crate::common::{BASE, Build, dockerd, program, write_files};
use slipway_buildkit::{RegistryLogin, SolveError};

const REGISTRY: &str = "localhost:5000";

#[tokio::test(flavor = "multi_thread")]
async fn the_sessions_login_opens_a_private_image() {
    let Some(dockerd) = dockerd() else { return };
    if program("docker-registry").is_none() {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "needs docker-registry"
        );
        eprintln!("skipped: needs docker-registry");
        return;
    }
    let private = format!("{REGISTRY}/private/base:1");
    dockerd.docker(&["login", "-u", "test", "-p", "test-password", REGISTRY]);
    dockerd.docker(&["tag", BASE, &private]);
    dockerd.docker(&["push", "-q", &private]);
    dockerd.docker(&["logout", REGISTRY]);
    dockerd.docker(&["rmi", &private]);

    let context = dockerd.work_dir("private");
    let from = |image: &str| {
        write_files(
            &context,
            &[("Dockerfile", &format!("FROM {image}\nRUN true\n"))],
        )
    };
    let login = |secret: &str| RegistryLogin {
        registry: REGISTRY.to_owned(),
        username: "test".to_owned(),
        secret: secret.to_owned(),
    };

    from(&private);
    for credentials in [vec![], vec![login("wrong")]] {
        let mut build = Build::new(&dockerd, &context);
        build.credentials = credentials;
        let built = build.run(&dockerd).await;
        assert!(
            matches!(built.error(), SolveError::ImageUnavailable { .. }),
            "{:?}",
            built.error()
        );
    }
    let mut build = Build::new(&dockerd, &context);
    build.credentials = vec![login("test-password")];
    build.run(&dockerd).await.image();

    // The builder has that name now; another image was pushed under it. It is asked for again by wish.
    let other = dockerd.work_dir("other");
    write_files(
        &other,
        &[("Dockerfile", &format!("FROM {BASE}\nENV NEWER=yes\n"))],
    );
    let mut build = Build::new(&dockerd, &other);
    build.image = format!("{REGISTRY}/private/newer:1");
    build.run(&dockerd).await.image();
    let newer = format!("{REGISTRY}/private/newer:1");
    dockerd.docker(&["login", "-u", "test", "-p", "test-password", REGISTRY]);
    dockerd.docker(&["push", "-q", &newer]);
    dockerd.docker(&["logout", REGISTRY]);
    dockerd.docker(&["rmi", &newer]);
    dockerd.docker(&["tag", BASE, &newer]);
    write_files(
        &context,
        &[(
            "Dockerfile",
            &format!("FROM {newer}\nRUN echo newer=$NEWER\n"),
        )],
    );
    for (mode, expected) in [("default", "newer=\n"), ("pull", "newer=yes\n")] {
        let mut build = Build::new(&dockerd, &context).attr("image-resolve-mode", mode);
        build.credentials = vec![login("test-password")];
        let built = build.attr("no-cache", "").run(&dockerd).await;
        built.image();
        assert!(built.log().contains(expected), "{mode}: {}", built.log());
    }

    from(&format!("{REGISTRY}/private/base:none"));
    let mut build = Build::new(&dockerd, &context);
    build.credentials = vec![login("test-password")];
    let built = build.run(&dockerd).await;
    assert!(
        matches!(built.error(), SolveError::ImageUnavailable { .. }),
        "{:?}",
        built.error()
    );
    assert!(
        built.error().to_string().contains("base:none: not found"),
        "{}",
        built.error()
    );

    from("localhost:5999/nothing/here:1");
    let built = Build::new(&dockerd, &context).run(&dockerd).await;
    assert!(!built.error().is_user_fault(), "{:?}", built.error());
}

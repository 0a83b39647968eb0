//! Whole builds against a real dockerd: both halves of the crate at once.

mod common;

use common::{BASE, Build, dockerd, write_files};
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

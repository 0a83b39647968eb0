//! Out of a real dockerd's store: layers with everything in them that a tar can hold, pulled back by clients that no one here wrote.

use crate::dockerd::{Dockerd, Store, tar};
use crate::image::assert_complete;
use crate::registry::{Access, Registry};
use crate::{program, run, skip};
use slipway_registry_push::{
    DockerStore, ImageSource, Layout, Platform, PushError, PushOptions, PushState, SourceError,
    Target, push,
};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

/// A busybox root with every kind of entry.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(
        program("busybox").expect("busybox-static must be installed"),
        root.join("bin/busybox"),
    )
    .unwrap();
    for applet in [
        "sh",
        "cat",
        "ls",
        "rm",
        "mkdir",
        "echo",
        "stat",
        "test",
        "sha256sum",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("plain"), "plain").unwrap();
    fs::hard_link(root.join("plain"), root.join("hard")).unwrap();
    symlink("/etc/hostname", root.join("absolute-link")).unwrap();
    fs::create_dir_all(root.join("to-hide/below")).unwrap();
    fs::write(root.join("to-hide/below/file"), "hidden later").unwrap();
    fs::write(root.join("to-delete"), "deleted later").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"latin-caf\xe9")), "not utf-8").unwrap();
    fs::write(root.join("new\nline \"quote\" \\"), "odd").unwrap();
    let long = root.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f".repeat(250)), "long name").unwrap();
    // Larger than a member, not a multiple of anything.
    let large: Vec<u8> = (0..3_333_333_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    fs::write(root.join("large"), large).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    fs::set_permissions(root.join("plain"), fs::Permissions::from_mode(0o4751)).unwrap();
    let file = fs::File::open(root.join("large")).unwrap();
    rustix::fs::fsetxattr(
        &file,
        "security.capability",
        CAP_NET_RAW,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("device"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RWXU,
        null,
    )
    .unwrap();
}

/// `cap_net_raw+ep` as the kernel stores it.
const CAP_NET_RAW: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

const DOCKERFILE: &str = r#"FROM push-tests/base:1
RUN rm /to-delete && rm -r /to-hide && mkdir /to-hide && echo again > /to-hide/new
RUN echo changed >> /large
COPY added /added/file
LABEL empty=layer
WORKDIR /made/by/workdir
CMD ["cat", "/added/file"]
"#;

fn build(dockerd: &Dockerd) {
    let root = dockerd.exchange().join("root");
    fs::create_dir(&root).unwrap();
    fill(&root);
    tar(&root, &dockerd.exchange().join("base.tar"));
    dockerd.docker(&["import", "/exchange/base.tar", "push-tests/base:1"]);
    let context = dockerd.exchange().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
    fs::write(context.join("added"), "from the context").unwrap();
    dockerd.docker(&[
        "build",
        "--network=none",
        "-t",
        "push-tests/app:1",
        "/exchange/context",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_real_dockerd_arrive_and_run() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let Some(dockerd) = Dockerd::start(Store::Classic) else {
        return;
    };
    build(&dockerd);
    let store = DockerStore::open(&dockerd.data_root()).unwrap();
    let base = tempfile::tempdir().unwrap();
    let options = PushOptions {
        index: Some(base.path().join("index")),
        ..PushOptions::default()
    };
    for (name, repository) in [("push-tests/base:1", "base"), ("push-tests/app:1", "app")] {
        let image = store.image(name).unwrap();
        let diff_ids: Vec<String> = image.diff_ids().map(ToString::to_string).collect();
        assert_eq!(diff_ids, dockerd.diff_ids(name));
        let target = Target::parse(&registry.target(&format!("{repository}:1"))).unwrap();
        let pushed = push(image.clone(), &target, None, &options, |_| ())
            .await
            .unwrap();
        // Down to the diffID of every layer, from the registry's own files.
        assert_complete(&registry, repository, "1", &image, &pushed);
        if repository == "app" {
            assert_eq!(
                pushed.layers[0].state,
                PushState::Mounted,
                "the base was pushed before"
            );
            assert!(pushed.layers.len() >= 5, "{}", pushed.layers.len());
        }
    }

    let reference = registry.target("app:1");
    let id = dockerd.docker(&[
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        "push-tests/app:1",
    ]);
    dockerd.docker(&["rmi", "-f", "push-tests/app:1", "push-tests/base:1"]);
    assert!(store.image("push-tests/app:1").is_err());
    dockerd.docker(&["pull", "-q", &reference]);
    assert_eq!(
        dockerd.docker(&["image", "inspect", "--format", "{{.Id}}", &reference]),
        id
    );
    let said = dockerd.docker(&["run", "--rm", "--network=none", &reference]);
    assert_eq!(said, "from the context");
    let check = "test ! -e /to-delete && test ! -e /to-hide/below && cat /to-hide/new && stat -c '%h %a' /hard";
    let said = dockerd.docker(&[
        "run",
        "--rm",
        "--network=none",
        &reference,
        "sh",
        "-c",
        check,
    ]);
    assert_eq!(said, "again\n2 4751\n");

    // What dockerd unpacked from our blobs is pushed again: its tar-split is now that of a pulled layer.
    let image = store.image(&reference).unwrap();
    let target = Target::parse(&registry.target("again:1")).unwrap();
    let pushed = push(
        image.clone(),
        &target,
        None,
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(&registry, "again", "1", &image, &pushed);

    skopeo(&registry, "app:1", "docker-archive");
    Box::pin(zstd(&dockerd, &image, &registry)).await;
    Box::pin(containerd(&dockerd, &registry)).await;
    Box::pin(saved(&dockerd, &registry)).await;
    damage(&dockerd, &store, &registry).await;
}

/// skopeo reads every blob, checks its digest, and unpacks it when it writes Docker's archive of uncompressed layers, which it does not
/// do for zstd.
fn skopeo(registry: &Registry, name: &str, kind: &str) {
    let Some(skopeo) = program("skopeo") else {
        return skip("needs skopeo");
    };
    let out = tempfile::tempdir().unwrap();
    let source = format!("docker://{}", registry.target(name));
    let archive = format!("{kind}:{}:app:1", out.path().join("app.tar").display());
    run(Command::new(skopeo).args(["copy", "-q", "--src-tls-verify=false", &source, &archive]));
}

/// The same image as zstd: an OCI image that every client reads.
async fn zstd(dockerd: &Dockerd, image: &ImageSource, registry: &Registry) {
    let target = Target::parse(&registry.target("zstd:1")).unwrap();
    let options = PushOptions {
        codec: "zstd".parse().unwrap(),
        ..PushOptions::default()
    };
    let pushed = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    assert_complete(registry, "zstd", "1", image, &pushed);
    let reference = registry.target("zstd:1");
    dockerd.docker(&["pull", "-q", &reference]);
    let diff_ids: Vec<String> = image.diff_ids().map(ToString::to_string).collect();
    assert_eq!(dockerd.diff_ids(&reference), diff_ids);
    let said = dockerd.docker(&["run", "--rm", "--network=none", &reference]);
    assert_eq!(said, "from the context");
    dockerd.docker(&["rmi", "-f", &reference]);
    skopeo(registry, "zstd:1", "oci-archive");
}

/// containerd pulls both images, unpacks them, which checks the diffIDs, and what lies in its content store is pushed again as it is.
async fn containerd(dockerd: &Dockerd, registry: &Registry) {
    let store = Layout::containerd(&dockerd.containerd_root()).unwrap();
    for name in ["app", "zstd"] {
        let reference = registry.target(&format!("{name}:1"));
        dockerd.ctr(&["images", "pull", "--plain-http", &reference]);
        assert!(dockerd.ctr(&["images", "check"]).contains("complete"));
        let digest = registry.tag(name, "1").unwrap();
        let image = store.by_digest(&digest, &Platform::default()).unwrap();
        let repository = format!("{name}-again");
        let target = Target::parse(&registry.target(&format!("{repository}:1"))).unwrap();
        let pushed = push(
            image.clone(),
            &target,
            None,
            &PushOptions::default(),
            |_| (),
        )
        .await
        .unwrap();
        assert_complete(registry, &repository, "1", &image, &pushed);
        assert_eq!(pushed.digest, digest, "byte for byte");
    }
}

/// `docker save`, whose layers are plain tars.
async fn saved(dockerd: &Dockerd, registry: &Registry) {
    let reference = registry.target("app:1");
    dockerd.docker(&["save", "-o", "/exchange/saved.tar", &reference]);
    let layout = Layout::open(&dockerd.exchange().join("saved.tar")).unwrap();
    let image = layout
        .image(Some(&reference), &Platform::default())
        .unwrap();
    let target = Target::parse(&registry.target("saved:1")).unwrap();
    let pushed = push(
        image.clone(),
        &target,
        None,
        &PushOptions::default(),
        |_| (),
    )
    .await
    .unwrap();
    assert_complete(registry, "saved", "1", &image, &pushed);
    assert_eq!(registry.tag("app", "1").as_ref(), Some(&pushed.digest));
}

/// A file changed behind dockerd's back: the push fails before the manifest.
async fn damage(dockerd: &Dockerd, store: &DockerStore, registry: &Registry) {
    let reference = registry.target("app:1");
    let image = store.image(&reference).unwrap();
    let overlays = dockerd.data_root().join("overlay2");
    let file = fs::read_dir(&overlays)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("diff/plain"))
        .find(|path| path.exists())
        .unwrap();
    let target = Target::parse(&registry.target("damaged:1")).unwrap();
    for (content, expected) in [
        ("PLAIN", "checksum"),
        ("plain and more", "instead of"),
        ("", "instead of"),
    ] {
        fs::write(&file, content).unwrap();
        let error = push(
            image.clone(),
            &target,
            None,
            &PushOptions::default(),
            |_| (),
        )
        .await
        .unwrap_err();
        let is_right = matches!(&error, PushError::Source(SourceError::FileChanged { reason, .. }) if reason.contains(expected));
        assert!(is_right, "{error:?}");
    }
    fs::remove_file(&file).unwrap();
    symlink("/etc/hostname", &file).unwrap();
    let error = push(image, &target, None, &PushOptions::default(), |_| ())
        .await
        .unwrap_err();
    assert!(
        matches!(error, PushError::Source(SourceError::FileChanged { .. })),
        "{error:?}"
    );
    assert_eq!(registry.tag("damaged", "1"), None);
}

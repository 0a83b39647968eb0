//! Images out of OCI layouts and archives, as made here and by skopeo, and the binary in front of them.

use crate::image::{Made, assert_complete, image};
use crate::proxy::{Act, Proxy};
use crate::registry::{Access, Registry};
use crate::{program, run, skip};
use http::Method;
use serde_json::{Value, json};
use slipway_registry_push::{
    Codec, Digest, Layout, Platform, PushError, PushOptions, PushState, SourceError, Target, push,
};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Writes a blob into a layout; gives its descriptor.
pub(crate) fn blob(layout: &Path, media_type: &str, content: &[u8]) -> Value {
    let digest = Digest::of(content);
    let folder = layout.join("blobs/sha256");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(digest.hex()), content).unwrap();
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": content.len() })
}

pub(crate) fn content(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|n| seed.wrapping_add((n / 13 % 7).to_le_bytes()[0]))
        .collect()
}

fn zstd_of(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).unwrap()
}

/// A layout of one image for each architecture: a plain tar and a zstd layer in each.
fn layout(path: &Path, architectures: &[&str]) {
    let manifests: Vec<Value> = architectures
        .iter()
        .enumerate()
        .map(|(number, architecture)| {
            let tars = [
                content(2_000_000, u8::try_from(number).unwrap()),
                content(700_000, 100 + u8::try_from(number).unwrap()),
            ];
            let layers = [
                blob(path, "application/vnd.oci.image.layer.v1.tar", &tars[0]),
                blob(
                    path,
                    "application/vnd.oci.image.layer.v1.tar+zstd",
                    &zstd_of(&tars[1]),
                ),
            ];
            manifest(path, architecture, &tars, &layers)
        })
        .collect();
    index(path, &manifests);
}

/// Writes the manifest of one image of these layers, and its config; gives its entry in the index.
pub(crate) fn manifest(
    path: &Path,
    architecture: &str,
    tars: &[Vec<u8>],
    layers: &[Value],
) -> Value {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config_type = "application/vnd.oci.image.config.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(path, config_type, config.to_string().as_bytes()), "layers": layers,
    });
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut entry = blob(path, manifest_type, manifest.to_string().as_bytes());
    entry["platform"] = json!({ "os": "linux", "architecture": architecture });
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "app:1" });
    entry
}

fn index(path: &Path, manifests: &[Value]) {
    let document = json!({ "schemaVersion": 2, "manifests": manifests });
    fs::write(path.join("index.json"), document.to_string()).unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn tar_of(directory: &Path, archive: &Path) {
    run(Command::new("tar")
        .arg("-C")
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .arg("."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_pushed_from_its_directory_and_from_a_tar_alike() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("layout");
    layout(&directory, &["amd64", "arm64"]);
    let archive = base.path().join("layout.tar");
    tar_of(&directory, &archive);
    let mut digests = Vec::new();
    for (number, path) in [&directory, &archive].into_iter().enumerate() {
        let layout = Layout::open(path).unwrap();
        for (architecture, codec) in [("amd64", "gzip"), ("arm64", "zstd:3")] {
            let platform: Platform = format!("linux/{architecture}").parse().unwrap();
            let image = layout.image(Some("app:1"), &platform).unwrap();
            let repository = format!("{architecture}{number}");
            let target = Target::parse(&registry.target(&format!("{repository}:1"))).unwrap();
            let options = PushOptions {
                codec: codec.parse().unwrap(),
                ..PushOptions::default()
            };
            let pushed = push(image.clone(), &target, None, &options, |_| ())
                .await
                .unwrap();
            assert_complete(&registry, &repository, "1", &image, &pushed);
            let manifest: Value = serde_json::from_slice(&pushed.manifest_bytes).unwrap();
            let kind = |layer: usize| manifest["layers"][layer]["mediaType"].as_str().unwrap();
            let packed = &codec[..4];
            assert_eq!(
                kind(0),
                format!("application/vnd.oci.image.layer.v1.tar+{packed}")
            );
            assert_eq!(
                kind(1),
                "application/vnd.oci.image.layer.v1.tar+zstd",
                "sent as it was"
            );
            digests.push((architecture, pushed.digest));
        }
    }
    assert_eq!(digests[..2], digests[2..]);

    let layout = Layout::open(&directory).unwrap();
    let riscv = "linux/riscv64".parse().unwrap();
    let error = layout.image(None, &riscv).unwrap_err();
    assert!(
        matches!(&error, SourceError::NoPlatform { found, .. } if found.len() == 2),
        "{error:?}"
    );
    let error = layout.image(Some("other:1"), &riscv).unwrap_err();
    assert!(matches!(error, SourceError::NoImage { .. }), "{error:?}");
}

/// `FROM scratch` with nothing but settings. BuildKit writes `null` where the specification wants a list.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_is_pushed_as_a_list_of_none() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let path = base.path();
    for (tag, layers) in [("null", Value::Null), ("list", json!([]))] {
        let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": { "a": tag } },
            "rootfs": { "type": "layers", "diff_ids": layers } });
        let config_type = "application/vnd.oci.image.config.v1+json";
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let document = json!({ "schemaVersion": 2, "mediaType": kind, "layers": layers,
            "config": blob(path, config_type, config.to_string().as_bytes()) });
        let entry = blob(path, kind, document.to_string().as_bytes());
        index(path, std::slice::from_ref(&entry));
        let image = Layout::open(path)
            .unwrap()
            .image(None, &"linux/amd64".parse().unwrap())
            .unwrap();
        let target = Target::parse(&registry.target(&format!("empty:{tag}"))).unwrap();
        let pushed = push(
            image.clone(),
            &target,
            None,
            &PushOptions::default(),
            |_| (),
        )
        .await
        .unwrap();
        assert_complete(&registry, "empty", tag, &image, &pushed);
        let manifest: Value = serde_json::from_slice(&pushed.manifest_bytes).unwrap();
        assert_eq!(manifest["layers"], json!([]), "{tag}");
        let is_kept = entry["digest"] == pushed.digest.to_string();
        assert_eq!(is_kept, tag == "list", "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_blobs_of_one_content_are_both_sent() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let tar = content(300_000, 1);
    let packed = [1, 19].map(|level| zstd::encode_all(&tar[..], level).unwrap());
    assert_ne!(packed[0], packed[1]);
    let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
    let layers = packed.map(|packed| blob(base.path(), kind, &packed));
    let tars = [tar.clone(), tar];
    index(
        base.path(),
        &[manifest(base.path(), "amd64", &tars, &layers)],
    );
    let image = Layout::open(base.path())
        .unwrap()
        .image(None, &"linux/amd64".parse().unwrap())
        .unwrap();
    let target = Target::parse(&registry.target("twice:1")).unwrap();
    let options = PushOptions::default();
    let pushed = push(image.clone(), &target, None, &options, |_| ())
        .await
        .unwrap();
    assert_complete(&registry, "twice", "1", &image, &pushed);
    assert_ne!(pushed.layers[0].digest, pushed.layers[1].digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_in_a_layout_leaves_no_tag() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let platform: Platform = "linux/amd64".parse().unwrap();
    let base = tempfile::tempdir().unwrap();
    layout(base.path(), &["amd64"]);
    let mut repositories = 0;
    let blobs: Vec<_> = fs::read_dir(base.path().join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(blobs.len(), 4);
    for path in &blobs {
        let whole = fs::read(path).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        for damage in [Some(changed), Some(whole[..whole.len() - 1].to_vec()), None] {
            match &damage {
                Some(content) => fs::write(path, content).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            // Each in a repository of its own: what is there already is not read.
            repositories += 1;
            let repository = format!("damaged{repositories}");
            let target = Target::parse(&registry.target(&format!("{repository}:1"))).unwrap();
            let image = Layout::open(base.path()).and_then(|layout| layout.image(None, &platform));
            let error = match image {
                Ok(image) => push(image, &target, None, &PushOptions::default(), |_| ())
                    .await
                    .unwrap_err(),
                Err(error) => PushError::Source(error),
            };
            assert!(matches!(error, PushError::Source(_)), "{path:?}: {error:?}");
            assert_eq!(registry.tag(&repository, "1"), None);
        }
        fs::write(path, &whole).unwrap();
    }
}

#[test]
fn archives_with_any_byte_changed_end_in_an_image_or_an_error() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("layout");
    layout(&directory, &["amd64"]);
    // Small, so that most changes hit something that matters.
    for entry in fs::read_dir(directory.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        if fs::metadata(&path).unwrap().len() > 100_000 {
            fs::write(path, "short").unwrap();
        }
    }
    let archive = base.path().join("x.tar");
    tar_of(&directory, &archive);
    let whole = fs::read(&archive).unwrap();
    let platform = Platform::default();
    let mut images = 0;
    for position in (0..whole.len()).step_by(37) {
        let mut changed = whole.clone();
        changed[position] =
            changed[position].wrapping_add(u8::try_from(position % 255).unwrap() + 1);
        fs::write(&archive, changed).unwrap();
        images += usize::from(
            Layout::open(&archive)
                .and_then(|layout| layout.image(None, &platform))
                .is_ok(),
        );
    }
    assert!(images > 0, "some changes do no harm");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skopeo_writes_comes_back_as_the_same_image() {
    let (Some(registry), Some(skopeo)) = (Registry::start(&Access::Open), program("skopeo")) else {
        return skip("needs docker-registry and skopeo");
    };
    let base = tempfile::tempdir().unwrap();
    for codec in ["gzip", "zstd"] {
        // No tar, which skopeo copies all the same as long as nothing is unpacked.
        let image = image(&[Made::new(3 << 20, 1), Made::new(1000, 2)]);
        let target = Target::parse(&registry.target(&format!("{codec}:1"))).unwrap();
        let options = PushOptions {
            codec: codec.parse().unwrap(),
            ..PushOptions::default()
        };
        let first = push(image.clone(), &target, None, &options, |_| ())
            .await
            .unwrap();
        let source = format!("docker://{}", registry.target(&format!("{codec}:1")));
        let directory = base.path().join(codec);
        let archive = base.path().join(format!("{codec}.tar"));
        for to in [
            format!("oci:{}:app:1", directory.display()),
            format!("oci-archive:{}:app:1", archive.display()),
        ] {
            run(Command::new(&skopeo).args(["copy", "-q", "--src-tls-verify=false", &source, &to]));
        }
        for (number, path) in [&directory, &archive].into_iter().enumerate() {
            let back = Layout::open(path)
                .unwrap()
                .image(Some("app:1"), &Platform::default())
                .unwrap();
            let repository = format!("{codec}-back{number}");
            let target = Target::parse(&registry.target(&format!("{repository}:1"))).unwrap();
            let pushed = push(back.clone(), &target, None, &options, |_| ())
                .await
                .unwrap();
            assert_complete(&registry, &repository, "1", &back, &pushed);
            let digests = |pushed: &slipway_registry_push::Pushed| {
                let layers = pushed.layers.iter().map(|layer| layer.digest.clone());
                layers.collect::<Vec<_>>()
            };
            assert_eq!(
                digests(&pushed),
                digests(&first),
                "layers are sent as they are"
            );
        }
    }
}

fn binary(arguments: &[&str], input: Stdio) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_slipway-push"))
        .args(arguments)
        .env_remove("SLIPWAY_PUSH_USERNAME")
        .env_remove("SLIPWAY_PUSH_PASSWORD")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended(child: std::process::Child) -> Output {
    child.wait_with_output().unwrap()
}

#[test]
fn an_archive_comes_through_a_pipe() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("layout");
    layout(&directory, &["amd64"]);
    let archive = base.path().join("x.tar");
    tar_of(&directory, &archive);
    let target = registry.target("piped:1");
    let mut child = binary(
        &[
            &target,
            "--archive",
            "-",
            "--tag",
            "2",
            "--json",
            "-q",
            "--platform",
            "linux/amd64",
        ],
        Stdio::piped(),
    );
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&fs::read(&archive).unwrap()).unwrap();
    drop(pipe);
    let output = ended(child);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let digest = Digest::parse(result["digest"].as_str().unwrap()).unwrap();
    assert_eq!(registry.tag("piped", "1").as_ref(), Some(&digest));
    assert_eq!(registry.tag("piped", "2").as_ref(), Some(&digest));

    for (arguments, status, said) in [
        (
            &[target.as_str(), "--archive", "/nonexistent"][..],
            2,
            "cannot open",
        ),
        (&["no such", "--archive", "-"], 1, "not an image reference"),
        (
            &["app", &target, "--containerd-root", "/nonexistent"],
            1,
            "named by digest",
        ),
        (&[&target], 1, "name the image"),
        (
            &[&target, "--archive", "x", "--oci-layout", "y"],
            2,
            "cannot be used with",
        ),
    ] {
        let output = ended(binary(arguments, Stdio::null()));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {told}");
        assert!(told.contains(said), "{arguments:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_one_upload_through_their_index() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let proxy = Proxy::start(registry.address, |seen, _| match seen.method {
        Method::PATCH => Act::Slow(4 << 10),
        _ => Act::Forward,
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("layout");
    layout(&directory, &["amd64"]);
    let index = base.path().join("index");
    let (directory, index) = (directory.to_str().unwrap(), index.to_str().unwrap());
    let children: Vec<_> = ["a:1", "b:1", "a:2"]
        .map(|name| {
            let target = proxy.target(name);
            let arguments = [
                &target,
                "--oci-layout",
                directory,
                "--index",
                index,
                "--json",
                "-q",
                "--platform",
                "linux/amd64",
            ];
            binary(&arguments, Stdio::null())
        })
        .into();
    let mut pushed = 0;
    for child in children {
        let output = tokio::task::spawn_blocking(|| ended(child)).await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let layers = result["layers"].as_array().unwrap();
        pushed += layers
            .iter()
            .filter(|layer| layer["state"] == "pushed")
            .count();
    }
    assert_eq!(pushed, 2, "each of the two layers once");
    let turns = base.path().join("index.turns");
    assert_eq!(fs::read_dir(turns).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn zstd_images_are_oci_images() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let image = image(&[Made::new(5 << 20, 1), Made::new(0, 2), Made::new(100, 3)]);
    let mut digests = Vec::new();
    for threads in [1, 2, 8] {
        let target = Target::parse(&registry.target(&format!("zstd{threads}:1"))).unwrap();
        let options = PushOptions {
            codec: Codec::Zstd { level: 1 },
            threads,
            ..PushOptions::default()
        };
        let pushed = push(image.clone(), &target, None, &options, |_| ())
            .await
            .unwrap();
        assert_complete(&registry, &format!("zstd{threads}"), "1", &image, &pushed);
        assert!(
            pushed
                .layers
                .iter()
                .all(|layer| layer.state == PushState::Pushed)
        );
        digests.push(pushed.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the same whatever the number of threads");
}

//! Indexes with all that they name, out of an image layout.

use crate::registry::{Access, Registry};
use crate::sources::{blob, content, manifest};
use serde_json::{Value, json};
use slipway_registry_push::{
    Content, Digest, Layout, Push, PushError, PushOptions, Pushed, SourceError, Target,
};
use std::path::Path;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PREDICATE: &str = "https://slsa.dev/provenance/v0.2";

/// Writes an index; gives its digest.
fn index(path: &Path, manifests: &[Value]) -> Digest {
    let document = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests,
        "annotations": { "what": "both" } });
    let entry = blob(path, INDEX, document.to_string().as_bytes());
    Digest::parse(entry["digest"].as_str().unwrap()).unwrap()
}

/// Images of these architectures that share their first layer, which is not compressed.
fn images(path: &Path, architectures: &[&str]) -> Vec<Value> {
    let shared = content(900_000, 7);
    let of = |architecture: &&str| {
        let own = content(300_000, architecture.as_bytes()[1]);
        let layers = [blob(path, TAR, &shared), blob(path, TAR, &own)];
        manifest(path, architecture, &[shared.clone(), own], &layers)
    };
    architectures.iter().map(of).collect()
}

/// What is attested of the image of `entry`, as BuildKit keeps it.
fn attestation(path: &Path, entry: &Value) -> Value {
    let subject = entry["digest"].as_str().unwrap();
    let statement = json!({ "_type": "https://in-toto.io/Statement/v0.1", "predicateType": PREDICATE,
        "subject": [{ "digest": { "sha256": subject.trim_start_matches("sha256:") } }] });
    let mut layer = blob(
        path,
        "application/vnd.in-toto+json",
        statement.to_string().as_bytes(),
    );
    layer["annotations"] = json!({ "in-toto.io/predicate-type": PREDICATE });
    let config = json!({ "architecture": "unknown", "os": "unknown", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] } });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [layer],
        "config": blob(path, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
    });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut made = blob(path, kind, manifest.to_string().as_bytes());
    made["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    made["annotations"] = json!({ "vnd.docker.reference.digest": subject,
        "vnd.docker.reference.type": "attestation-manifest" });
    made
}

async fn push(
    layout: &Layout,
    digest: &Digest,
    known: &Path,
    target: &str,
) -> Result<Pushed, PushError> {
    let whole = layout.whole(digest).unwrap();
    assert!(matches!(whole, Content::Index(_)), "{whole:?}");
    let options = PushOptions {
        more_tags: vec!["also".to_owned()],
        index: Some(known.to_owned()),
        ..PushOptions::default()
    };
    Push::new(&Target::parse(target).unwrap(), None, &options)?
        .content(whole, |_| ())
        .await
}

/// The index under its tags, and every manifest, config and layer below it.
fn read(registry: &Registry, repository: &str, pushed: &Pushed) -> (Value, Vec<Value>) {
    for tag in ["1", "also"] {
        assert_eq!(registry.tag(repository, tag).as_ref(), Some(&pushed.digest));
    }
    let json = |digest: &Value| {
        let digest = Digest::parse(digest.as_str().unwrap()).unwrap();
        let bytes = registry.blob(&digest).unwrap();
        assert_eq!(Digest::of(&bytes), digest);
        bytes
    };
    let index: Value = serde_json::from_slice(&registry.blob(&pushed.digest).unwrap()).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let manifests = entries.iter().map(|entry| {
        let bytes = json(&entry["digest"]);
        assert_eq!(entry["size"], bytes.len());
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        json(&manifest["config"]["digest"]);
        for layer in manifest["layers"].as_array().unwrap() {
            json(&layer["digest"]);
        }
        manifest
    });
    (index.clone(), manifests.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_pushed_with_all_its_images_and_each_blob_once() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let mut entries = images(base.path(), &["amd64", "arm64"]);
    // One of the two has annotations, which its manifest keeps when it is made anew.
    let path = base.path().join("blobs/sha256");
    let hex = entries[1]["digest"].as_str().unwrap()[7..].to_owned();
    let mut annotated: Value =
        serde_json::from_slice(&std::fs::read(path.join(hex)).unwrap()).unwrap();
    annotated["annotations"] = json!({ "made": "here" });
    let again = blob(
        base.path(),
        "application/vnd.oci.image.manifest.v1+json",
        annotated.to_string().as_bytes(),
    );
    entries[1]["digest"] = again["digest"].clone();
    entries[1]["size"] = again["size"].clone();
    let digest = index(base.path(), &entries);
    let layout = Layout::open(base.path()).unwrap();
    let pushed = push(
        &layout,
        &digest,
        &base.path().join("known"),
        &registry.target("both:1"),
    )
    .await
    .unwrap();
    let (index, manifests) = read(&registry, "both", &pushed);
    assert_eq!(index["annotations"]["what"], "both");
    assert_eq!(manifests[1]["annotations"]["made"], "here");
    for (manifest, architecture) in manifests.iter().zip(["amd64", "arm64"]) {
        assert_eq!(
            manifest["layers"][0]["mediaType"],
            format!("{TAR}+gzip"),
            "{architecture}"
        );
    }
    assert_eq!(
        manifests[0]["layers"][0]["digest"],
        manifests[1]["layers"][0]["digest"]
    );
    let sent: Vec<u64> = pushed.layers.iter().map(|layer| layer.sent_bytes).collect();
    assert!(sent[0] > 0 && sent[2] == 0, "the shared layer: {sent:?}");
    let platforms: Vec<&Value> = index["manifests"].as_array().unwrap().iter().collect();
    assert_eq!(platforms[1]["platform"]["architecture"], "arm64");

    let again = push(
        &layout,
        &digest,
        &base.path().join("known"),
        &registry.target("both:1"),
    )
    .await
    .unwrap();
    assert_eq!((again.digest, again.sent_bytes > 0), (pushed.digest, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attested_is_pushed_as_it_is_and_can_be_read() {
    let Some(registry) = Registry::start(&Access::Open) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    let mut entries = images(base.path(), &["amd64", "arm64"]);
    let attested: Vec<Value> = entries
        .iter()
        .map(|entry| attestation(base.path(), entry))
        .collect();
    entries.extend(attested);
    let digest = index(base.path(), &entries);
    let layout = Layout::open(base.path()).unwrap();
    let pushed = push(
        &layout,
        &digest,
        &base.path().join("known"),
        &registry.target("attested:1"),
    )
    .await
    .unwrap();
    assert_eq!(pushed.digest, digest, "statements name digests");
    let (_, manifests) = read(&registry, "attested", &pushed);
    assert_eq!(manifests[0]["layers"][0]["mediaType"], TAR);
    let statements = layout.statements(&digest).unwrap();
    assert_eq!(statements.len(), 2);
    for (statement, entry) in statements.iter().zip(&entries) {
        let architecture = entry["platform"]["architecture"].as_str().unwrap();
        assert_eq!(statement.platform, Some(format!("linux/{architecture}")));
        assert_eq!(statement.predicate_type, PREDICATE);
        let text: Value = serde_json::from_str(statement.text.as_ref().unwrap()).unwrap();
        let subject = text["subject"][0]["digest"]["sha256"].as_str().unwrap();
        assert_eq!(entry["digest"], format!("sha256:{subject}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_which_a_part_is_missing_is_not_whole() {
    let base = tempfile::tempdir().unwrap();
    let entries = images(base.path(), &["amd64", "arm64"]);
    let digest = index(base.path(), &entries);
    let layout = Layout::open(base.path()).unwrap();
    let blobs = base.path().join("blobs/sha256");
    let manifest = blobs.join(&entries[1]["digest"].as_str().unwrap()[7..]);
    let document: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let layer = blobs.join(&document["layers"][1]["digest"].as_str().unwrap()[7..]);
    std::fs::remove_file(layer).unwrap();
    let error = layout.whole(&digest).unwrap_err();
    assert!(matches!(error, SourceError::NoLayer { .. }), "{error:?}");
    std::fs::remove_file(manifest).unwrap();
    let error = layout.whole(&digest).unwrap_err();
    assert!(matches!(error, SourceError::NoImage { .. }), "{error:?}");
    layout
        .by_digest(&digest, &"linux/amd64".parse().unwrap())
        .unwrap();
}

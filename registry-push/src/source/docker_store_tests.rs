//! A store laid out by hand: what is found, what is refused. The real dockerd's is in `tests/`.

use super::*;

struct Store {
    root: tempfile::TempDir,
}

impl Store {
    fn new() -> Store {
        let root = tempfile::tempdir().expect("tempdir");
        for part in [
            "image/overlay2/imagedb/content/sha256",
            "image/overlay2/layerdb/sha256",
            "overlay2",
        ] {
            std::fs::create_dir_all(root.path().join(part)).expect("mkdir");
        }
        Store { root }
    }

    fn image(&self, config: &str) -> Digest {
        let id = Digest::of(config.as_bytes());
        let path = self
            .root
            .path()
            .join("image/overlay2/imagedb/content/sha256")
            .join(id.hex());
        std::fs::write(path, config).expect("write");
        id
    }

    fn name(&self, json: &str) {
        std::fs::write(
            self.root.path().join("image/overlay2/repositories.json"),
            json,
        )
        .expect("write");
    }

    fn open(&self) -> DockerStore {
        DockerStore::open(self.root.path()).expect("opens")
    }
}

#[test]
fn names_are_found_as_docker_writes_them() {
    for (given, repository, reference) in [
        ("app", "app", "app:latest"),
        ("app:v1", "app", "app:v1"),
        ("docker.io/library/app", "app", "app:latest"),
        ("docker.io/me/app:2", "me/app", "me/app:2"),
        (
            "localhost:5000/app",
            "localhost:5000/app",
            "localhost:5000/app:latest",
        ),
        (
            "localhost:5000/app:v1",
            "localhost:5000/app",
            "localhost:5000/app:v1",
        ),
        ("app:v1@sha256:ab", "app", "app@sha256:ab"),
    ] {
        assert_eq!(
            familiar(given),
            (repository.to_string(), reference.to_string()),
            "{given}"
        );
    }
}

#[test]
fn an_image_without_layers_is_found_by_every_name_it_has() {
    let store = Store::new();
    let id = store.image(r#"{"rootfs":{"type":"layers"}}"#);
    store.name(&format!(
        r#"{{"Repositories":{{"app":{{"app:latest":"{id}"}}}}}}"#
    ));
    for name in [
        "app",
        "app:latest",
        id.as_str(),
        id.hex(),
        &id.hex()[..12],
        &id.as_str()[..20],
    ] {
        assert_eq!(store.open().image(name).expect(name).id(), id);
    }
    for name in ["other", "app:v2", "", "zz", "../../etc/passwd"] {
        let found = store.open().image(name);
        assert!(
            matches!(found, Err(SourceError::NoImage { .. })),
            "{name:?}: {found:?}"
        );
    }
}

#[test]
fn what_is_damaged_or_missing_is_said() {
    let store = Store::new();
    let layer = Digest::of(b"layer");
    let id = store.image(&format!(
        r#"{{"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    ));
    assert!(matches!(
        store.open().image(id.as_str()),
        Err(SourceError::NoLayer { .. })
    ));

    let entry = store
        .root
        .path()
        .join("image/overlay2/layerdb/sha256")
        .join(layer.hex());
    std::fs::create_dir(&entry).expect("mkdir");
    std::fs::write(entry.join("cache-id"), "../../../etc").expect("write");
    assert!(matches!(
        store.open().image(id.as_str()),
        Err(SourceError::Damaged { .. })
    ));

    let content = store
        .root
        .path()
        .join("image/overlay2/imagedb/content/sha256")
        .join(id.hex());
    std::fs::write(content, "{}").expect("write");
    assert!(matches!(
        store.open().image(id.as_str()),
        Err(SourceError::Damaged { .. })
    ));

    store.name("{");
    assert!(matches!(
        store.open().image("app"),
        Err(SourceError::Damaged { .. })
    ));
    assert!(matches!(
        DockerStore::open(&store.root.path().join("none")),
        Err(SourceError::NoStore { .. })
    ));
}

#[test]
fn a_short_id_that_two_images_share_is_ambiguous() {
    let store = Store::new();
    // More images than hex digits: two of them must begin alike.
    for n in 0..17 {
        store.image(&format!(r#"{{"n":{n}}}"#));
    }
    let clash = (0..16)
        .map(|n| format!("{n:x}"))
        .any(|p| matches!(store.open().image(&p), Err(SourceError::Ambiguous { .. })));
    assert!(clash);
}

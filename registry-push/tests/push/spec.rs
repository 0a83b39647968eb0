//! The OCI image specification's rules for manifests and configs (image-spec 1.1, `schema/*.json`), written as checks.
//!
//! Docker's schema 2 manifest has the same shape with media types of its own.

use serde_json::Value;

const MANIFESTS: [(&str, &str); 2] = [
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
    ),
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.container.image.v1+json",
    ),
];
const OCI_LAYERS: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
];
const DOCKER_LAYERS: [&str; 2] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// `image-manifest-schema.json`.
pub(crate) fn check_manifest(manifest: &Value) {
    let map = manifest.as_object().unwrap();
    for key in map.keys() {
        let known = [
            "schemaVersion",
            "mediaType",
            "artifactType",
            "config",
            "layers",
            "subject",
            "annotations",
        ];
        assert!(known.contains(&key.as_str()), "{key}");
    }
    assert_eq!(manifest["schemaVersion"], 2);
    let media_type = manifest["mediaType"].as_str().unwrap();
    let (_, config_type) = MANIFESTS
        .into_iter()
        .find(|(manifest, _)| *manifest == media_type)
        .unwrap_or_else(|| panic!("{media_type}"));
    assert_eq!(check_descriptor(&manifest["config"]), config_type);
    let is_oci = media_type == MANIFESTS[0].0;
    for layer in manifest["layers"].as_array().unwrap() {
        let kind = check_descriptor(layer);
        let is_known = if is_oci {
            OCI_LAYERS.contains(&kind)
        } else {
            DOCKER_LAYERS.contains(&kind)
        };
        assert!(is_known, "{kind} in {media_type}");
    }
    check_annotations(map.get("annotations"));
}

/// `content-descriptor.json`.
fn check_descriptor(descriptor: &Value) -> &str {
    let map = descriptor.as_object().unwrap();
    for key in map.keys() {
        let known = [
            "mediaType",
            "digest",
            "size",
            "urls",
            "annotations",
            "data",
            "platform",
            "artifactType",
        ];
        assert!(known.contains(&key.as_str()), "{key}");
    }
    check_digest(&descriptor["digest"]);
    assert!(descriptor["size"].as_i64().unwrap() >= 0);
    check_annotations(map.get("annotations"));
    let media_type = descriptor["mediaType"].as_str().unwrap();
    assert!(media_type.len() <= 255 && media_type.split('/').count() == 2);
    media_type
}

fn check_digest(digest: &Value) {
    slipway_registry_push::Digest::parse(digest.as_str().unwrap()).unwrap();
}

fn check_annotations(annotations: Option<&Value>) {
    for (_, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        assert!(value.is_string(), "{value}");
    }
}

/// `config-schema.json`. Further properties are allowed there.
pub(crate) fn check_config(config: &Value) {
    for key in ["architecture", "os"] {
        assert!(!config[key].as_str().unwrap().is_empty(), "{key}");
    }
    for key in ["author", "variant", "os.version"] {
        assert!(config.get(key).is_none_or(Value::is_string), "{key}");
    }
    check_date(config.get("created"));
    assert_eq!(config["rootfs"]["type"], "layers");
    // An image's id is that of its config, which is kept as it was made: BuildKit writes null for none.
    let diff_ids = &config["rootfs"]["diff_ids"];
    assert!(diff_ids.is_array() || diff_ids.is_null());
    for diff_id in diff_ids.as_array().into_iter().flatten() {
        check_digest(diff_id);
    }
    let history = config.get("history").and_then(Value::as_array);
    for entry in history.into_iter().flatten() {
        check_date(entry.get("created"));
        for key in ["author", "created_by", "comment"] {
            assert!(entry.get(key).is_none_or(Value::is_string), "{entry}");
        }
        let is_empty = entry.get("empty_layer");
        assert!(is_empty.is_none_or(Value::is_boolean), "{entry}");
    }
    check_execution(&config["config"]);
}

fn check_execution(config: &Value) {
    let Some(config) = config.as_object() else {
        assert!(config.is_null());
        return;
    };
    let absent_or = |key: &str, is: fn(&Value) -> bool| {
        let value = config.get(key).unwrap_or(&Value::Null);
        assert!(value.is_null() || is(value), "{key}: {value}");
    };
    let strings = |value: &Value| {
        value
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string))
    };
    let set = |value: &Value| {
        value
            .as_object()
            .is_some_and(|map| map.values().all(Value::is_object))
    };
    for key in ["User", "WorkingDir", "StopSignal"] {
        absent_or(key, Value::is_string);
    }
    for key in ["Env", "Entrypoint", "Cmd"] {
        absent_or(key, strings);
    }
    for key in ["ExposedPorts", "Volumes"] {
        absent_or(key, set);
    }
    absent_or("Labels", |value| {
        value
            .as_object()
            .is_some_and(|map| map.values().all(Value::is_string))
    });
}

/// RFC 3339, section 5.6.
fn check_date(date: Option<&Value>) {
    let Some(date) = date else { return };
    let date = date.as_str().unwrap();
    let shape: String = date
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert!(
        shape.starts_with("0000-00-00T00:00:00")
            && (date.ends_with('Z') || shape.ends_with("00:00")),
        "{date}"
    );
}

#[test]
fn the_checks_can_fail() {
    let good = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0].0,
        "config": { "mediaType": MANIFESTS[0].1, "size": 1, "digest": format!("sha256:{}", "0".repeat(64)) },
        "layers": [],
    });
    check_manifest(&good);
    for (pointer, value) in [
        ("/schemaVersion", serde_json::json!(1)),
        ("/mediaType", serde_json::json!(MANIFESTS[1].0)),
        ("/config/size", serde_json::json!(-1)),
        ("/config/digest", serde_json::json!("sha256:0")),
        (
            "/layers",
            serde_json::json!([{ "mediaType": DOCKER_LAYERS[0] }]),
        ),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        assert!(
            std::panic::catch_unwind(|| check_manifest(&bad)).is_err(),
            "{pointer}"
        );
    }
}

//! Settings of the engine: what the image brings (`daemon.json`), what the host says (`guest.json`), and what the
//! guest itself needs, merged into one file that dockerd and containerd read.
//!
//! It must not know how the daemons are started.

use crate::limits;
use crate::store::ImageStore;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use slipway_core::time::Timestamp;
use std::collections::BTreeMap;

/// The registry that dockerd itself knows mirrors of.
const HUB: &str = "docker.io";

/// What the host says about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GuestConfig {
    /// Registries without TLS, as `HOST:PORT`.
    pub(crate) insecure_registries: Vec<String>,
    /// Mirrors as URLs, by the host of the registry that they stand for.
    pub(crate) registry_mirrors: BTreeMap<String, Vec<String>>,
    /// Certificates (PEM) that are trusted beside the image's own.
    pub(crate) ca_pem: String,
    /// How the internet is reached.
    pub(crate) proxies: Proxies,
    /// How an empty volume is begun.
    pub(crate) image_store: ImageStore,
    /// When the packages of the image were last looked up, if the host says so.
    pub(crate) image_made_at: Option<Timestamp>,
    /// Image that lists what is in an image, where a build names none.
    pub(crate) sbom_scanner: Option<String>,
}

impl GuestConfig {
    /// What BuildKit is told: the hosts of registries that dockerd knows no mirror of, and `HOST:PORT` of the mirror of each.
    pub(crate) fn mirrors(&self) -> BTreeMap<String, String> {
        let others = self
            .registry_mirrors
            .iter()
            .filter(|(host, _)| *host != HUB);
        others
            .filter_map(|(host, urls)| {
                let (_, rest) = urls.first()?.split_once("://")?;
                Some((host.clone(), rest.trim_end_matches('/').to_owned()))
            })
            .collect()
    }
}

/// HTTP proxies of the host's network. Absent or empty: there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Proxies {
    /// For what has no TLS, as `http://HOST:PORT`.
    pub(crate) http: Option<String>,
    /// For what has TLS.
    pub(crate) https: Option<String>,
    /// Hosts, domains and networks that are reached without one.
    pub(crate) none: Vec<String>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The host's file is not what it should be.
    #[error("read guest.json")]
    Guest(#[source] serde_json::Error),
    /// The image's file is not JSON.
    #[error("read daemon.json")]
    Engine(#[source] serde_json::Error),
    /// A value of the image's file is of the wrong kind.
    #[error("'{key}' in daemon.json is not {wanted}")]
    Kind {
        /// Which.
        key: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
}

/// The settings of the host; an empty text gives the defaults.
pub(crate) fn parse_guest(text: &str) -> Result<GuestConfig, ConfigError> {
    if text.trim().is_empty() {
        return Ok(GuestConfig::default());
    }
    serde_json::from_str(text).map_err(ConfigError::Guest)
}

/// dockerd's settings: the image's own, with the host's registries added, and with what the guest needs where the
/// image does not say otherwise.
///
/// dockerd by itself keeps BuildKit's cache to a tenth of the disk, which throws away most of what a builder is kept
/// for; here the disk is the cache's own.
pub(crate) fn engine_config(
    image: &str,
    host: &GuestConfig,
    store: ImageStore,
    volume_bytes: u64,
) -> Result<String, ConfigError> {
    let mut config: Map<String, Value> = if image.trim().is_empty() {
        Map::new()
    } else {
        serde_json::from_str(image).map_err(ConfigError::Engine)?
    };
    extend(
        &mut config,
        "insecure-registries",
        &host.insecure_registries,
    )?;
    let of_hub = host
        .registry_mirrors
        .get(HUB)
        .map_or(&[][..], Vec::as_slice);
    extend(&mut config, "registry-mirrors", of_hub)?;
    let Proxies { http, https, none } = &host.proxies;
    if http.is_some() || https.is_some() {
        // dockerd puts these into its own environment, so that BuildKit and git have them too.
        config.entry("proxies").or_insert_with(|| {
            json!({
                "http-proxy": http.as_deref().unwrap_or_default(),
                "https-proxy": https.as_deref().unwrap_or_default(),
                "no-proxy": none.join(","),
            })
        });
    }
    config
        .entry("shutdown-timeout")
        .or_insert_with(|| json!(limits::CONTAINER_STOP_WAIT_S));
    config.insert("storage-driver".to_owned(), json!(store.driver()));
    let features = config.entry("features").or_insert_with(|| json!({}));
    let features = features.as_object_mut().ok_or(ConfigError::Kind {
        key: "features",
        wanted: "an object",
    })?;
    let in_containerd = store == ImageStore::Containerd;
    features.insert("containerd-snapshotter".to_owned(), json!(in_containerd));
    let keep_bytes = volume_bytes / 100 * limits::CACHE_KEEP_PERCENT;
    config.entry("builder").or_insert_with(|| {
        json!({
            "gc": {"enabled": true, "defaultKeepStorage": format!("{keep_bytes}")},
            // Root of a container can be no more than root of the machine, which whoever builds is.
            "entitlements": {"security-insecure": true},
        })
    });
    Ok(Value::Object(config).to_string())
}

/// The certificates that the machine trusts: the image's bundle, with the host's after it. `None` when it has them already.
pub(crate) fn trusted(bundle: &str, more: &str) -> Option<String> {
    let more = more.trim();
    if more.is_empty() || bundle.contains(more) {
        return None;
    }
    Some(format!("{}\n{more}\n", bundle.trim_end()))
}

fn extend(
    config: &mut Map<String, Value>,
    key: &'static str,
    more: &[String],
) -> Result<(), ConfigError> {
    if more.is_empty() {
        return Ok(());
    }
    let list = config.entry(key).or_insert_with(|| json!([]));
    let list = list.as_array_mut().ok_or(ConfigError::Kind {
        key,
        wanted: "a list",
    })?;
    for item in more {
        let item = Value::String(item.clone());
        if !list.contains(&item) {
            list.push(item);
        }
    }
    Ok(())
}

/// containerd's settings. What runs is kept below `state_dir`, which does not outlive the machine; everything else below `root`,
/// which is on the volume where containerd keeps the images.
pub(crate) fn containerd_config(root: &str, state_dir: &str, socket: &str) -> String {
    let disabled = [
        "io.containerd.grpc.v1.cri",
        "io.containerd.nri.v1.nri",
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.tracing",
        "io.containerd.tracing.processor.v1.otlp",
        "io.containerd.snapshotter.v1.aufs",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.zfs",
    ];
    // JSON strings without escapes are TOML strings too; the paths are ours and have none.
    format!(
        "version = 2\nroot = {root}\nstate = {state}\ndisabled_plugins = {disabled}\n[grpc]\naddress = {socket}\n",
        root = json!(root),
        state = json!(format!("{state_dir}/state")),
        disabled = json!(disabled),
        socket = json!(socket),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_registries_are_added_to_the_images() {
        let host = parse_guest(
            r#"{"insecure_registries": ["a:1", "b:2"], "registry_mirrors": {"docker.io": ["http://m:3"], "r.test": ["http://m:4"]}}"#,
        )
        .expect("valid");
        let config = engine_config(
            r#"{"insecure-registries": ["a:1"], "debug": true}"#,
            &host,
            ImageStore::Containerd,
            1000,
        )
        .expect("valid");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(
            host.mirrors(),
            BTreeMap::from([("r.test".to_owned(), "m:4".to_owned())])
        );
        assert_eq!(
            config,
            json!({
                "insecure-registries": ["a:1", "b:2"],
                "registry-mirrors": ["http://m:3"],
                "debug": true,
                "storage-driver": "overlayfs",
                "features": {"containerd-snapshotter": true},
                "shutdown-timeout": 10,
                "builder": {
                    "gc": {"enabled": true, "defaultKeepStorage": "600"},
                    "entitlements": {"security-insecure": true},
                },
            })
        );
    }

    #[test]
    fn proxies_are_dockerds_own() {
        let host = parse_guest(
            r#"{"proxies": {"https": "http://proxy.test:3128", "none": ["10.0.0.0/8", ".corp.test"]}}"#,
        )
        .expect("valid");
        let config = engine_config("", &host, ImageStore::Classic, 1000).expect("valid");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        let expected = json!({
            "http-proxy": "", "https-proxy": "http://proxy.test:3128", "no-proxy": "10.0.0.0/8,.corp.test",
        });
        assert_eq!(config["proxies"], expected);
        let without =
            engine_config("", &GuestConfig::default(), ImageStore::Classic, 1000).expect("valid");
        assert!(!without.contains("proxies"), "{without}");
    }

    #[test]
    fn certificates_are_added_once() {
        let both = trusted("ONE\n", "\nTWO\n").expect("something to add");
        assert_eq!(both, "ONE\nTWO\n");
        assert_eq!(trusted(&both, "TWO\n"), None);
        assert_eq!(trusted("ONE\n", " \n"), None);
        assert_eq!(trusted("", "TWO").as_deref(), Some("\nTWO\n"));
    }

    #[test]
    fn what_the_image_says_stays() {
        let image = r#"{"shutdown-timeout": 3, "builder": {"gc": {"enabled": false}}, "features": {"x": true}}"#;
        let host = GuestConfig::default();
        let config = engine_config(image, &host, ImageStore::Classic, 1000).expect("valid");
        assert_eq!(
            serde_json::from_str::<Value>(&config).expect("JSON"),
            json!({
                "shutdown-timeout": 3,
                "builder": {"gc": {"enabled": false}},
                "features": {"x": true, "containerd-snapshotter": false},
                "storage-driver": "overlay2",
            })
        );
    }

    #[test]
    fn bad_settings_are_told_by_their_file() {
        for (guest, image, want) in [
            ("{", "", "read guest.json"),
            (r#"{"unknown": 1}"#, "", "read guest.json"),
            ("", "[]", "read daemon.json"),
            (
                r#"{"registry_mirrors": {"docker.io": ["x"]}}"#,
                r#"{"registry-mirrors": "x"}"#,
                "'registry-mirrors' in daemon.json is not a list",
            ),
            (
                "",
                r#"{"features": 1}"#,
                "'features' in daemon.json is not an object",
            ),
        ] {
            let got = parse_guest(guest)
                .and_then(|host| engine_config(image, &host, ImageStore::Classic, 0));
            assert_eq!(got.expect_err("bad").to_string(), want);
        }
        assert_eq!(
            parse_guest(" \n").expect("absent is fine"),
            GuestConfig::default()
        );
    }
}

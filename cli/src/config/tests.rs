//! Both grammars, by files written to a directory as people have them.

use super::*;
use proptest::prelude::*;

fn load(name: &str, text: &str) -> Outcome<ProjectConfig> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), text).unwrap();
    ProjectConfig::load(dir.path(), None).map(|mut config| {
        config.path = None;
        config
    })
}

#[test]
fn reads_our_own_file() {
    let config = load(
        NATIVE_NAME,
        r#"
app = "shop"
org = "acme"
region = "fra"
registry = "registry.example:5000/acme"

[build]
dockerfile = "docker/Dockerfile"
target = "release"
ignorefile = "docker/ignore"
compression = "zstd:3"
args = { RUST = "1.85", JOBS = 4, LTO = true }
"#,
    )
    .unwrap();
    assert_eq!(config.app.as_deref(), Some("shop"));
    assert_eq!(
        config.registry.as_deref(),
        Some("registry.example:5000/acme")
    );
    assert_eq!(config.build.target.as_deref(), Some("release"));
    assert_eq!(
        config.build.compression.map(|named| named.to_string()),
        Some("zstd:3".to_owned())
    );
    assert_eq!(
        config.build.dockerfile.as_deref(),
        Some(Path::new("docker/Dockerfile"))
    );
    let args: Vec<_> = config
        .build
        .args
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(args, ["JOBS=4", "LTO=true", "RUST=1.85"]);
}

#[test]
fn an_unknown_name_is_refused_with_its_line_and_a_hint() {
    let failure = load(NATIVE_NAME, "app = \"shop\"\n[build]\ndockerfle = \"x\"\n").unwrap_err();
    assert!(
        failure
            .message()
            .contains("slipway.toml:3: unknown field `dockerfle`"),
        "{failure}"
    );
    assert!(
        failure.hint_text().unwrap().contains("dockerfile, target"),
        "{failure}"
    );
    let failure = load(NATIVE_NAME, "app = \n").unwrap_err();
    assert!(failure.message().contains("slipway.toml:1:"), "{failure}");
    assert_eq!(failure.code(), 1);
}

#[test]
fn reads_fly_files_old_and_new() {
    let config = load(
        FLY_NAME,
        r#"
app = 'shop'
primary_region = 'ams'
kill_signal = 'SIGINT'

[build]
  dockerfile = 'Dockerfile.web'
  build-target = 'web'
  ignorefile = '.flyignore'
  [build.args]
    NODE_VERSION = '20'

[[mounts]]
  source = 'data'
  destination = '/data'
  initial_size = '10gb'

[http_service]
  internal_port = 8080
"#,
    )
    .unwrap();
    assert_eq!(
        (config.region, config.region_wish.as_deref()),
        (None, Some("ams"))
    );
    assert_eq!(config.build.target.as_deref(), Some("web"));
    assert_eq!(config.build.args["NODE_VERSION"], "20");
    assert_eq!(config.unused, ["[http_service]", "kill_signal", "[mounts]"]);
    let old = load(
        FLY_NAME,
        "app='x'\n[mounts]\nsource='d'\ndestination='/d'\n[build]\nimage='a/b:c'\n",
    )
    .unwrap();
    assert_eq!(old.unused, ["[mounts]"]);
    // It names an image to run, and never one to push to.
    assert_eq!(
        (old.build.image, old.runs_image.as_deref()),
        (None, Some("a/b:c"))
    );
    let packs = "app='x'\n[build]\nbuilder='b'\nbuildpacks=['p']\nnew='y'\n";
    let packs = load(FLY_NAME, packs).unwrap();
    assert_eq!(
        (packs.other_builder, packs.unused),
        (Some("builder"), vec!["build.new".to_owned()])
    );
}

#[test]
fn a_fly_file_of_another_name_is_known_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fly.staging.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        ProjectConfig::load(dir.path(), Some(&path))
    };
    for text in [
        "app='x'\nprimary_region='iad'\n[env]\nA='1'\n",
        "app='x'\n[build]\nbuild-target='t'\n",
    ] {
        assert_eq!(read(text).unwrap().app.as_deref(), Some("x"), "{text}");
    }
    let own = "app='x'\nregistry='r.example'\n[env]\nA='1'\n";
    let failure = read(own).unwrap_err();
    assert!(failure.message().contains("unknown field"), "{failure}");
}

#[test]
fn our_file_goes_before_flys_and_none_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        ProjectConfig::load(dir.path(), None).unwrap(),
        ProjectConfig::default()
    );
    std::fs::write(dir.path().join(FLY_NAME), "app='fly'\n").unwrap();
    std::fs::write(dir.path().join(NATIVE_NAME), "app='own'\n").unwrap();
    let config = ProjectConfig::load(dir.path(), None).unwrap();
    assert_eq!(config.app.as_deref(), Some("own"));
    let missing = dir.path().join("other.toml");
    assert_eq!(
        ProjectConfig::load(dir.path(), Some(&missing))
            .unwrap_err()
            .code(),
        1
    );
}

proptest! {
    /// Pieces of both grammars in any order: a configuration, or an error that names the file.
    #[test]
    fn any_text_is_a_configuration_or_a_message(pieces in proptest::collection::vec(prop_oneof![
        Just("app = \"a\"\n".to_owned()), Just("[build]\n".to_owned()), Just("args = { A = 1, B = true }\n".to_owned()),
        Just("[[mounts]]\nsource = \"s\"\n".to_owned()), Just("destination = \"/d\"\n".to_owned()), Just("compression = \"gzip:99\"\n".to_owned()),
        "\\PC{0,12}\n?", "[\\[\\]{}=\"'.# \n0-9e+-]{0,12}",
    ], 0..8)) {
        let text = pieces.concat();
        for name in [NATIVE_NAME, FLY_NAME] {
            if let Err(failure) = load(name, &text) {
                let message = format!("{failure:?}");
                prop_assert!(message.contains(name), "{}", message);
            }
        }
    }
}

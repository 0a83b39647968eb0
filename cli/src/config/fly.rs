//! The part of Fly's file that a build needs (facts from Fly's configuration reference). Each name in it is used, told or refused:
//! what Fly runs with, such as services and checks, is reported by name, since nothing here runs.

use super::native::{Scalar, texts};
use super::{BuildConfig, ProjectConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::{Table, Value};

/// Names that a Fly file has and our own has not: one of them tells a file of another name apart.
const FLY_ONLY: [&str; 24] = [
    "checks",
    "console_command",
    "deploy",
    "env",
    "experimental",
    "files",
    "host_dedication_key",
    "http_service",
    "kill_signal",
    "kill_timeout",
    "machine_checks",
    "metrics",
    "mount",
    "mounts",
    "primary_region",
    "processes",
    "restart",
    "service",
    "services",
    "statics",
    "swap_size_mb",
    "tls",
    "vm",
    "vms",
];
/// The same within `[build]`.
const FLY_ONLY_BUILD: [&str; 5] = [
    "build-target",
    "build_target",
    "builder",
    "buildpacks",
    "builtin",
];
/// Names that our own file has and a Fly file has not.
const NATIVE_ONLY: [&str; 3] = ["org", "region", "registry"];
/// Ways of Fly's to build without a Dockerfile.
const OTHER_BUILDERS: [&str; 3] = ["builder", "buildpacks", "builtin"];
/// What of a Fly file is used.
const USED: [&str; 3] = ["app", "build", "primary_region"];
/// What of its `[build]` is used.
const USED_BUILD: [&str; 9] = [
    "args",
    "build-target",
    "build_target",
    "builder",
    "buildpacks",
    "builtin",
    "dockerfile",
    "ignorefile",
    "image",
];

#[derive(Deserialize)]
struct Raw {
    app: Option<String>,
    primary_region: Option<String>,
    #[serde(default)]
    build: RawBuild,
}

#[derive(Deserialize, Default)]
struct RawBuild {
    dockerfile: Option<PathBuf>,
    #[serde(rename = "build-target", alias = "build_target", alias = "target")]
    target: Option<String>,
    image: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, Scalar>,
    ignorefile: Option<PathBuf>,
}

/// Whether the content of a file is a Fly file's, whatever the file's name.
pub(super) fn is_fly(text: &str) -> bool {
    let Ok(table) = text.parse::<Table>() else {
        return false;
    };
    let build = table.get("build").and_then(Value::as_table);
    let has = |names: &[&str]| names.iter().any(|name| table.contains_key(*name));
    let builds_as_fly =
        build.is_some_and(|build| FLY_ONLY_BUILD.iter().any(|it| build.contains_key(*it)));
    !has(&NATIVE_ONLY) && (has(&FLY_ONLY) || builds_as_fly)
}

pub(super) fn parse(text: &str) -> Result<ProjectConfig, toml::de::Error> {
    let raw: Raw = toml::from_str(text)?;
    let table: Table = toml::from_str(text)?;
    let build = table.get("build").and_then(Value::as_table);
    let in_build = |name: &&str| build.is_some_and(|build| build.contains_key(*name));
    Ok(ProjectConfig {
        path: None,
        app: raw.app,
        org: None,
        region: None,
        region_wish: raw.primary_region,
        registry: None,
        build: BuildConfig {
            dockerfile: raw.build.dockerfile,
            target: raw.build.target,
            image: None,
            args: texts(raw.build.args),
            ignorefile: raw.build.ignorefile,
            compression: None,
        },
        runs_image: raw.build.image,
        other_builder: OTHER_BUILDERS.iter().find(|name| in_build(name)).copied(),
        unused: unused(&table, build),
    })
}

/// Names that nothing here looks at, as they stand in the file.
fn unused(table: &Table, build: Option<&Table>) -> Vec<String> {
    let in_build = build.into_iter().flat_map(Table::keys);
    let in_build = in_build
        .filter(|name| !USED_BUILD.contains(&name.as_str()) && *name != "target")
        .map(|name| format!("build.{name}"));
    let whole = table
        .iter()
        .filter(|(name, _)| !USED.contains(&name.as_str()));
    let whole = whole.map(|(name, value)| {
        let tables = value
            .as_array()
            .is_some_and(|all| all.iter().any(Value::is_table));
        if value.is_table() || tables {
            format!("[{name}]")
        } else {
            name.clone()
        }
    });
    whole.chain(in_build).collect()
}

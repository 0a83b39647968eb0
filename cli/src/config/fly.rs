//! The part of `fly.toml` that a build needs (facts from Fly's configuration reference). What Fly runs with, such as
//! services and checks, is none of our business: unknown names are left alone here.

use super::native::{Scalar, texts};
use super::{BuildConfig, Mount, ProjectConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Raw {
    app: Option<String>,
    primary_region: Option<String>,
    #[serde(default)]
    build: RawBuild,
    #[serde(default)]
    mounts: Mounts,
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

/// One table in old files, an array of tables in newer ones.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Mounts {
    #[default]
    None,
    One(RawMount),
    Many(Vec<RawMount>),
}

#[derive(Deserialize)]
struct RawMount {
    source: Option<String>,
    destination: String,
}

pub(super) fn parse(text: &str) -> Result<ProjectConfig, toml::de::Error> {
    let raw: Raw = toml::from_str(text)?;
    let mounts = match raw.mounts {
        Mounts::None => Vec::new(),
        Mounts::One(mount) => vec![mount],
        Mounts::Many(mounts) => mounts,
    };
    Ok(ProjectConfig {
        path: None,
        app: raw.app,
        org: None,
        region: raw.primary_region,
        registry: None,
        build: BuildConfig {
            dockerfile: raw.build.dockerfile,
            target: raw.build.target,
            image: raw.build.image,
            args: texts(raw.build.args),
            ignorefile: raw.build.ignorefile,
            compression: None,
        },
        mounts: mounts
            .into_iter()
            .map(|mount| Mount {
                source: mount.source,
                destination: mount.destination,
            })
            .collect(),
    })
}

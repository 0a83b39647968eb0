//! The grammar of `slipway.toml`. Unknown names are refused.

use super::{BuildConfig, ProjectConfig};
use serde::Deserialize;
use slipway_core::compression::Compression;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Said when a name is unknown.
pub(super) const KNOWN_KEYS: &str = "known are app, org, region, registry, and in [build] dockerfile, target, image, args, ignorefile, compression";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    app: Option<String>,
    org: Option<String>,
    region: Option<String>,
    registry: Option<String>,
    #[serde(default)]
    build: RawBuild,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawBuild {
    dockerfile: Option<PathBuf>,
    target: Option<String>,
    image: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, Scalar>,
    ignorefile: Option<PathBuf>,
    compression: Option<Compression>,
}

/// A build argument: people write numbers and booleans without quotes.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Scalar {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Scalar {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
        }
    }
}

/// Build arguments as text.
pub(super) fn texts(args: BTreeMap<String, Scalar>) -> BTreeMap<String, String> {
    args.into_iter()
        .map(|(name, value)| (name, value.into_text()))
        .collect()
}

pub(super) fn parse(text: &str) -> Result<ProjectConfig, toml::de::Error> {
    let raw: Raw = toml::from_str(text)?;
    Ok(ProjectConfig {
        path: None,
        app: raw.app,
        org: raw.org,
        region: raw.region,
        region_wish: None,
        registry: raw.registry,
        build: BuildConfig {
            dockerfile: raw.build.dockerfile,
            target: raw.build.target,
            image: raw.build.image,
            args: texts(raw.build.args),
            ignorefile: raw.build.ignorefile,
            compression: raw.build.compression,
        },
        runs_image: None,
        other_builder: None,
        unused: Vec::new(),
    })
}

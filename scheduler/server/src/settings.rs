//! Settings of `slipwayd serve`, as the operator writes them.
//!
//! Must not know: where the file lies, or how it is read (the CLI parses it).

use crate::farm::HostSettings;
use crate::keys::VaultSettings;
use serde::Deserialize;
use slipway_core::ceilings::{Ceilings, PoolShare};
use slipway_core::limits::BUILDER_IDLE_DEFAULT;
use slipway_core::quota::{BuildRetention, BuilderSize, check_idle};
use slipway_core::units::ByteSize;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that may be set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeSettings {
    /// Directory of the database, the keys and the certificates. Made (0700) if it is not there.
    pub data_dir: PathBuf,
    /// GraphQL. Port 0 takes a free one; `addresses.json` in the data directory tells which.
    #[serde(default = "default_api")]
    pub listen_api: SocketAddr,
    /// The Docker gateway.
    #[serde(default = "default_docker")]
    pub listen_docker: SocketAddr,
    /// The BuildKit gateway.
    #[serde(default = "default_buildkit")]
    pub listen_buildkit: SocketAddr,
    /// Host names and addresses under which clients reach this server: they go into its certificate, and the first one is
    /// what clients are told. Loopback names are always in the certificate.
    #[serde(default)]
    pub public_names: Vec<String>,
    /// The hosts that run builders.
    #[serde(default)]
    pub hosts: Vec<HostEntry>,
    /// What an org gets unless it asks for something else.
    #[serde(default)]
    pub builder: BuilderDefaults,
    /// The most that any org may have, whatever it asks for.
    #[serde(default)]
    pub limits: LimitSettings,
    /// Where the keys of encrypted volumes are kept.
    #[serde(default)]
    pub keys: KeySettings,
    /// How registries are asked for the tokens that pushes and deploys are lent.
    #[serde(default)]
    pub registries: RegistrySettings,
}

/// How registries are asked for tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Private addresses and networks at which the server may ask registries and their token servers for tokens, as `10.1.2.3` or
    /// `10.1.0.0/16`. Empty: public ones alone. A push to a registry that may not be asked has the org's stored password instead.
    pub allow: Vec<String>,
    /// Registries without TLS, or with a certificate that nobody vouches for, as `insecure_registries` of `host.toml`. Empty.
    pub insecure: Vec<String>,
    /// PEM files of certificates that are trusted beside the system's: those of a private CA. Read when the server starts. Empty.
    pub ca_files: Vec<PathBuf>,
}

/// A key store: `store = "embedded"` or `store = "vault"`, and what that needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "store", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeySettings {
    /// In the control plane's own database, sealed under a master key.
    Embedded {
        /// File with the master key (mode 0600): 32 bytes, or 64 hexadecimal digits. Absent: the systemd credential
        /// `slipway-master-key`, else the environment variable `SLIPWAY_MASTER_KEY`, else a file in `data_dir` that is made.
        #[serde(default)]
        master_key_file: Option<PathBuf>,
        /// Those before it; what they sealed is sealed anew at the start.
        #[serde(default)]
        previous_master_key_files: Vec<PathBuf>,
    },
    /// In HashiCorp Vault or OpenBao.
    Vault(VaultSettings),
}

impl Default for KeySettings {
    fn default() -> Self {
        Self::Embedded {
            master_key_file: None,
            previous_master_key_files: Vec::new(),
        }
    }
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Its name, unique.
    pub name: String,
    /// Label of its region.
    pub region: String,
    /// Where `slipwayd host` listens.
    pub socket: PathBuf,
}

/// What a new org's builders are like.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuilderDefaults {
    /// Region; the first host's by default.
    pub region: Option<String>,
    /// `amd64` or `arm64`; this computer's by default.
    pub arch: Option<String>,
    /// Processor limit in thousandths.
    pub cpu_millis: u32,
    /// Memory limit.
    pub memory_bytes: u64,
    /// Size of the cache volume.
    pub volume_bytes: u64,
    /// Seconds without activity after which a builder ends itself.
    pub idle_seconds: u64,
}

impl Default for BuilderDefaults {
    fn default() -> Self {
        Self {
            region: None,
            arch: None,
            cpu_millis: 2000,
            memory_bytes: ByteSize::gib(4).0,
            volume_bytes: ByteSize::gib(50).0,
            idle_seconds: BUILDER_IDLE_DEFAULT.as_secs(),
        }
    }
}

/// The most that any org may have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Processor limit of one builder, in thousandths.
    pub builder_cpu_millis: u32,
    /// Memory limit of one builder.
    pub builder_memory_bytes: u64,
    /// Size of one builder's cache volume.
    pub builder_volume_bytes: u64,
    /// Volumes and snapshots of one org together, over all hosts.
    pub org_pool_bytes: u64,
    /// What one org may have of any one host's pool, in percent. A builder's cache of the usual size is had in any case.
    pub org_pool_percent: u32,
    /// Ended builds that one org may keep.
    pub org_builds_kept: u32,
    /// Seconds for which one org may keep them.
    pub org_builds_kept_seconds: u64,
    /// Bytes of the events of one org's builds.
    pub org_build_events_bytes: u64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        let most = Ceilings::default();
        Self {
            builder_cpu_millis: most.builder.cpu_millis,
            builder_memory_bytes: most.builder.memory.0,
            builder_volume_bytes: most.builder.volume.0,
            org_pool_bytes: most.pool.bytes.0,
            org_pool_percent: most.pool.percent,
            org_builds_kept: most.retention.count,
            org_builds_kept_seconds: most.retention.age.as_secs(),
            org_build_events_bytes: most.build_events.0,
        }
    }
}

/// Why settings are not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// A builder of that size, or an idle time, that the quotas do not allow.
    #[error("builder: {0}")]
    Builder(#[from] slipway_core::quota::QuotaError),
    /// Two hosts have one name.
    #[error("two hosts are called '{0}'")]
    HostTwice(String),
    /// Two hosts have one socket, so they are one host.
    #[error(
        "hosts '{first}' and '{second}' have the same socket, so they are one host (hint: leave one of them out)"
    )]
    SocketTwice {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// Not a share.
    #[error("limits.org_pool_percent: {0} is not between 1 and 100")]
    Percent(u32),
    /// An empty or unusable word.
    #[error("{field}: '{value}' will not do (lower-case letters, digits and hyphens)")]
    Word {
        /// Which setting.
        field: &'static str,
        /// What it holds.
        value: String,
    },
}

fn default_api() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 7443).into()
}

fn default_docker() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 2376).into()
}

fn default_buildkit() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 8372).into()
}

impl ServeSettings {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        if !(1..=100).contains(&self.limits.org_pool_percent) {
            return Err(InvalidSettings::Percent(self.limits.org_pool_percent));
        }
        self.ceilings().check_builder_size(&self.builder.size())?;
        check_idle(self.builder.idle())?;
        let mut names = HashSet::new();
        for (index, host) in self.hosts.iter().enumerate() {
            let before = self.hosts.iter().take(index);
            if let Some(first) = before.clone().find(|other| other.socket == host.socket)
                && first.name != host.name
            {
                return Err(InvalidSettings::SocketTwice {
                    first: first.name.clone(),
                    second: host.name.clone(),
                });
            }
            for (field, value) in [("hosts.name", &host.name), ("hosts.region", &host.region)] {
                if !is_label(value) {
                    return Err(InvalidSettings::Word {
                        field,
                        value: value.clone(),
                    });
                }
            }
            if !names.insert(&host.name) {
                return Err(InvalidSettings::HostTwice(host.name.clone()));
            }
        }
        let words = [
            ("builder.region", &self.builder.region),
            ("builder.arch", &self.builder.arch),
        ];
        for (field, value) in words {
            if let Some(value) = value.as_ref().filter(|value| !is_label(value)) {
                return Err(InvalidSettings::Word {
                    field,
                    value: value.clone(),
                });
            }
        }
        Ok(())
    }

    /// The most that any org may have, as the quotas know it.
    pub fn ceilings(&self) -> Ceilings {
        let limits = &self.limits;
        Ceilings {
            builder: BuilderSize {
                cpu_millis: limits.builder_cpu_millis,
                memory: ByteSize(limits.builder_memory_bytes),
                volume: ByteSize(limits.builder_volume_bytes),
            },
            retention: BuildRetention {
                count: limits.org_builds_kept,
                age: Duration::from_secs(limits.org_builds_kept_seconds),
            },
            build_events: ByteSize(limits.org_build_events_bytes),
            pool: PoolShare {
                bytes: ByteSize(limits.org_pool_bytes),
                percent: limits.org_pool_percent,
                cache: self.builder.size().volume,
            },
        }
    }

    /// Region of a new org's builders.
    pub fn default_region(&self) -> String {
        let first = || self.hosts.first().map(|host| host.region.clone());
        self.builder
            .region
            .clone()
            .or_else(first)
            .unwrap_or_else(|| "local".to_owned())
    }

    /// Architecture of a new org's builders.
    pub fn default_arch(&self) -> String {
        self.builder.arch.clone().unwrap_or_else(|| {
            match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned()
        })
    }

    /// For the farm.
    pub(crate) fn host_settings(&self) -> Vec<HostSettings> {
        self.hosts
            .iter()
            .cloned()
            .map(
                |HostEntry {
                     name,
                     region,
                     socket,
                 }| HostSettings {
                    name,
                    region,
                    socket,
                },
            )
            .collect()
    }
}

impl BuilderDefaults {
    /// As the quotas know it.
    pub fn size(&self) -> BuilderSize {
        BuilderSize {
            cpu_millis: self.cpu_millis,
            memory: ByteSize(self.memory_bytes),
            volume: ByteSize(self.volume_bytes),
        }
    }

    /// As a duration.
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
}

/// A word that may be a slug, an app, a region or an architecture: 1 to 63 lower-case letters, digits and inner hyphens,
/// so that it is a DNS label too.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ServeSettings {
        serde_json::from_str(r#"{"data_dir": "/var/lib/slipway"}"#).expect("minimal settings")
    }

    #[test]
    fn a_data_dir_is_enough_and_listens_on_loopback_only() {
        let settings = settings();
        assert_eq!(settings.check(), Ok(()));
        for address in [
            settings.listen_api,
            settings.listen_docker,
            settings.listen_buildkit,
        ] {
            assert!(address.ip().is_loopback());
        }
        assert_eq!(settings.default_region(), "local");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        assert!(serde_json::from_str::<ServeSettings>(r#"{"data_dir": "/x", "dta": 1}"#).is_err());
        let mut twice = settings();
        let host = HostEntry {
            name: "a".into(),
            region: "r".into(),
            socket: "/s".into(),
        };
        twice.hosts = vec![host.clone(), host];
        assert_eq!(twice.check(), Err(InvalidSettings::HostTwice("a".into())));
        twice.hosts[1].name = "b".into();
        let one = InvalidSettings::SocketTwice {
            first: "a".into(),
            second: "b".into(),
        };
        assert_eq!(twice.check(), Err(one));
        let mut small = settings();
        small.builder.memory_bytes = 1;
        assert!(matches!(small.check(), Err(InvalidSettings::Builder(_))));
    }

    #[test]
    fn labels_are_dns_labels() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ü", &"x".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}

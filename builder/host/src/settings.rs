//! The settings of a host: read once, turned into values that are known to be valid.
//!
//! Must not know: how anything is done with them.

use crate::address::{Allowed, Ipv4Net};
use crate::disk::DiskCap;
use crate::limits::{DISK_RATE_MIN, MACHINE_IDS, MACHINES_MAX};
use crate::mirrors::{InvalidMirror, Mirrors};
use crate::rate::BitRate;
use serde::{Deserialize, Serialize};
use slipway_core::units::ByteSize;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Everything that can be set about a host. Each has a default, so an empty document is a working host; an
/// unknown name is an error.
///
/// What the administrator must know besides:
/// - `kernel.pid_max` is raised to what the kernel can have.
/// - Machines are behind a network namespace of their own, the router, which the file `router` in
///   [`run_dir`](Self::run_dir) keeps. Its firewall is the daemon's alone.
/// - `net.ipv4.ip_forward` is left alone. Where it is 0, only the interfaces by which machines reach the world forward,
///   and the host's table drops what is not a machine's. A host that routes for others has it at 1.
/// - The only firewall table of the host that is touched is [`nft_table`](Self::nft_table). If another table's forward
///   chain drops by default (Docker's `DOCKER-USER`/`FORWARD`, firewalld, ufw), machines have no network until that
///   table lets [`interface`](Self::interface) through; the daemon warns of it at its start.
/// - On cgroup v2 the machines' cgroups are made below [`cgroup_parent`](Self::cgroup_parent), from the root.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostSettings {
    /// What must survive a reboot: machine records, sockets, layers. Mode 0700. `/var/lib/slipway/host`.
    pub state_dir: PathBuf,
    /// What must not: mounts, runc's state. Everybody must be able to pass through the directories above it. `/run/slipway`.
    pub run_dir: PathBuf,
    /// The host API's socket. `/run/slipway/host.sock`.
    pub socket: PathBuf,
    /// Group that may open the socket (its mode is 0660). `root`.
    pub socket_group: String,
    /// Users, besides root, whose processes may speak on the socket. Empty.
    pub allowed_uids: Vec<u32>,
    /// The same by name; an unknown name is an error. Empty.
    pub allowed_users: Vec<String>,
    /// Where volumes lie, or, with [`lvm`](Self::lvm), what belongs to them besides their blocks. `/var/lib/slipway/pool`.
    pub pool_dir: PathBuf,
    /// A thin pool of LVM2 to take volumes from. Absent: they are images in `pool_dir`.
    pub lvm: Option<LvmSettings>,
    /// What the pool may promise, as `500GiB` or in bytes. Absent: what the driver finds on the disk.
    #[serde(deserialize_with = "optional_size")]
    pub pool_capacity: Option<ByteSize>,
    /// Whether volumes are encrypted: `off` or `required`. `off`.
    pub encryption: EncryptionSetting,
    /// The builder image, a squashfs. `/var/cache/slipway/image/base.squashfs`.
    pub image_base: PathBuf,
    /// How the image is mounted. `auto`.
    pub image_mount: ImageMount,
    /// The machine's PID 1, a static program. `/usr/lib/slipway/slipway-guest`.
    pub guest_binary: PathBuf,
    /// How machines are isolated: `auto`, `vm` or `sandbox`. `auto`.
    pub isolation: IsolationSetting,
    /// Seconds without any use after which a virtual machine is paused until its next use. Its memory stays taken.
    /// Absent: never.
    pub pause_after_s: Option<u64>,
    /// What the memory of virtual machines that ended for want of use may take in `state_dir`, as `16GiB`, so that their next start goes on
    /// from it instead of booting. Absent: none is kept.
    #[serde(deserialize_with = "optional_size")]
    pub kept_memory: Option<ByteSize>,
    /// QEMU, for virtual machines. `qemu-system-x86_64`, looked up in `PATH`.
    pub qemu: PathBuf,
    /// What virtual machines boot: `vmlinuz`, `initrd`, `modules.squashfs`. `/var/cache/slipway/image/kernel`.
    pub kernel_dir: PathBuf,
    /// The OCI runtime. `runc`, looked up in `PATH`.
    pub runc: PathBuf,
    /// First host id of the machines' id ranges (65,536 each, one range per slot). `1073741824` (2^30).
    pub id_base: u32,
    /// How many machines may run at once, at most 1024. `1024`.
    pub machines_max: u16,
    /// Addresses of machines. The first is the gateway, the last the router's own. `10.209.0.0/16`.
    pub machine_cidr: Ipv4Net,
    /// Name of the host's link to the router, which has the gateway address. `slipway0`.
    pub interface: String,
    /// What the router's end of each machine's link is named, before a number. At most 10 characters; `interface` must
    /// not begin with it. `slw`.
    pub veth_prefix: String,
    /// Name of the firewall tables (family `inet`), one in the router and one on the host. `slipway`.
    pub nft_table: String,
    /// Cgroup below which each machine has its own. No two daemons of a computer have the same. `slipway`.
    pub cgroup_parent: String,
    /// What machines may reach although it is the host's or in a private range: `IP:PORT` (TCP) or `IP:PORT/udp`.
    /// The host's resolvers on port 53 are added by themselves. Empty.
    pub allow: Vec<Allowed>,
    /// Further ranges machines may not reach, as `198.51.100.0/24`. Empty.
    pub deny: Vec<Ipv4Net>,
    /// TCP ports that machines reach at allowed destinations only. `[25]`: nobody's builds send mail.
    pub closed_ports: Vec<u16>,
    /// What the host's network carries each way, as `1Gbit`, of which machines that want more than there is have equal shares.
    /// Absent: a little less than what the interface of the default route says of itself. Many virtual network cards say nothing;
    /// then one machine can take all of it, and the daemon warns of it at its start.
    pub network_rate: Option<BitRate>,
    /// What one machine may send, and receive, at most, as `200Mbit`; what it exchanges with the host itself does not count.
    /// Absent: all that others leave.
    pub machine_network_rate: Option<BitRate>,
    /// What one machine may read from, and write to, its volume in a second at most, as `200MiB`. Sandboxes have it on cgroup v2
    /// alone. It counts from a machine's next start. Absent: all that others leave.
    #[serde(deserialize_with = "optional_size")]
    pub machine_disk_rate: Option<ByteSize>,
    /// The same in operations. Absent: all that others leave.
    pub machine_disk_operations: Option<std::num::NonZero<u32>>,
    /// Resolvers for machines. Absent: the host's own.
    pub resolvers: Option<Vec<Ipv4Addr>>,
    /// Pull-through mirrors of registries by the registry's host, as `{ "docker.io" = "http://10.1.2.3:5000", "ghcr.io" = "http://10.1.2.3:5001" }`; a list is of Docker
    /// Hub's. Nothing else is to be set for them: machines reach those that are named by address, and speak to them as the URL says. Empty.
    pub registry_mirrors: Mirrors,
    /// Registries without TLS, or with a certificate that nobody vouches for, as dockerd names them: `HOST:PORT`, `HOST`, or a network. Empty.
    pub insecure_registries: Vec<String>,
    /// PEM files of certificates that machines trust for pulls, pushes and `ADD`, beside the image's own: those of a private CA. A changed
    /// file counts from a machine's next start. Empty.
    pub ca_files: Vec<PathBuf>,
    /// HTTP proxy of machines for what has no TLS, as `http://10.1.2.3:3128`. Its address must be in `allow` if it is private. Absent: none.
    pub http_proxy: Option<String>,
    /// The same for what has TLS. Absent: none.
    pub https_proxy: Option<String>,
    /// Hosts, domains (`.corp.example`) and networks that machines reach without the proxy. Empty.
    pub no_proxy: Vec<String>,
    /// How builders that start on an empty cache keep their images; one that has a cache keeps what that was made with. `classic`.
    pub image_store: ImageStoreSetting,
    /// Image that `--sbom` has list what is in an image, as `registry.example/tools/scanner:1`. Absent: who asks must name one.
    pub sbom_scanner: Option<String>,
    /// What a machine may write outside its volume (and `/tmp`), at most half of its memory, as which it counts. `1GiB`.
    #[serde(deserialize_with = "size")]
    pub scratch: ByteSize,
    /// Processor it may give out, in thousandths. Absent: all.
    pub cpu_millis: Option<u32>,
    /// Memory it may give out. Absent: all.
    #[serde(deserialize_with = "optional_size")]
    pub memory: Option<ByteSize>,
}

/// A thin pool.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LvmSettings {
    /// The volume group.
    pub volume_group: String,
    /// The thin pool in it.
    pub thin_pool: String,
    /// How many times its size may be promised. `1.0`, at which every promise can be kept.
    #[serde(default = "no_oversubscription")]
    pub oversubscription: f64,
}

fn no_oversubscription() -> f64 {
    1.0
}

/// Whether volumes are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncryptionSetting {
    /// Never.
    #[default]
    Off,
    /// Always; a host that cannot is refused at its start.
    Required,
}

/// How machines are walled off on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationSetting {
    /// A virtual machine where KVM works, else a sandbox. Who demands a virtual machine gets one either way, if QEMU is
    /// there.
    #[default]
    Auto,
    /// Virtual machines only, emulated if need be.
    Vm,
    /// Sandboxes only.
    Sandbox,
}

/// Where dockerd keeps images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageStoreSetting {
    /// In its own store on overlay2.
    #[default]
    Classic,
    /// In containerd's. Its BuildKit then has the exporters `image`, `oci` and `docker` and all cache exporters.
    Containerd,
}

/// How the image is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageMount {
    /// The squashfs itself if the kernel can idmap it (6.2 and later), else as `unpacked`.
    #[default]
    Auto,
    /// Unpacked once into the state directory (needs a file system that can be idmapped, such as ext4 or xfs).
    Unpacked,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/slipway/host".into(),
            run_dir: "/run/slipway".into(),
            socket: "/run/slipway/host.sock".into(),
            socket_group: "root".into(),
            allowed_uids: Vec::new(),
            allowed_users: Vec::new(),
            pool_dir: "/var/lib/slipway/pool".into(),
            lvm: None,
            pool_capacity: None,
            encryption: EncryptionSetting::Off,
            image_base: "/var/cache/slipway/image/base.squashfs".into(),
            image_mount: ImageMount::Auto,
            guest_binary: "/usr/lib/slipway/slipway-guest".into(),
            isolation: IsolationSetting::default(),
            pause_after_s: None,
            kept_memory: None,
            qemu: "qemu-system-x86_64".into(),
            kernel_dir: "/var/cache/slipway/image/kernel".into(),
            runc: "runc".into(),
            id_base: 1 << 30,
            machines_max: MACHINES_MAX,
            machine_cidr: Ipv4Net::new(Ipv4Addr::new(10, 209, 0, 0), 16),
            interface: "slipway0".into(),
            veth_prefix: "slw".into(),
            nft_table: "slipway".into(),
            cgroup_parent: "slipway".into(),
            allow: Vec::new(),
            deny: Vec::new(),
            closed_ports: vec![25],
            network_rate: None,
            machine_network_rate: None,
            machine_disk_rate: None,
            machine_disk_operations: None,
            resolvers: None,
            registry_mirrors: Mirrors::default(),
            insecure_registries: Vec::new(),
            ca_files: Vec::new(),
            http_proxy: None,
            https_proxy: None,
            no_proxy: Vec::new(),
            image_store: ImageStoreSetting::default(),
            sbom_scanner: None,
            scratch: ByteSize::gib(1),
            cpu_millis: None,
            memory: None,
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// A name would not be accepted by the kernel, nft or a path.
    #[error(
        "'{value}' is not a name for {setting} (use a-z, 0-9, '-', '_', at most {max} characters)"
    )]
    Name {
        /// Which setting.
        setting: &'static str,
        /// What it was.
        value: String,
        /// How long it may be.
        max: usize,
    },
    /// The link to the router would count as a machine's.
    #[error("interface '{interface}' must not begin with veth_prefix '{veth_prefix}'")]
    LikeAMachines {
        /// The one.
        interface: String,
        /// The other.
        veth_prefix: String,
    },
    /// A number is out of its range.
    #[error("machines_max must be between 1 and {MACHINES_MAX}")]
    MachinesMax,
    /// The address range is too small.
    #[error("machine_cidr {cidr} has no room for {machines} machines and a gateway")]
    CidrTooSmall {
        /// The range.
        cidr: Ipv4Net,
        /// How many are wanted.
        machines: u16,
    },
    /// The id ranges go over the end.
    #[error(
        "id_base {0} leaves no room for the machines' id ranges, or overlaps the host's own ids"
    )]
    IdBase(u32),
    /// No machine could work with so little.
    #[error("machine_disk_rate must be at least {DISK_RATE_MIN}")]
    DiskRate,
    /// Nobody has that name here.
    #[error("allowed_users: there is no user '{0}' (hint: useradd --system '{0}')")]
    User(String),
    /// Not the URL of a proxy.
    #[error("{setting}: '{value}' is not the URL of a proxy (hint: http://HOST:PORT)")]
    Proxy {
        /// Which setting.
        setting: &'static str,
        /// What it was.
        value: String,
    },
    /// A mirror that cannot be one.
    #[error("registry_mirrors: {0}")]
    Mirror(#[from] InvalidMirror),
    /// A path must be absolute.
    #[error("{setting} must be an absolute path")]
    RelativePath {
        /// Which setting.
        setting: &'static str,
    },
}

impl HostSettings {
    /// The host's ids that machines have.
    pub(crate) fn machine_ids(&self) -> std::ops::Range<u64> {
        let first = u64::from(self.id_base);
        first..first + u64::from(self.machines_max) * u64::from(MACHINE_IDS)
    }

    /// What machines may reach although it is private: what is said, and the mirrors.
    pub(crate) fn reachable(&self) -> Vec<Allowed> {
        let mut all = self.allow.clone();
        all.extend(self.registry_mirrors.addresses());
        all
    }

    /// Registries that are spoken to without TLS, or without a look at their certificates.
    pub(crate) fn insecure(&self) -> Vec<String> {
        let mut all = self.insecure_registries.clone();
        for mirror in self.registry_mirrors.insecure() {
            if !all.contains(&mirror) {
                all.push(mirror);
            }
        }
        all
    }

    /// What one machine may take of the disk.
    pub(crate) fn disk_cap(&self) -> DiskCap {
        DiskCap {
            bytes_per_s: self.machine_disk_rate.map(|ByteSize(bytes)| bytes),
            operations_per_s: self.machine_disk_operations.map(std::num::NonZero::get),
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`InvalidSettings`] that names the setting.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        for (setting, value, max) in [
            ("interface", &self.interface, 15),
            ("veth_prefix", &self.veth_prefix, 10),
            ("nft_table", &self.nft_table, 32),
            ("cgroup_parent", &self.cgroup_parent, 64),
        ] {
            check_name(setting, value, max)?;
        }
        if self.interface.starts_with(&self.veth_prefix) {
            return Err(InvalidSettings::LikeAMachines {
                interface: self.interface.clone(),
                veth_prefix: self.veth_prefix.clone(),
            });
        }
        for (setting, path) in [
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("socket", &self.socket),
            ("pool_dir", &self.pool_dir),
        ] {
            if !path.is_absolute() {
                return Err(InvalidSettings::RelativePath { setting });
            }
        }
        for (setting, proxy) in [
            ("http_proxy", &self.http_proxy),
            ("https_proxy", &self.https_proxy),
        ] {
            if let Some(value) = proxy.as_ref().filter(|value| !is_proxy(value)) {
                return Err(InvalidSettings::Proxy {
                    setting,
                    value: value.chars().take(80).collect(),
                });
            }
        }
        self.registry_mirrors.check()?;
        if !(1..=MACHINES_MAX).contains(&self.machines_max) {
            return Err(InvalidSettings::MachinesMax);
        }
        // The network's own address, the gateway and the router's are not a machine's.
        if self.machine_cidr.size() < u64::from(self.machines_max) + 3 {
            return Err(InvalidSettings::CidrTooSmall {
                cidr: self.machine_cidr,
                machines: self.machines_max,
            });
        }
        if self
            .machine_disk_rate
            .is_some_and(|rate| rate < DISK_RATE_MIN)
        {
            return Err(InvalidSettings::DiskRate);
        }
        if self.id_base < MACHINE_IDS
            || self.machine_ids().end > u64::from(i32::MAX.cast_unsigned())
        {
            return Err(InvalidSettings::IdBase(self.id_base));
        }
        Ok(())
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`, with a slash at most after it. A name and password in it would be every tenant's to read.
fn is_proxy(value: &str) -> bool {
    let rest = value
        .strip_prefix("http://")
        .or_else(|| value.strip_prefix("https://"));
    rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .and_then(|rest| rest.rsplit_once(':'))
        .is_some_and(|(host, port)| {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-.[]:".contains(c))
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

fn check_name(setting: &'static str, value: &str, max: usize) -> Result<(), InvalidSettings> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let begins_well = value.starts_with(|c: char| c.is_ascii_lowercase());
    if begins_well && value.len() <= max && value.bytes().all(fine) {
        Ok(())
    } else {
        Err(InvalidSettings::Name {
            setting,
            value: value.chars().take(80).collect(),
            max,
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

fn size<'de, D: serde::Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
    match SizeText::deserialize(from)? {
        SizeText::Bytes(bytes) => Ok(ByteSize(bytes)),
        SizeText::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn optional_size<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<ByteSize>, D::Error> {
    size(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_document_is_the_default() {
        let read: HostSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(read, HostSettings::default());
        assert_eq!(read.check(), Ok(()));
    }

    #[test]
    fn reads_sizes_addresses_and_refuses_unknown_names() {
        let read: HostSettings = serde_json::from_str(
            r#"{"pool_capacity": "2GiB", "scratch": 4096, "allow": ["10.209.0.1:5000"], "machine_cidr": "10.1.0.0/24"}"#,
        )
        .unwrap();
        assert_eq!(read.pool_capacity, Some(ByteSize::gib(2)));
        assert_eq!(read.scratch, ByteSize(4096));
        assert!(serde_json::from_str::<HostSettings>(r#"{"statedir": "/x"}"#).is_err());
        assert!(serde_json::from_str::<HostSettings>(r#"{"allow": ["127.0.0.1:80"]}"#).is_err());
        assert!(
            serde_json::from_str::<HostSettings>(r#"{"machine_cidr": "10.1.0.1/24"}"#).is_err()
        );
    }

    #[test]
    fn refuses_what_cannot_work() {
        let with = |change: fn(&mut HostSettings)| {
            let mut settings = HostSettings::default();
            change(&mut settings);
            settings.check().is_err()
        };
        assert!(with(|s| s.interface = "a name that is long".into()));
        assert!(with(|s| s.nft_table = "x; flush ruleset".into()));
        assert!(with(|s| s.cgroup_parent = "../up".into()));
        assert!(with(|s| {
            s.interface = "atk0".into();
            s.veth_prefix = "atk".into();
        }));
        assert!(with(|s| s.machine_disk_rate = Some(ByteSize(1000))));
        assert!(with(|s| s.machines_max = 0));
        assert!(with(|s| s.id_base = 1000));
        assert!(with(|s| s.id_base = u32::MAX - 5));
        assert!(with(
            |s| s.machine_cidr = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 24)
        ));
        assert!(with(|s| s.run_dir = "run".into()));
    }
}

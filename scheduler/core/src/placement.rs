//! Chooses the host of a new builder. Pure: same input, same choice.
//!
//! A cache is worth more than balance, so a builder that has a volume goes where that volume is. Otherwise: hosts of
//! the region and the architecture, that answer, that isolate machines as demanded, that have the memory and have not
//! promised too much of it ([`MEMORY_OVERCOMMIT`]), and whose pool can promise the volume, the least loaded first.
//! Processors are shared in time, so however many are asked for, a host gives what it has.
//!
//! Must not know: how load is measured, or how a choice is recorded.

mod volumes;

pub use volumes::{VolumeRequest, place_volume};

use crate::host_api::MachineKind;
use crate::id::HostId;
use crate::isolation::Isolation;
use crate::units::ByteSize;

/// Builders that shall run on a host may together be promised this many times its memory: it is a limit and not a
/// reservation, few builders use all of theirs at once, and a host gives none more than it has itself.
pub const MEMORY_OVERCOMMIT: u64 = 4;

/// A host as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLoad {
    /// Which.
    pub host: HostId,
    /// Label of its region.
    pub region: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// It answers.
    pub reachable: bool,
    /// What its pool can still promise.
    pub pool_free: ByteSize,
    /// Memory it may give out.
    pub memory: ByteSize,
    /// Memory promised to builders that are placed there.
    pub memory_promised: ByteSize,
    /// Kinds of machines that can be had there.
    pub kinds: Vec<MachineKind>,
    /// New volumes there are encrypted.
    pub encrypts: bool,
}

impl HostLoad {
    fn has_memory_for(&self, more: ByteSize) -> bool {
        let promised = self.memory_promised.0.saturating_add(more.0);
        promised <= self.may_promise().0
    }

    fn may_promise(&self) -> ByteSize {
        ByteSize(self.memory.0.saturating_mul(MEMORY_OVERCOMMIT))
    }
}

/// What is to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRequest {
    /// Label of the region wanted.
    pub region: String,
    /// Architecture wanted.
    pub arch: String,
    /// Size of the volume it will need.
    pub volume: ByteSize,
    /// Memory it may use.
    pub memory: ByteSize,
    /// Where its volume is, if it has one.
    pub volume_host: Option<HostId>,
    /// How it must be walled off.
    pub isolation: Isolation,
}

/// Nowhere to place it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The caller's fault: no host of that region and architecture is known.
    #[error("no host of architecture '{arch}' in region '{region}' (there are: {known})")]
    NoSuchPlace {
        /// Region asked for.
        region: String,
        /// Architecture asked for.
        arch: String,
        /// The places there are, as `region/arch`.
        known: String,
    },
    /// Ours: the hosts of that place do not answer.
    #[error("no host in region '{region}' answers")]
    NoneReachable {
        /// Region asked for.
        region: String,
    },
    /// The operator's to change: no host of that place walls machines off as demanded.
    #[error("no host in region '{region}' has machines with isolation '{isolation}'")]
    NoIsolation {
        /// Region asked for.
        region: String,
        /// What is demanded.
        isolation: Isolation,
    },
    /// The caller's fault: no host of that region is known.
    #[error("no host in region '{region}' (there are: {known})")]
    NoSuchRegion {
        /// Region asked for.
        region: String,
        /// The regions there are.
        known: String,
    },
    /// The operator's to change: no host of that region encrypts volumes, or all do.
    #[error("no host in region '{region}' makes {} volumes", if *.encrypted { "encrypted" } else { "unencrypted" })]
    NoEncryption {
        /// Region asked for.
        region: String,
        /// What is demanded.
        encrypted: bool,
    },
    /// The caller's demand: every host of that region has a volume of that name.
    #[error("every host in region '{region}' has a volume of that name")]
    NotUnique {
        /// Region asked for.
        region: String,
    },
    /// The caller's demand: no host of that place may promise so much memory.
    #[error(
        "no host in region '{region}' can give a builder {memory} of memory (the largest has {largest})"
    )]
    NoSuchMemory {
        /// Region asked for.
        region: String,
        /// Memory asked for.
        memory: ByteSize,
        /// What the largest host has.
        largest: ByteSize,
    },
    /// Ours: the memory of that place is promised out.
    #[error(
        "the builders in region '{region}' have its memory promised {MEMORY_OVERCOMMIT} times over"
    )]
    NoMemory {
        /// Region asked for.
        region: String,
    },
    /// Ours: the pools of that place are promised out.
    #[error("no host in region '{region}' has {volume} of its pool left")]
    NoSpace {
        /// Region asked for.
        region: String,
        /// Size asked for.
        volume: ByteSize,
    },
}

/// The host for `request`.
///
/// # Errors
/// [`PlacementError`], which tells a wrong place from a full or silent one.
pub fn place(request: &PlacementRequest, hosts: &[HostLoad]) -> Result<HostId, PlacementError> {
    if let Some(host) = &request.volume_host {
        return Ok(host.clone());
    }
    let region = request.region.clone();
    let mut there: Vec<&HostLoad> = hosts
        .iter()
        .filter(|h| h.region == request.region && h.arch == request.arch)
        .collect();
    if there.is_empty() {
        let arch = request.arch.clone();
        return Err(PlacementError::NoSuchPlace {
            region,
            arch,
            known: known_places(hosts),
        });
    }
    there.retain(|h| h.reachable);
    if there.is_empty() {
        return Err(PlacementError::NoneReachable { region });
    }
    there.retain(|h| request.isolation.is_met_by(&h.kinds));
    if there.is_empty() {
        let isolation = request.isolation;
        return Err(PlacementError::NoIsolation { region, isolation });
    }
    let largest = there.iter().map(|h| h.memory).max().unwrap_or(ByteSize(0));
    there.retain(|h| h.may_promise() >= request.memory);
    if there.is_empty() {
        let memory = request.memory;
        return Err(PlacementError::NoSuchMemory {
            region,
            memory,
            largest,
        });
    }
    there.retain(|h| h.has_memory_for(request.memory));
    if there.is_empty() {
        return Err(PlacementError::NoMemory { region });
    }
    there.retain(|h| h.pool_free >= request.volume);
    there
        .into_iter()
        .min_by(|a, b| {
            load_per_mille(a)
                .cmp(&load_per_mille(b))
                .then(b.pool_free.cmp(&a.pool_free))
                .then(a.host.cmp(&b.host))
        })
        .map(|h| h.host.clone())
        .ok_or(PlacementError::NoSpace {
            region,
            volume: request.volume,
        })
}

fn load_per_mille(host: &HostLoad) -> u128 {
    u128::from(host.memory_promised.0) * 1000 / u128::from(host.memory.0.max(1))
}

fn known_places(hosts: &[HostLoad]) -> String {
    listed(
        hosts
            .iter()
            .map(|h| format!("{}/{}", h.region, h.arch))
            .collect(),
    )
}

fn listed(mut places: Vec<String>) -> String {
    places.sort();
    places.dedup();
    places.truncate(16);
    if places.is_empty() {
        "none".to_owned()
    } else {
        places.join(", ")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn id(n: u8) -> HostId {
        HostId::from_entropy([n; 10])
    }

    /// `n region arch up|down free memory promised [driver...]`, sizes in GiB.
    pub(crate) fn hosts(text: &str) -> Vec<HostLoad> {
        let gib = |s: &str| ByteSize::gib(s.parse().expect("a number"));
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| !words.is_empty())
            .map(|w| HostLoad {
                host: id(w[0].parse().expect("a number")),
                region: w[1].to_owned(),
                arch: w[2].to_owned(),
                reachable: w[3] == "up",
                pool_free: gib(w[4]),
                memory: gib(w[5]),
                memory_promised: gib(w[6]),
                kinds: w[7..]
                    .iter()
                    .map(|name| MachineKind {
                        own_kernel: *name == "vm",
                        emulated: false,
                    })
                    .collect(),
                encrypts: w.contains(&"sealed"),
            })
            .collect()
    }

    fn check(farm: &str, volume_host: Option<u8>, expected: Result<u8, &str>) {
        check_isolated(farm, Isolation::Auto, volume_host, expected);
    }

    fn check_isolated(
        farm: &str,
        isolation: Isolation,
        volume_host: Option<u8>,
        expected: Result<u8, &str>,
    ) {
        let request = PlacementRequest {
            isolation,
            region: "fra".into(),
            arch: "amd64".into(),
            volume: ByteSize::gib(50),
            memory: ByteSize::gib(4),
            volume_host: volume_host.map(id),
        };
        let got = place(&request, &hosts(farm)).map_err(|e| e.to_string());
        assert_eq!(got, expected.map(id).map_err(str::to_owned), "{farm}");
    }

    #[test]
    fn chooses() {
        check(
            "1 fra amd64 up 99 64 8\n2 fra amd64 up 99 64 4",
            None,
            Ok(2),
        );
        check(
            "1 fra amd64 up 99 64 8\n2 fra amd64 up 99 128 9",
            None,
            Ok(2),
        );
        check(
            "1 fra amd64 up 60 64 8\n2 fra amd64 up 99 64 8",
            None,
            Ok(2),
        );
        check(
            "2 fra amd64 up 99 64 8\n1 fra amd64 up 99 64 8",
            None,
            Ok(1),
        );
        check(
            "1 fra amd64 up 49 64 0\n2 fra amd64 up 50 64 8",
            None,
            Ok(2),
        );
        check(
            "1 fra amd64 down 99 64 0\n2 fra amd64 up 99 64 60",
            None,
            Ok(2),
        );
        check(
            "1 fra arm64 up 99 64 0\n2 ams amd64 up 99 64 0\n3 fra amd64 up 99 9 9",
            None,
            Ok(3),
        );
    }

    #[test]
    fn goes_where_the_volume_is_whatever_the_load() {
        check(
            "1 fra amd64 up 99 64 0\n2 fra amd64 down 0 64 64",
            Some(2),
            Ok(2),
        );
    }

    #[test]
    fn who_demands_a_virtual_machine_is_never_placed_on_less() {
        let vm = |farm, expected| check_isolated(farm, Isolation::Vm, None, expected);
        vm(
            "1 fra amd64 up 99 64 0 sandbox\n2 fra amd64 up 99 64 60 sandbox vm",
            Ok(2),
        );
        vm(
            "1 fra amd64 up 99 64 0 sandbox\n2 fra amd64 up 9 64 0 vm\n3 fra amd64 down 99 64 0 vm\n4 ams amd64 up 99 64 0 vm",
            Err("no host in region 'fra' has 50 GiB of its pool left"),
        );
        vm(
            "1 fra amd64 up 99 64 0 sandbox\n2 fra amd64 up 99 64 0",
            Err("no host in region 'fra' has machines with isolation 'vm'"),
        );
        for less in [Isolation::Auto, Isolation::Sandbox] {
            check_isolated("1 fra amd64 up 99 64 0 vm", less, None, Ok(1));
        }
    }

    #[test]
    fn refuses_what_no_host_can_hold() {
        // The second could not promise four gibibytes even if it had promised none; the third has promised all it may.
        let farm = "1 fra amd64 up 99 64 99\n2 fra amd64 up 99 0 0\n3 fra amd64 up 99 8 32";
        check(farm, None, Ok(1));
        check(
            "2 fra amd64 up 99 0 0",
            None,
            Err("no host in region 'fra' can give a builder 4 GiB of memory (the largest has 0 B)"),
        );
        check(
            "2 fra amd64 up 99 0 0\n3 fra amd64 up 99 8 29",
            None,
            Err("the builders in region 'fra' have its memory promised 4 times over"),
        );
        check("3 fra amd64 up 99 8 28", None, Ok(3));
    }

    #[test]
    fn tells_why_there_is_no_place() {
        check(
            "",
            None,
            Err("no host of architecture 'amd64' in region 'fra' (there are: none)"),
        );
        check(
            "1 fra arm64 up 99 64 0\n2 ams amd64 up 99 64 0",
            None,
            Err(
                "no host of architecture 'amd64' in region 'fra' (there are: ams/amd64, fra/arm64)",
            ),
        );
        check(
            "1 fra amd64 down 99 64 0",
            None,
            Err("no host in region 'fra' answers"),
        );
        check(
            "1 fra amd64 up 49 64 0",
            None,
            Err("no host in region 'fra' has 50 GiB of its pool left"),
        );
    }
}

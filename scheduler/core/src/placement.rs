//! Chooses the host of a new builder. Pure: same input, same choice.
//!
//! A cache is worth more than balance, so a builder that has a volume goes where that volume is. Otherwise: hosts of
//! the region and the architecture, that answer, that wall machines off as demanded, and whose pool can promise the
//! volume, the least loaded first.
//!
//! Must not know: how load is measured, or how a choice is recorded.

use crate::id::HostId;
use crate::isolation::Isolation;
use crate::units::ByteSize;

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
    /// Machine drivers that can be had there.
    pub drivers: Vec<String>,
    /// New volumes there are encrypted.
    pub encrypts: bool,
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
    /// Where its volume is, if it has one.
    pub volume_host: Option<HostId>,
    /// How it must be walled off.
    pub isolation: Isolation,
}

/// A volume to be placed that no machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    /// Label of the region wanted.
    pub region: String,
    /// How large it will be.
    pub size: ByteSize,
    /// It must be encrypted, or must not; absent: as its host does it.
    pub encrypted: Option<bool>,
    /// Hosts that have a volume of the same name already: others are better.
    pub taken: Vec<HostId>,
    /// Others are not only better: these will not do.
    pub unique: bool,
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
    there.retain(|h| request.isolation.is_met_by(&h.drivers));
    if there.is_empty() {
        let isolation = request.isolation;
        return Err(PlacementError::NoIsolation { region, isolation });
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

/// The host for a volume that no machine has: one of the region that answers and has room, best one without a volume of the
/// same name, then the one with the most room.
///
/// # Errors
/// [`PlacementError`].
pub fn place_volume(request: &VolumeRequest, hosts: &[HostLoad]) -> Result<HostId, PlacementError> {
    let region = request.region.clone();
    let mut there: Vec<&HostLoad> = hosts.iter().filter(|h| h.region == region).collect();
    if there.is_empty() {
        let known = listed(hosts.iter().map(|h| h.region.clone()).collect());
        return Err(PlacementError::NoSuchRegion { region, known });
    }
    there.retain(|h| h.reachable);
    if there.is_empty() {
        return Err(PlacementError::NoneReachable { region });
    }
    if let Some(encrypted) = request.encrypted {
        there.retain(|h| h.encrypts == encrypted);
        if there.is_empty() {
            return Err(PlacementError::NoEncryption { region, encrypted });
        }
    }
    let taken = |host: &HostLoad| request.taken.contains(&host.host);
    if request.unique {
        there.retain(|h| !taken(h));
        if there.is_empty() {
            return Err(PlacementError::NotUnique { region });
        }
    }
    there.retain(|h| h.pool_free >= request.size);
    there
        .into_iter()
        .min_by(|a, b| {
            (taken(a).cmp(&taken(b)))
                .then(b.pool_free.cmp(&a.pool_free))
                .then(a.host.cmp(&b.host))
        })
        .map(|h| h.host.clone())
        .ok_or(PlacementError::NoSpace {
            region,
            volume: request.size,
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
mod tests {
    use super::*;

    fn id(n: u8) -> HostId {
        HostId::from_entropy([n; 10])
    }

    /// `n region arch up|down free memory promised [driver...]`, sizes in GiB.
    fn hosts(text: &str) -> Vec<HostLoad> {
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
                drivers: w[7..].iter().map(|driver| (*driver).to_owned()).collect(),
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

    #[test]
    fn a_volume_of_its_own_goes_where_there_is_room_and_apart_from_its_namesakes() {
        let check = |farm: &str, change: fn(&mut VolumeRequest), expected: Result<u8, &str>| {
            let mut request = VolumeRequest {
                region: "fra".into(),
                size: ByteSize::gib(50),
                encrypted: None,
                taken: vec![],
                unique: false,
            };
            change(&mut request);
            let got = place_volume(&request, &hosts(farm)).map_err(|e| e.to_string());
            assert_eq!(got, expected.map(id).map_err(str::to_owned), "{farm}");
        };
        // 2 has the most room that answers, whatever its architecture and its machines.
        let farm = "1 fra amd64 up 60 64 0\n2 fra arm64 up 99 64 64 sealed\n3 ams amd64 up 200 64 0\n4 fra amd64 down 300 64 0";
        check(farm, |_| (), Ok(2));
        check(farm, |r| r.taken = vec![id(2)], Ok(1));
        check(farm, |r| r.taken = vec![id(1), id(2)], Ok(2));
        check(farm, |r| r.encrypted = Some(false), Ok(1));
        check(farm, |r| r.encrypted = Some(true), Ok(2));
        let all = |r: &mut VolumeRequest| {
            (r.taken, r.unique) = (vec![id(1), id(2)], true);
        };
        check(
            farm,
            all,
            Err("every host in region 'fra' has a volume of that name"),
        );
        check(
            farm,
            |r| r.region = "mars".into(),
            Err("no host in region 'mars' (there are: ams, fra)"),
        );
        check(
            "1 fra amd64 up 60 64 0",
            |r| r.encrypted = Some(true),
            Err("no host in region 'fra' makes encrypted volumes"),
        );
        check(
            farm,
            |r| r.size = ByteSize::gib(100),
            Err("no host in region 'fra' has 100 GiB of its pool left"),
        );
    }
}

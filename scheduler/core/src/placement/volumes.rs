//! Chooses the host of a volume that no machine has.

use super::{HostLoad, PlacementError, listed};
use crate::id::HostId;
use crate::units::ByteSize;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::tests::{hosts, id};

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

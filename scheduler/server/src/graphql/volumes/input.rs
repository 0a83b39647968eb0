//! What mutations of volumes take.

use super::super::Result;
use super::super::ids::parse_id;
use super::super::input::label;
use super::super::scalar::Long;
use crate::farm::{AskedImport, AskedMove, AskedVolume};
use crate::problem::{Code, Problem};
use async_graphql::{ID, InputObject};
use slipway_core::host_api::VolumeSource;
use slipway_core::units::ByteSize;
use slipway_core::volume::{AutoExtend, VolumePolicy};
use slipway_store::{Org, Volume};

/// Sizes are whole MiB: every kind of pool has them.
const GRAIN: u64 = 1 << 20;
/// Longest name of a volume, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// A new volume.
#[derive(InputObject)]
pub(in crate::graphql) struct CreateVolumeInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Its name for people: lower-case letters, digits, `_` and `-`. Several volumes may have the same.
    name: String,
    /// Region; the org's default if absent. A volume from a snapshot is made where that is.
    region: Option<String>,
    /// Hard cap, rounded up to whole MiB; 1 GiB if absent, or what the snapshot's volume had.
    size_bytes: Option<Long>,
    /// Id of the snapshot whose contents it gets; empty if absent.
    snapshot: Option<ID>,
    /// New snapshots of it are kept for so many days; 5 if absent.
    snapshot_retention_days: Option<u32>,
    /// A snapshot of it is made every day.
    #[graphql(default = true)]
    scheduled_snapshots: bool,
    /// It must be encrypted (or must not be); as the host does it if absent.
    encrypted: Option<bool>,
    /// Not on a host where the org has a volume of this name; other hosts are preferred in any case.
    #[graphql(default)]
    require_unique_zone: bool,
}

impl CreateVolumeInput {
    /// # Errors
    /// [`Code::Invalid`].
    pub(super) fn asked(self, org: &Org) -> Result<AskedVolume> {
        let snapshot = self.snapshot.as_ref().map(parse_id).transpose()?;
        let source = snapshot.map(|snapshot| VolumeSource::Snapshot { snapshot });
        let region = match self.region {
            Some(region) => Some(label(region, "region")?),
            None if source.is_some() => None,
            None => Some(org.default_region.clone()),
        };
        let usual = VolumePolicy::default();
        Ok(AskedVolume {
            name: volume_name(self.name)?,
            region,
            size: self.size_bytes.map(|Long(bytes)| whole(ByteSize(bytes))),
            source,
            import: None,
            policy: VolumePolicy {
                snapshot_retention_days: self
                    .snapshot_retention_days
                    .unwrap_or(usual.snapshot_retention_days),
                scheduled_snapshots: self.scheduled_snapshots,
                auto_extend: None,
            },
            encrypted: self.encrypted,
            unique: self.require_unique_zone,
        })
    }
}

/// A volume whose contents will be sent.
#[derive(InputObject)]
pub(in crate::graphql) struct ImportVolumeInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Its name for people: lower-case letters, digits, `_` and `-`. Several volumes may have the same.
    name: String,
    /// Region; the org's default if absent.
    region: Option<String>,
    /// Hard cap, rounded up to whole MiB; at least what the stream says of its contents.
    size_bytes: Long,
    /// The checksum of the whole stream, in 64 hexadecimal digits: it is shown as `importDigest`, so that whoever goes on
    /// knows with what.
    digest: Option<String>,
}

impl ImportVolumeInput {
    /// # Errors
    /// [`Code::Invalid`].
    pub(super) fn asked(self, org: &Org) -> Result<AskedVolume> {
        let hexadecimal = |text: &String| {
            let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            text.len() == 64 && digits
        };
        if self.digest.as_ref().is_some_and(|text| !hexadecimal(text)) {
            return Err(Problem::new(Code::Invalid, "the digest is not one")
                .hint("it is the last 32 bytes of the stream, in hexadecimal")
                .into());
        }
        let region = match self.region {
            Some(region) => label(region, "region")?,
            None => org.default_region.clone(),
        };
        Ok(AskedVolume {
            name: volume_name(self.name)?,
            region: Some(region),
            size: Some(whole(ByteSize(self.size_bytes.0))),
            source: None,
            import: Some(AskedImport {
                digest: self.digest.map(|text| text.to_ascii_lowercase()),
            }),
            policy: VolumePolicy::default(),
            encrypted: None,
            unique: false,
        })
    }
}

/// A volume to fork.
#[derive(InputObject)]
pub(in crate::graphql) struct ForkVolumeInput {
    /// Id of the volume whose contents it gets.
    pub(super) volume: ID,
    /// Its name for people; the same name if absent.
    name: Option<String>,
    /// Region. Forks are made on the host of their source, so another one than that is INVALID.
    region: Option<String>,
    /// Hard cap, rounded up to whole MiB; the same if absent.
    size_bytes: Option<Long>,
}

impl ForkVolumeInput {
    /// # Errors
    /// [`Code::Invalid`].
    pub(super) fn asked(self, from: &Volume) -> Result<AskedVolume> {
        let name = match self.name {
            Some(name) => volume_name(name)?,
            None => from.name.clone(),
        };
        let region = self.region.map(|region| label(region, "region"));
        Ok(AskedVolume {
            name,
            region: region.transpose()?,
            size: self.size_bytes.map(|Long(bytes)| whole(ByteSize(bytes))),
            source: Some(VolumeSource::Volume {
                volume: from.id.clone(),
            }),
            import: None,
            policy: from.policy,
            encrypted: None,
            unique: false,
        })
    }
}

/// What to change of a volume.
#[derive(InputObject)]
pub(in crate::graphql) struct UpdateVolumeInput {
    /// Id of the volume.
    pub(super) id: ID,
    /// New snapshots of it are kept for so many days; those that there are keep their time.
    snapshot_retention_days: Option<u32>,
    /// A snapshot of it is made every day.
    scheduled_snapshots: Option<bool>,
    /// It grows by itself from so many percent in use on; 0: not at all. Needs an increment and a limit.
    auto_extend_threshold_percent: Option<u32>,
    /// By so much at a time.
    auto_extend_increment_bytes: Option<Long>,
    /// Up to this size.
    auto_extend_limit_bytes: Option<Long>,
}

impl UpdateVolumeInput {
    /// What is wanted of `volume` then.
    ///
    /// # Errors
    /// [`Code::Invalid`].
    pub(super) fn policy(&self, volume: &Volume) -> Result<VolumePolicy> {
        let now = &volume.policy;
        let auto_extend = self.auto_extend(now.auto_extend)?;
        if let Some(auto) = &auto_extend
            && auto.limit < volume.size
            && now.auto_extend.as_ref() != Some(auto)
        {
            let message = format!(
                "the limit of {} is below the volume's size of {}",
                auto.limit, volume.size
            );
            return Err(Problem::new(Code::Invalid, message)
                .hint("choose a larger limit")
                .into());
        }
        Ok(VolumePolicy {
            snapshot_retention_days: self
                .snapshot_retention_days
                .unwrap_or(now.snapshot_retention_days),
            scheduled_snapshots: self.scheduled_snapshots.unwrap_or(now.scheduled_snapshots),
            auto_extend,
        })
    }

    fn auto_extend(&self, now: Option<AutoExtend>) -> Result<Option<AutoExtend>> {
        let size = |given: Option<Long>, now: Option<ByteSize>| {
            given.map(|Long(bytes)| whole(ByteSize(bytes))).or(now)
        };
        let percent = self
            .auto_extend_threshold_percent
            .or(now.map(|auto| auto.threshold_percent));
        let increment = size(
            self.auto_extend_increment_bytes,
            now.map(|auto| auto.increment),
        );
        let limit = size(self.auto_extend_limit_bytes, now.map(|auto| auto.limit));
        match (percent, increment, limit) {
            (Some(0), _, _) | (None, None, None) => Ok(None),
            (Some(threshold_percent), Some(increment), Some(limit)) => Ok(Some(AutoExtend {
                threshold_percent,
                increment,
                limit,
            })),
            (None | Some(_), None | Some(_), None | Some(_)) => Err(Problem::new(
                Code::Invalid,
                "a volume that grows by itself needs a threshold, an increment and a limit",
            )
            .hint("say all three; a threshold of 0 ends it")
            .into()),
        }
    }
}

/// Where a volume is to be moved.
///
/// # Errors
/// [`Code::Invalid`] unless it is one of the two.
pub(super) fn destination(zone: Option<String>, region: Option<String>) -> Result<AskedMove> {
    match (zone, region) {
        (Some(zone), None) => Ok(AskedMove::Zone(label(zone, "zone")?)),
        (None, Some(region)) => Ok(AskedMove::Region(label(region, "region")?)),
        (None | Some(_), None | Some(_)) => Err(Problem::new(
            Code::Invalid,
            "a volume is moved to a zone or to a region",
        )
        .hint("name one of the two")
        .into()),
    }
}

/// A size that every kind of pool has.
pub(super) fn whole(size: ByteSize) -> ByteSize {
    ByteSize(size.0.checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX))
}

/// A text as a volume's name.
fn volume_name(text: String) -> Result<String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| good(byte) || b"_-".contains(&byte))
        && text.bytes().next().is_some_and(good);
    if fits {
        return Ok(text);
    }
    Err(Problem::new(Code::Invalid, "that will not do as the name of a volume")
        .hint("1 to 63 lower-case letters, digits, `_` and `-`, the first one a letter or a digit")
        .into())
}

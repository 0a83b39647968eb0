//! Flags of `slipway volumes`, by the names that flyctl has for the same things.

use super::OrgArg;
use clap::{Args, Subcommand};
use slipway_core::units::ByteSize;

/// Manage volumes and their snapshots
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum VolumesVerb {
    /// Make a volume, empty or from a snapshot
    Create(CreateVolumeArgs),
    /// List volumes, the caches of builders among them
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: OrgArg,
    },
    /// Show one volume
    Show {
        /// Id, as vol_...
        id: String,
    },
    /// Change what is wanted of a volume: its snapshots, and whether it grows by itself
    Update(UpdateVolumeArgs),
    /// Make a volume larger, in use or not; never smaller
    #[command(
        after_long_help = "Examples:\n  slipway volumes extend vol_... --size 40\n  slipway volumes extend vol_... --size +5"
    )]
    Extend {
        /// Id, as vol_...
        id: String,
        /// New size, as 40 (GiB) or 40GiB; or how much more, as +5
        #[arg(short, long, value_name = "SIZE", value_parser = parse_growth)]
        size: Growth,
    },
    /// Make a volume that holds what another one holds now
    ///
    /// It is on the same host, and usable when the command ends. Nothing done to either shows in the other.
    Fork(ForkArgs),
    /// Destroy volumes: a day from now, until when `slipway volumes restore` keeps them, or now
    ///
    /// A volume that is to be destroyed still counts for the pool. Its snapshots stay for their time.
    #[command(visible_aliases = ["delete", "rm"])]
    Destroy {
        /// Ids, as vol_...
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Now, without a way back
        #[arg(long)]
        now: bool,
    },
    /// Keep a volume that is to be destroyed
    ///
    /// What a snapshot holds comes back by `slipway volumes create NAME --snapshot-id ID`.
    Restore {
        /// Id, as vol_...
        id: String,
    },
    /// Move a volume to another host; with a builder's cache, the builder too
    ///
    /// It goes from host to host as it is on the disk, an encrypted one encrypted, and counts for both until the old copy is
    /// destroyed. A builder works on meanwhile; when it has ended, by itself or by `slipway builders stop`, what has changed is
    /// sent, and it starts on the other host. The command waits; Ctrl-C ends only the waiting. Snapshots stay where they are until
    /// their time is over.
    Move(MoveArgs),
    /// Write what a volume holds to a file, from which `slipway volumes import` makes a volume
    ///
    /// Exported is a snapshot: the one that is named, or one that is made for it and deleted in the end. It is written in clear, also
    /// from an encrypted volume: whoever can read the file has the contents. Holes cost nothing, the rest is compressed and
    /// has checksums; a clean end means that all of them were right. What breaks off goes on by the same command: FILE.resume says
    /// of what it is. A connection that is lost is made anew for two minutes.
    Export(ExportArgs),
    /// Make a volume of what `slipway volumes export` has written
    ///
    /// It counts for the pool at once, and is `importing` until it is whole. The same command with --volume-id resumes one that
    /// broke off, for a day; then the volume is deleted. An import from standard input cannot be resumed: its volume is deleted at once.
    Import(ImportArgs),
    /// Manage snapshots of volumes
    #[command(subcommand, visible_aliases = ["snapshot", "snaps"])]
    Snapshots(SnapshotsVerb),
}

/// A new volume.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway volumes create data --region ewr --size 25
  slipway volumes create data --snapshot-id snp_...")]
pub(crate) struct CreateVolumeArgs {
    /// Name; several volumes may have the same
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) org: OrgArg,
    /// Region; the org's default, or where the snapshot is
    #[arg(short, long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Size, as 25 (GiB) or 25GiB; 1 GiB, or what the snapshot's volume had
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) size: Option<ByteSize>,
    /// Make it from this snapshot, as snp_...
    #[arg(long, value_name = "ID")]
    pub(crate) snapshot_id: Option<String>,
    /// Days that new snapshots of it are kept, from 1 to 60; 5 by default
    #[arg(long, value_name = "DAYS")]
    pub(crate) snapshot_retention: Option<u32>,
    /// Make a snapshot of it every day
    #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true", num_args = 0..=1, action = clap::ArgAction::Set)]
    pub(crate) scheduled_snapshots: bool,
    /// Only on a host that does not encrypt volumes; without it the host decides
    #[arg(long)]
    pub(crate) no_encryption: bool,
    /// Only on a host where the org has no volume of this name; other hosts are preferred in any case
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub(crate) require_unique_zone: bool,
}

/// What is wanted of a volume.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway volumes update vol_... --snapshot-retention 14
  slipway volumes update vol_... --auto-extend-threshold 80 --auto-extend-increment 5 --auto-extend-limit 50
  slipway volumes update vol_... --auto-extend-threshold 0")]
pub(crate) struct UpdateVolumeArgs {
    /// Id, as vol_...
    pub(crate) id: String,
    /// Days that new snapshots of it are kept, from 1 to 60
    #[arg(long, value_name = "DAYS")]
    pub(crate) snapshot_retention: Option<u32>,
    /// Make a snapshot of it every day
    #[arg(long, value_name = "BOOL", default_missing_value = "true", num_args = 0..=1)]
    pub(crate) scheduled_snapshots: Option<bool>,
    /// Let it grow by itself from so many percent in use on; 0 ends that
    #[arg(long, value_name = "PERCENT")]
    pub(crate) auto_extend_threshold: Option<u32>,
    /// By so much at a time, as 5 (GiB) or 5GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) auto_extend_increment: Option<ByteSize>,
    /// Up to this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) auto_extend_limit: Option<ByteSize>,
}

/// Where to move a volume.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway volumes move vol_... --zone host-2
  slipway volumes move vol_... --region ams
  slipway volumes move vol_... --cancel
  slipway volumes move vol_... --keep host-2")]
#[group(skip)]
pub(crate) struct MoveArgs {
    /// Id, as vol_...
    pub(crate) id: String,
    /// To the host of this name
    #[arg(long, visible_alias = "host", value_name = "NAME", required_unless_present_any = ["region", "cancel", "keep"], conflicts_with_all = ["region", "cancel", "keep"])]
    pub(crate) zone: Option<String>,
    /// To any other host of this region
    #[arg(short, long, value_name = "REGION", conflicts_with_all = ["cancel", "keep"])]
    pub(crate) region: Option<String>,
    /// Keep the copy on the host of this name and destroy the other one, when a move is halted
    #[arg(long, value_name = "NAME", conflicts_with = "cancel")]
    pub(crate) keep: Option<String>,
    /// With --keep: the other host does not answer and never will; forget the copy there (administrator)
    #[arg(long, requires = "keep")]
    pub(crate) forget_other: bool,
    /// Give a move up that has not come to its end
    #[arg(long)]
    pub(crate) cancel: bool,
    /// Do not wait for its end
    #[arg(short, long)]
    pub(crate) detach: bool,
}

/// What to export, and where to.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway volumes export vol_... -o data.slipvol
  slipway volumes export snp_... -o - | ssh elsewhere 'cat > data.slipvol'")]
pub(crate) struct ExportArgs {
    /// Id of a volume, as vol_..., or of a snapshot, as snp_...
    pub(crate) id: String,
    /// File to write, or to go on with; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: String,
    /// This snapshot of the volume instead of one that is made now
    #[arg(long, value_name = "ID")]
    pub(crate) snapshot_id: Option<String>,
    /// Keep the snapshot that was made for it
    #[arg(long)]
    pub(crate) keep_snapshot: bool,
}

/// What to import.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway volumes import data data.slipvol --region ewr
  slipway volumes import data data.slipvol --volume-id vol_...")]
pub(crate) struct ImportArgs {
    /// Name; several volumes may have the same
    pub(crate) name: String,
    /// File that was exported; - is standard input
    pub(crate) file: String,
    #[command(flatten)]
    pub(crate) org: OrgArg,
    /// Region; the org's default
    #[arg(short, long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Size, as 25 (GiB) or 25GiB; that of the contents
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) size: Option<ByteSize>,
    /// Go on with this volume, whose import from the same file broke off
    #[arg(long, value_name = "ID")]
    pub(crate) volume_id: Option<String>,
}

/// A volume to fork.
#[derive(Debug, Clone, Args)]
pub(crate) struct ForkArgs {
    /// Id of the volume to fork, as vol_...
    pub(crate) id: String,
    /// Name; the same by default
    #[arg(short, long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Region; a fork is where its source is, so no other will do
    #[arg(short, long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Size; the same by default
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) size: Option<ByteSize>,
}

/// Manage snapshots of volumes
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SnapshotsVerb {
    /// List the snapshots of a volume, which may be gone
    #[command(visible_alias = "ls")]
    List {
        /// Id of the volume, as vol_...
        volume: String,
    },
    /// Keep what a volume holds now, as after a power cut at this moment
    Create {
        /// Id of the volume, as vol_...
        volume: String,
    },
    /// Delete snapshots, without a way back; volumes made from them stay
    #[command(visible_aliases = ["destroy", "rm"])]
    Delete {
        /// Ids, as snp_...
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// How large a volume shall become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Growth {
    /// So large.
    To(ByteSize),
    /// So much larger.
    By(ByteSize),
}

/// A size; a bare number is one of GiB.
pub(crate) fn parse_size(text: &str) -> Result<ByteSize, String> {
    let trimmed = text.trim();
    let bare = !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_digit());
    let with_unit = if bare {
        format!("{trimmed}GiB")
    } else {
        trimmed.to_owned()
    };
    with_unit
        .parse()
        .map_err(|_| format!("'{text}' is not a size (examples: 25, 25GiB, 500MB)"))
}

/// A size, or how much more.
fn parse_growth(text: &str) -> Result<Growth, String> {
    match text.trim().strip_prefix('+') {
        Some(more) => parse_size(more).map(Growth::By),
        None => parse_size(text).map(Growth::To),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_numbers_are_gibibytes_and_a_plus_is_more() {
        let gib = ByteSize::gib;
        for (text, growth) in [
            ("25", Growth::To(gib(25))),
            ("25GiB", Growth::To(gib(25))),
            ("+5", Growth::By(gib(5))),
            ("+512MiB", Growth::By(ByteSize::mib(512))),
        ] {
            assert_eq!(parse_growth(text), Ok(growth), "{text}");
        }
        for bad in ["", "+", "-5", "1.5", "25GBB", "++5", "99999999999999999999"] {
            assert!(parse_growth(bad).is_err(), "{bad}");
        }
    }
}

//! What the files of a pool are called, and what their names say.
//!
//! Must not know: what is in them.

use crate::backing::Making;
use slipway_core::id::{SnapshotId, VolumeId};
use std::fmt;

/// A file of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// It is a snapshot, and this is its name.
    pub(super) snapshot: Option<SnapshotId>,
    /// The volume, or what it is a snapshot of.
    pub(super) volume: VolumeId,
    /// It is encrypted.
    pub(super) sealed: bool,
    pub(super) kind: Kind,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Whole,
    /// It is being made, and so many bytes are reserved for it.
    Making(Making, u64),
}

impl Kind {
    pub(super) fn making(self) -> Option<Making> {
        match self {
            Self::Whole => None,
            Self::Making(making, _) => Some(making),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(snapshot) = &self.snapshot {
            write!(f, "{snapshot}.")?;
        }
        write!(f, "{}", self.volume)?;
        if let Kind::Making(_, reserved) = self.kind {
            write!(f, ".{reserved}")?;
        }
        f.write_str(if self.sealed { ".luks" } else { ".img" })?;
        match self.kind {
            Kind::Whole => Ok(()),
            Kind::Making(Making::Short, _) => f.write_str(".tmp"),
            Kind::Making(Making::Import, _) => f.write_str(".part"),
        }
    }
}

impl Name {
    /// What a file's name says; nothing for a file that is none of these.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts: Vec<&str> = text.split('.').collect();
        let making = match *parts.last()? {
            "tmp" => Some(Making::Short),
            "part" => Some(Making::Import),
            _ => None,
        };
        if making.is_some() {
            parts.pop();
        }
        let sealed = match parts.pop()? {
            "img" => false,
            "luks" => true,
            _ => return None,
        };
        let kind = match making {
            Some(making) => Kind::Making(making, parts.pop()?.parse().ok()?),
            None => Kind::Whole,
        };
        let (snapshot, volume) = match parts[..] {
            [volume] => (None, volume),
            [snapshot, volume] => (Some(snapshot.parse().ok()?), volume),
            _ => return None,
        };
        Some(Self {
            snapshot,
            volume: volume.parse().ok()?,
            sealed,
            kind,
        })
    }
}

/// A name that is taken is one that we would give.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(name) = Name::parse(&text) {
        assert_eq!(Name::parse(&name.to_string()).as_ref(), Some(&name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_were_made_from() {
        let (volume, snapshot) = (
            VolumeId::from_entropy([1; 10]),
            SnapshotId::from_entropy([2; 10]),
        );
        for snapshot in [None, Some(snapshot)] {
            for sealed in [false, true] {
                for kind in [
                    Kind::Whole,
                    Kind::Making(Making::Short, 4096),
                    Kind::Making(Making::Import, 0),
                ] {
                    let name = Name {
                        snapshot: snapshot.clone(),
                        volume: volume.clone(),
                        sealed,
                        kind,
                    };
                    assert_eq!(Name::parse(&name.to_string()), Some(name));
                }
            }
        }
        for other in [
            "notes.txt".to_owned(),
            "x.img".to_owned(),
            format!("{volume}.lock"),
            format!("{volume}.attached.tmp"),
            format!("{volume}.img.tmp"),
            format!("{volume}.many.img.tmp"),
            format!("{volume}.{volume}.img"),
        ] {
            assert_eq!(Name::parse(&other), None, "{other}");
        }
    }
}

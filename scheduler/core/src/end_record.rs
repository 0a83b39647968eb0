//! The end record: what a guest writes, as its very last act, about how its machine ended. No record means a crash.
//!
//! A guest may be hostile, and says here only what concerns itself.
//!
//! Must not know: where the record is kept, or how it is handed over.

/// What a guest writes when everything ended well and is on the disk.
pub const CLEAN: &[u8] = b"end 0\n";
/// What it writes when its engine cannot start, because what is on the volume is damaged.
pub const DAMAGED: &[u8] = b"end damaged\n";

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Clean,
    /// With a volume on which its guest saw damage.
    Damaged,
    /// In any other way.
    Crashed,
}

impl Ending {
    /// What a record says.
    pub fn of(record: &[u8]) -> Self {
        let says = |what: &[u8]| {
            record
                .split_inclusive(|byte| *byte == b'\n')
                .any(|line| line == what)
        };
        if says(CLEAN) {
            Self::Clean
        } else if says(DAMAGED) {
            Self::Damaged
        } else {
            Self::Crashed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_count() {
        for (record, ending) in [
            (&b""[..], Ending::Crashed),
            (b"end 0", Ending::Crashed),
            (b"end 0\n", Ending::Clean),
            (b"noise\nend 0\nmore", Ending::Clean),
            (b"end damaged\n", Ending::Damaged),
            (b"end damaged", Ending::Crashed),
            (b"end damaged\nend 0\n", Ending::Clean),
            (b"the end 0\n", Ending::Crashed),
            (b"\xff\x00\n", Ending::Crashed),
        ] {
            assert_eq!(Ending::of(record), ending, "{record:?}");
        }
    }
}

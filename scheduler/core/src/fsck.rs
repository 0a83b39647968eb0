//! What the end of `e2fsck` says about a file system. Pure: hosts and guests run the program, and ask here what it found.
//!
//! Must not know: who runs it, on which disk.

/// What a run of `e2fsck` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The file system is whole now.
    Sound,
    /// It has errors that the program did not correct, or none of its superblocks can be used.
    Damaged,
    /// The program did not do its work (memory short, killed, called wrongly), so nothing is known of the file system.
    Failed,
}

/// Bits of e2fsck(8)'s exit code. 1 is "errors corrected", 2 "and the system should be rebooted", which means nothing for a file
/// system that is not mounted.
const CORRECTED: i32 = 1 | 2;
const UNCORRECTED: i32 = 4;
const OPERATIONAL: i32 = 8;

/// Why e2fsck could not begin, where the reason is the file system: it ends with [`OPERATIONAL`] then, as it does when memory is short.
const NO_SUPERBLOCK: [&str; 3] = [
    "Bad magic number in super-block while trying to open",
    "Superblock checksum does not match superblock while trying to open",
    "The ext2 superblock is corrupt while trying to open",
];

/// What a run of `e2fsck` says that ended with `code` (absent: a signal ended it) and wrote `output` with `LC_ALL=C`.
pub fn checked(code: Option<i32>, output: &str) -> Checked {
    let Some(code) = code else {
        return Checked::Failed;
    };
    if code & !CORRECTED == 0 {
        return Checked::Sound;
    }
    let no_superblock =
        code & !CORRECTED == OPERATIONAL && NO_SUPERBLOCK.iter().any(|why| output.contains(why));
    if code & !CORRECTED == UNCORRECTED || no_superblock {
        Checked::Damaged
    } else {
        Checked::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::{Checked, checked};

    #[test]
    fn only_errors_left_uncorrected_and_a_lost_superblock_are_damage() {
        let none = "e2fsck: Bad magic number in super-block while trying to open /disk\n\nThe superblock could not be read";
        let short = "e2fsck: Bad magic number in super-block\ne2fsck: Superblock invalid, trying backup blocks...\n\
            e2fsck: Memory allocation failed while trying to open /disk\nThe superblock could not be read";
        let unread = "e2fsck: Input/output error while trying to open /disk\nThe superblock could not be read";
        for (code, output, expected) in [
            (Some(0), "", Checked::Sound),
            (Some(1), "", Checked::Sound),
            (Some(2), "", Checked::Sound),
            (Some(3), "", Checked::Sound),
            (Some(4), "", Checked::Damaged),
            (Some(5), "", Checked::Damaged),
            (Some(7), "", Checked::Damaged),
            (Some(8), "", Checked::Failed),
            (Some(9), "", Checked::Failed),
            (Some(12), "", Checked::Failed),
            (Some(16), "", Checked::Failed),
            (Some(20), "", Checked::Failed),
            (Some(32), "", Checked::Failed),
            (Some(36), "", Checked::Failed),
            (Some(127), "", Checked::Failed),
            (Some(128), "", Checked::Failed),
            (None, "", Checked::Failed),
            (Some(8), none, Checked::Damaged),
            (Some(8), short, Checked::Failed),
            (Some(8), unread, Checked::Failed),
            (Some(12), none, Checked::Failed),
            (None, none, Checked::Failed),
        ] {
            assert_eq!(checked(code, output), expected, "{code:?} {output}");
        }
    }
}

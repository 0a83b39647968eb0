//! What the end of `e2fsck` says about a file system. Pure: hosts and guests run the program, and ask here what it found.
//!
//! Must not know: who runs it, on which disk.

/// What a run of `e2fsck` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The file system is whole now.
    Sound,
    /// It has errors that the program did not correct, or none of its superblocks or not its journal can be used.
    Damaged,
    /// The journal is replayed, but the program could not use what the replay wrote: it has to run once more. One that ends like
    /// this each time cannot be repaired.
    Unfinished,
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

/// Why e2fsck gave up on the journal, where the reason is what lies on the disk: it ends with [`OPERATIONAL`] and [`UNCORRECTED`]
/// then, and each time it runs.
const NO_JOURNAL: [&str; 3] = [
    "Journal superblock has an unknown incompatible feature flag set",
    "Journal superblock has an unknown read-only feature flag set",
    "Journal version not supported by this e2fsck",
];

/// Said after a replay that was begun from a backup of the superblock: the journal held the superblock of a file system in use, as
/// after an online growth, and e2fsck does not replay twice in one run. The next run finds a whole superblock.
const REPLAYED: &str = "unable to set superblock flags on";

/// Reasons that say nothing of the file system, whatever is said beside them.
const NOT_THE_FILE_SYSTEM: [&str; 5] = [
    "Memory allocation failed",
    "Cannot allocate memory",
    "Input/output error",
    "Read-only file system",
    "No space left on device",
];

/// How often the thorough check (`-f -y`) runs at most: once more where it is [`Checked::Unfinished`].
pub const THOROUGH_RUNS_MAX: usize = 2;

/// What a run of `e2fsck` says that ended with `code` (absent: a signal ended it) and wrote `output` with `LC_ALL=C`.
pub fn checked(code: Option<i32>, output: &str) -> Checked {
    let Some(code) = code else {
        return Checked::Failed;
    };
    if code & !CORRECTED == 0 {
        return Checked::Sound;
    }
    let says = |reasons: &[&str]| reasons.iter().any(|why| output.contains(why));
    const GAVE_UP: i32 = OPERATIONAL | UNCORRECTED;
    match code & !CORRECTED {
        UNCORRECTED => Checked::Damaged,
        OPERATIONAL if says(&NO_SUPERBLOCK) => Checked::Damaged,
        GAVE_UP if says(&NOT_THE_FILE_SYSTEM) => Checked::Failed,
        GAVE_UP if says(&NO_JOURNAL) => Checked::Damaged,
        GAVE_UP if output.contains(REPLAYED) => Checked::Unfinished,
        _ => Checked::Failed,
    }
}

/// The thorough check: `run` runs `e2fsck -f -y` once and gives what it says, and anything beside. Gives what holds in the end, which
/// is never [`Checked::Unfinished`], and the rest of the last run.
///
/// # Errors
/// Those of `run`.
pub fn thorough<T, E>(mut run: impl FnMut() -> Result<(Checked, T), E>) -> Result<(Checked, T), E> {
    let mut last = run()?;
    for _ in 1..THOROUGH_RUNS_MAX {
        if last.0 != Checked::Unfinished {
            break;
        }
        last = run()?;
    }
    Ok(match last {
        (Checked::Unfinished, rest) => (Checked::Damaged, rest),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::{Checked, checked, thorough};

    #[test]
    fn only_errors_left_uncorrected_and_a_lost_superblock_are_damage() {
        let none = "e2fsck: Bad magic number in super-block while trying to open /disk\n\nThe superblock could not be read";
        let short = "e2fsck: Bad magic number in super-block\ne2fsck: Superblock invalid, trying backup blocks...\n\
            e2fsck: Memory allocation failed while trying to open /disk\nThe superblock could not be read";
        let unread = "e2fsck: Input/output error while trying to open /disk\nThe superblock could not be read";
        let replayed =
            "e2fsck: unable to set superblock flags on /disk\n\n/disk: recovering journal";
        let journal =
            "Journal superblock has an unknown incompatible feature flag set.\nAbort? yes";
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
            (Some(12), replayed, Checked::Unfinished),
            (Some(13), replayed, Checked::Unfinished),
            (Some(8), replayed, Checked::Failed),
            (None, replayed, Checked::Failed),
            (Some(12), journal, Checked::Damaged),
            (Some(44), journal, Checked::Failed),
            (None, journal, Checked::Failed),
        ] {
            assert_eq!(checked(code, output), expected, "{code:?} {output}");
        }
        for reason in ["Memory allocation failed", "Input/output error"] {
            for also in [replayed, journal] {
                let output = format!("{also}\ne2fsck: {reason} while reading block 7");
                assert_eq!(checked(Some(12), &output), Checked::Failed, "{output}");
            }
        }
    }

    #[test]
    fn a_check_that_is_not_finished_runs_once_more_and_no_oftener() {
        use Checked::{Damaged, Failed, Sound, Unfinished};
        for (runs, expected) in [
            (vec![Sound], Ok((Sound, 1))),
            (vec![Damaged], Ok((Damaged, 1))),
            (vec![Failed], Ok((Failed, 1))),
            (vec![Unfinished, Sound], Ok((Sound, 2))),
            (vec![Unfinished, Failed], Ok((Failed, 2))),
            (vec![Unfinished, Unfinished, Sound], Ok((Damaged, 2))),
            (vec![Unfinished], Err(1)),
        ] {
            let mut done = 0;
            let ended = thorough(|| {
                let says = *runs.get(done).ok_or(done)?;
                done += 1;
                Ok::<_, usize>((says, done))
            });
            assert_eq!(ended, expected, "{runs:?}");
        }
    }
}

//! The account of a disk that volumes share with others: what was promised of it, to whom, and what is left. Everybody who
//! promises bytes of a disk asks here, so that nothing is promised twice.
//!
//! Pure. Must not know: whose promises they are, or how anything is stored.

use crate::limits::CAPACITY_DEFAULT_PERCENT;

/// A disk as it is now, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Free, for root.
    pub free: u64,
    /// What volumes and snapshots take of it now.
    pub taken: u64,
    /// What they were promised of it, taken or not.
    pub promised: u64,
    /// What others were promised of it and do not take yet.
    pub owed_to_others: u64,
}

impl Account {
    /// What volumes may still take of the disk, by what they were promised.
    pub fn owed_to_volumes(&self) -> u64 {
        self.promised.saturating_sub(self.taken)
    }

    /// What volumes may be promised in all where nobody has said: a share of what they take and what is free and nobody else's.
    pub fn capacity(&self) -> u64 {
        let room = self.free.saturating_add(self.taken);
        room.saturating_sub(self.owed_to_others) / 100 * CAPACITY_DEFAULT_PERCENT
    }

    /// What is free and was promised to nobody.
    pub fn spare(&self) -> u64 {
        self.free
            .saturating_sub(self.owed_to_volumes())
            .saturating_sub(self.owed_to_others)
    }

    /// By how much the promises exceed what is free: something else has taken it, or more was promised than there is.
    pub fn short_by(&self) -> u64 {
        self.owed_to_volumes()
            .saturating_add(self.owed_to_others)
            .saturating_sub(self.free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In units that make no difference.
    fn account([free, taken, promised, owed_to_others]: [u64; 4]) -> Account {
        Account {
            free,
            taken,
            promised,
            owed_to_others,
        }
    }

    #[test]
    fn nothing_is_promised_twice() {
        // ([free, taken, promised, others], capacity, spare, short by)
        for (disk, capacity, spare, short) in [
            ([1000, 0, 0, 0], 900, 1000, 0),
            // Blocks that volumes have taken stay theirs, and change nothing.
            ([800, 200, 500, 0], 900, 500, 0),
            // What is another's is none of the volumes', and the other way round.
            ([1000, 0, 0, 400], 540, 600, 0),
            ([800, 200, 500, 400], 540, 100, 0),
            ([800, 200, 500, 500], 450, 0, 0),
            ([800, 200, 500, 600], 360, 0, 100),
            // More than there is.
            ([100, 0, 0, 400], 0, 0, 300),
            ([100, 0, 5000, 0], 90, 0, 4900),
            // Snapshots that share blocks take less than they are counted for.
            ([500, 700, 600, 0], 1080, 500, 0),
            ([u64::MAX, u64::MAX, 0, 0], u64::MAX / 100 * 90, u64::MAX, 0),
        ] {
            let disk = account(disk);
            let found = (disk.capacity(), disk.spare(), disk.short_by());
            assert_eq!(found, (capacity, spare, short), "{disk:?}");
        }
    }

    #[test]
    fn what_is_promised_up_to_the_capacity_can_be_kept_beside_the_others() {
        for free in [0, 1000, 12_345, u64::MAX / 2] {
            for others in [0, free / 3, free] {
                let before = account([free, 0, 0, others]);
                let after = account([free, 0, before.capacity(), others]);
                assert_eq!(after.short_by(), 0, "{after:?}");
            }
        }
    }
}

//! Whether the ids of machines are also somebody else's on this host (`/etc/subuid`, `/etc/subgid`; subuid(5)).
//!
//! Must not know: machines.

use std::fs;
use std::ops::Range;

const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Warns of each entry that overlaps: who has the same ids as a machine is, for the kernel, that machine's users.
pub(crate) fn warn_of_shared(ids: &Range<u64>) {
    for file in FILES {
        // Without the file nobody has any.
        for owner in overlapping(&fs::read_to_string(file).unwrap_or_default(), ids) {
            tracing::warn!(
                file,
                owner,
                first = ids.start,
                end = ids.end,
                "these ids are also machines' (hint: set id_base elsewhere, or take the entry out)"
            );
        }
    }
}

/// Owners of entries, `name:first:count` each, that have an id of `ids`.
fn overlapping(text: &str, ids: &Range<u64>) -> Vec<String> {
    let entry = |line: &str| -> Option<(String, Range<u64>)> {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?.to_owned();
        let first: u64 = parts.next()?.parse().ok()?;
        let count: u64 = parts.next()?.parse().ok()?;
        Some((owner, first..first.saturating_add(count)))
    };
    text.lines()
        .filter_map(entry)
        .filter(|(_, theirs)| theirs.start < ids.end && ids.start < theirs.end)
        .map(|(owner, _)| owner)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ids_of_machines_is_named() {
        let text = "below:100:900\nfirst:500:501\n# comment\nlast:1999:1\nabove:2000:65536\nall:0:4294967295\nnone:1500:0x1\n";
        assert_eq!(overlapping(text, &(1000..2000)), ["first", "last", "all"]);
    }
}

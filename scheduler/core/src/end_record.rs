//! The end record: what a guest writes, as its very last act, about how its machine ended. No record means a crash.
//!
//! A guest may be hostile, and says here only what concerns itself.
//!
//! Must not know: where the record is kept, or how it is handed over.

/// What a guest writes when everything ended well and is on the disk.
pub const CLEAN: &[u8] = b"end 0\n";
/// What it writes when its engine cannot start, because what is on the volume is damaged.
pub const DAMAGED: &[u8] = b"end damaged\n";

/// What it writes before the reason when its engine cannot start in the machine that it was given, whatever the volume; a line.
const REFUSED: &[u8] = b"end refused ";
/// Longest reason, in characters; the rest is cut off.
pub const REFUSAL_CHARS_MAX: usize = 500;

/// The line that says why the engine cannot start.
pub fn refusal(why: &str) -> Vec<u8> {
    [REFUSED, one_line(why).as_bytes(), b"\n"].concat()
}

/// Why the engine could not start, if a record says so.
pub fn refused(record: &[u8]) -> Option<String> {
    let mut lines = record.split_inclusive(|byte| *byte == b'\n');
    let why = lines.find_map(|line| line.strip_prefix(REFUSED)?.strip_suffix(b"\n"))?;
    let why = one_line(&String::from_utf8_lossy(why));
    (!why.is_empty()).then_some(why)
}

/// In printable characters, within the bound.
fn one_line(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.retain(|c| !c.is_control());
    line.chars().take(REFUSAL_CHARS_MAX).collect()
}

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
            (b"end refused end 0\n", Ending::Crashed),
        ] {
            assert_eq!(Ending::of(record), ending, "{record:?}");
        }
    }

    #[test]
    fn a_refusal_is_one_printable_line_within_its_bound() {
        let said = |record: &[u8]| refused(record);
        assert_eq!(
            said(&refusal("no iptables\nend 0\n\u{1b}[31m")).as_deref(),
            Some("no iptables end 0 [31m")
        );
        assert_eq!(Ending::of(&refusal("x\nend 0\n")), Ending::Crashed);
        assert_eq!(
            said(&refusal(&"ü".repeat(2000))).map(|why| why.chars().count()),
            Some(REFUSAL_CHARS_MAX)
        );
        assert_eq!(
            said(b"end refused a\x1b\xff\n").as_deref(),
            Some("a\u{fffd}")
        );
        for none in [
            &b""[..],
            b"end refused cut off",
            b"end refused \n",
            b"end 0\n",
        ] {
            assert_eq!(said(none), None, "{none:?}");
        }
    }
}

//! Numbers and foreign text as they are shown.

use slipway_core::text::misleads;
use slipway_core::units::ByteSize;

/// Bytes with a binary unit.
pub(crate) fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// Milliseconds as `0.3s`, `12.0s`, `2m05s`.
pub(crate) fn seconds(ms: u64) -> String {
    if ms < 60_000 {
        format!("{}.{}s", ms / 1000, ms % 1000 / 100)
    } else {
        format!("{}m{:02}s", ms / 60_000, ms / 1000 % 60)
    }
}

/// Text from inside a build, safe for a terminal: no control characters or others that hide or turn what follows, no
/// escape sequences (those of colour among them), tabs as spaces. What a carriage return would overwrite is dropped, as a terminal would.
pub(super) fn clean(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let line = line.rsplit('\r').next().unwrap_or(line);
    let mut out = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\t' => out.push_str("    "),
            '\u{1b}' => skip_escape(&mut characters),
            _ if misleads(character) => {}
            _ => out.push(character),
        }
    }
    out
}

/// [`clean`] for text of several lines.
pub(crate) fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// Skips an escape sequence (ECMA-48: CSI up to its final byte, OSC up to BEL or ST, else one character).
fn skip_escape(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match characters.next() {
        Some('[') => {
            for next in characters.by_ref() {
                if ('\u{40}'..='\u{7e}').contains(&next) {
                    return;
                }
            }
        }
        Some(']') => {
            while let Some(next) = characters.next() {
                if next == '\u{7}' {
                    return;
                }
                if next == '\u{1b}' {
                    characters.next_if_eq(&'\\');
                    return;
                }
            }
        }
        Some(_) | None => {}
    }
}

/// At most `width` columns of it.
pub(super) fn cut(line: &str, width: usize) -> String {
    console::truncate_str(line, width, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_prints_turns_and_hides_no_text() {
        let printed = "a\u{202e}cba\u{200f}\u{1b}[31m\u{2066}\u{85}z\tß🚢";
        assert_eq!(clean(printed), "acbaz    ß🚢");
    }
}

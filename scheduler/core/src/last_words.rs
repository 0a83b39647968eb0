//! The last words of a machine that ended badly, out of what it printed, for whoever waits for it.
//!
//! The machine is its org's own, and so are its words; they may be hostile to a terminal, and so only printable text is left of them.
//!
//! Must not know: where a console is kept.

use crate::limits::{LAST_WORDS_BYTES_MAX, LAST_WORDS_LINES_MAX};

const BETWEEN: &str = " | ";

/// The last lines of a console as one line of at most [`LAST_WORDS_BYTES_MAX`] bytes; nothing if it said nothing. No quotation mark
/// and no backslash is in it, so that it is no longer in JSON.
pub fn last_words(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    let mut words = String::new();
    let lines = text.lines().rev().map(printable);
    for line in lines
        .filter(|line| !line.is_empty())
        .take(LAST_WORDS_LINES_MAX)
    {
        if words.is_empty() {
            words = shortened(line, LAST_WORDS_BYTES_MAX);
        } else if words.len() + BETWEEN.len() + line.len() <= LAST_WORDS_BYTES_MAX {
            words = [&line, BETWEEN, &words].concat();
        } else {
            break;
        }
    }
    (!words.is_empty()).then_some(words)
}

/// Without control characters, and without sequences that move or colour a terminal.
fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                // Ends with its first letter or sign.
                for within in characters.by_ref() {
                    if ('\u{40}'..='\u{7e}').contains(&within) {
                        break;
                    }
                }
            }
            '"' => text.push('\''),
            '\\' => text.push('/'),
            '\t' => text.push(' '),
            plain if plain.is_ascii_graphic() || plain.is_alphanumeric() || plain == ' ' => {
                text.push(plain);
            }
            _ => {}
        }
    }
    text.trim().to_owned()
}

fn shortened(mut line: String, most: usize) -> String {
    let end = (0..=most.min(line.len()))
        .rev()
        .find(|end| line.is_char_boundary(*end));
    line.truncate(end.unwrap_or(0));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_one_printable_line() {
        let told = |console: &str| last_words(console.as_bytes());
        assert_eq!(told(""), None);
        assert_eq!(told("\n \r\n\u{7}\n"), None);
        assert_eq!(
            told("zero\none\ntwo\n\nthree\nfour\n").as_deref(),
            Some("one | two | three | four")
        );
        assert_eq!(
            told("\u{1b}[2m2026\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m msg=\"no \\ room\"\u{202e}\r\n")
                .as_deref(),
            Some("2026  WARN msg='no / room'")
        );
        assert_eq!(last_words(b"\xffbad\n").as_deref(), Some("bad"));
    }

    #[test]
    fn they_are_bounded_and_the_last_line_is_there_whatever_comes_before() {
        let long = "ä".repeat(LAST_WORDS_BYTES_MAX);
        let cut = last_words(long.as_bytes()).unwrap_or_default();
        assert!(cut.len() <= LAST_WORDS_BYTES_MAX && cut.len() + 2 > LAST_WORDS_BYTES_MAX);
        let console = format!("{long}\nKernel panic\n");
        assert_eq!(
            last_words(console.as_bytes()).as_deref(),
            Some("Kernel panic")
        );
    }
}

//! The lines of a Dockerfile round a fault, as people read them.

use super::details::Source;
use crate::limits::{EXCERPT_BYTES_MAX, EXCERPT_LINE_CHARS_MAX, EXCERPT_LINES_MAX};
use std::fmt::Write as _;

/// Lines shown before the first line that failed, and after the last one.
const CONTEXT_LINES: usize = 2;

/// The excerpt: the file's name with the first line that failed, then lines with their numbers, those that failed behind
/// `>>>`. Nothing where no line is known.
pub(super) fn of(source: &Source) -> Option<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut failed = source.ranges.clone();
    failed.retain(|(start, _)| (1..=lines.len()).contains(start));
    if failed.is_empty() {
        // The frontend's own line has no range.
        let at = syntax_line(&source.text)?.0;
        failed.push((at, at));
    }
    let first = failed.iter().map(|(start, _)| *start).min()?;
    let last = failed.iter().map(|(_, end)| *end).max()?.min(lines.len());
    let from = first.saturating_sub(CONTEXT_LINES).max(1);
    let to = last.saturating_add(CONTEXT_LINES).min(lines.len());
    let mut text = format!("{}:{first}", printable(&source.filename));
    for number in from..=to {
        if number - from == EXCERPT_LINES_MAX {
            let _ = write!(text, "\n   ... {} lines more", to - number + 1);
            break;
        }
        let is_failed = failed
            .iter()
            .any(|(start, end)| (*start..=*end).contains(&number));
        let mark = if is_failed { ">>>" } else { "   " };
        let line = lines.get(number - 1).copied().unwrap_or_default();
        let shown = format!("{number:4} | {mark} {}", printable(line));
        let _ = write!(text, "\n{}", shown.trim_end());
    }
    text.truncate(text.floor_char_boundary(EXCERPT_BYTES_MAX));
    Some(text)
}

/// The line, from 1, in which a Dockerfile names its frontend, and the frontend.
pub(super) fn syntax_line(text: &str) -> Option<(usize, &str)> {
    // Directives stand before everything else.
    text.trim_start_matches('\u{feff}')
        .lines()
        .take_while(|line| line.starts_with('#'))
        .enumerate()
        .find_map(|(at, line)| {
            let (key, value) = line[1..].split_once('=')?;
            let is_syntax = key.trim().eq_ignore_ascii_case("syntax");
            is_syntax.then_some((at + 1, value.trim()))
        })
}

/// A line without control characters, and not too long.
fn printable(line: &str) -> String {
    let shown = line.trim_end().chars().take(EXCERPT_LINE_CHARS_MAX);
    let mut text: String = shown
        .map(|char| match char {
            '\t' => ' ',
            _ if char.is_control() => '\u{fffd}',
            _ => char,
        })
        .collect();
    if line
        .trim_end()
        .chars()
        .nth(EXCERPT_LINE_CHARS_MAX)
        .is_some()
    {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str, ranges: &[(usize, usize)]) -> Source {
        Source {
            filename: "Dockerfile".to_owned(),
            text: text.to_owned(),
            ranges: ranges.to_vec(),
        }
    }

    #[test]
    fn failed_lines_are_marked_among_their_neighbours() {
        let text =
            "FROM a\n\nRUN one\nRUN two \\\n  \u{1b}[31mthree\nRUN four\nRUN five\nRUN six\n";
        assert_eq!(
            of(&source(text, &[(4, 4), (5, 5)])).unwrap_or_default(),
            "Dockerfile:4\n   2 |\n   3 |     RUN one\n   4 | >>> RUN two \\\n   5 | >>>   \u{fffd}[31mthree\n   6 |     RUN four\n   7 |     RUN five"
        );
        let at = |line| of(&source("FROM a\nRUN b\n", &[(line, line)]));
        assert!(at(1).is_some_and(|text| text.ends_with("   1 | >>> FROM a\n   2 |     RUN b")));
        assert!(at(0).is_none() && at(3).is_none());
    }

    #[test]
    fn the_line_of_the_frontend_is_found() {
        let text = "# escape=`\n#SYNTAX = r/f:1 \nFROM a\n";
        assert_eq!(syntax_line(text), Some((2, "r/f:1")));
        assert_eq!(syntax_line("FROM a\n# syntax=x\n"), None);
        let shown = of(&source(text, &[(0, 0)])).unwrap_or_default();
        assert!(shown.contains("2 | >>> #SYNTAX"), "{shown}");
    }

    #[test]
    fn a_huge_instruction_is_shown_in_part() {
        let text = "RUN x\n".repeat(5000) + &"y".repeat(9000);
        let shown = of(&source(&text, &[(10, 5000)])).unwrap_or_default();
        assert!(shown.len() <= EXCERPT_BYTES_MAX && shown.ends_with("lines more"));
        let shown = of(&source(&text, &[(5001, 5001)])).unwrap_or_default();
        assert!(shown.len() <= EXCERPT_BYTES_MAX && shown.ends_with("yyy..."));
    }
}

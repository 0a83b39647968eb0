//! The two outputs: stdout carries data and nothing else, stderr carries talk.
//!
//! Owns tables, JSON lines, the last line of a failed command, and whether colours are wanted. A closed pipe ends no command: what nobody reads is not worth an error. A full disk does, once the
//! command has done its work.
//! Must not know any command.

use crate::exit::Failure;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// Why data could not be written, if that happened. A printer is copied freely, and so cannot keep it.
static LOST: Mutex<Option<Failure>> = Mutex::new(None);

/// Where a command prints, and in which format.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    format: Format,
    quiet: bool,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns, for people.
    Human,
    /// One JSON document per line.
    Json,
}

impl Printer {
    /// Prints in `format`.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            quiet: false,
        }
    }

    /// The same; if `quiet`, talk is left out. Data, warnings and failures are printed all the same.
    #[must_use]
    pub fn quiet(self, quiet: bool) -> Self {
        Self { quiet, ..self }
    }

    /// Talk is left out.
    pub fn is_quiet(self) -> bool {
        self.quiet
    }

    /// The format that was asked for.
    pub fn format(self) -> Format {
        self.format
    }

    /// Data: one line on stdout.
    pub fn data(self, line: &str) {
        let mut out = std::io::stdout().lock();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        if let Err(error) = written
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
            lost.get_or_insert_with(|| {
                Failure::user_caused("the output could not be written", &error)
                    .hint("look at the place that standard output was sent to")
            });
        }
    }

    /// Data: one JSON document on one line of stdout.
    pub fn json<T: Serialize>(self, value: &T) {
        match serde_json::to_string(value) {
            Ok(text) => self.data(&text),
            Err(error) => self.warn(&format!("cannot print as json: {error}")),
        }
    }

    /// Talk: one line (or more) on stderr.
    pub fn note(self, line: &str) {
        if !self.quiet {
            say(line);
        }
    }

    /// Why the command failed: text on stderr, and as JSON also the last line of stdout.
    pub fn failure(self, failure: &Failure) {
        if self.format == Format::Json {
            self.json(&LastLine::Error {
                exit_code: failure.code(),
                message: failure.message(),
                hint: failure.hint_text(),
                excerpt: failure.excerpt(),
            });
        }
        say(&failure.to_string());
    }

    /// Talk: something the caller should look at, though the command goes on.
    pub fn warn(self, line: &str) {
        say(&format!("warning: {line}"));
    }

    /// A list: one JSON array, or as a table whose cells `row` makes.
    pub fn list<T: Serialize, const N: usize>(
        self,
        head: [&str; N],
        items: &[T],
        row: impl Fn(&T) -> [String; N],
    ) {
        match self.format {
            Format::Json => self.json(&items),
            Format::Human => {
                let rows: Vec<[String; N]> = items.iter().map(row).collect();
                for line in table(head, &rows) {
                    self.data(&line);
                }
            }
        }
    }

    /// One thing: a JSON document, or `key  value` lines.
    pub fn record<T: Serialize>(self, item: &T, fields: &[(&str, String)]) {
        match self.format {
            Format::Json => self.json(item),
            Format::Human => {
                for line in record_lines(fields) {
                    self.data(&line);
                }
            }
        }
    }
}

/// What a failed command prints last, as JSON.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum LastLine<'a> {
    Error {
        exit_code: u8,
        message: &'a str,
        hint: Option<&'a str>,
        excerpt: Option<&'a str>,
    },
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Why data could not be written to standard output, if somebody wanted it there. What the command did is done all the same.
pub fn lost_data() -> Option<Failure> {
    let lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.clone()
}

/// A person reads stderr.
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Text on stderr may have colours: a person reads it, unless `NO_COLOR` forbids them or `CLICOLOR_FORCE` wants them.
pub fn stderr_has_colours() -> bool {
    let text = |name| std::env::var(name).ok();
    has_colours(
        text("NO_COLOR").as_deref(),
        text("CLICOLOR_FORCE").as_deref(),
        stderr_is_terminal(),
    )
}

fn has_colours(no_color: Option<&str>, force: Option<&str>, is_terminal: bool) -> bool {
    let forbidden = no_color.is_some_and(|value| !value.is_empty());
    let forced = force.is_some_and(|value| !matches!(value, "" | "0"));
    !forbidden && (forced || is_terminal)
}

/// A person types on stdin.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Columns as wide as their widest cell, two spaces between, no trailing spaces.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&head.map(|cell| cell))];
    for row in rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        lines.push(line(&cells));
    }
    lines
}

/// `key  value` lines with the values aligned. Further lines of a value stand below its first: none looks like a key.
pub fn record_lines(fields: &[(&str, String)]) -> Vec<String> {
    let width = fields.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    fields
        .iter()
        .map(|(key, value)| {
            let below = format!("\n{:width$}  ", "");
            let value = value.trim_end().lines().collect::<Vec<_>>().join(&below);
            format!("{key:width$}  {value}").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_the_terminal_unless_a_variable_says_otherwise() {
        for (no_color, force, is_terminal, want) in [
            (None, None, true, true),
            (None, None, false, false),
            (Some("1"), None, true, false),
            (Some(""), None, true, true),
            (None, Some("1"), false, true),
            (None, Some("0"), false, false),
            (Some("1"), Some("1"), true, false),
        ] {
            assert_eq!(has_colours(no_color, force, is_terminal), want);
        }
    }

    #[test]
    fn tables_align_and_do_not_trail() {
        let rows = [
            ["a".to_owned(), "running".to_owned()],
            ["longer".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["NAME", "STATE"], &rows),
            ["NAME    STATE", "a       running", "longer"]
        );
        assert_eq!(
            record_lines(&[("app", "x".to_owned()), ("digest", "y".to_owned())]),
            ["app     x", "digest  y"]
        );
        let error = "no\nstate  succeeded\r\n\nx\n".to_owned();
        assert_eq!(
            record_lines(&[("error", error), ("state", "failed".to_owned())]),
            [
                "error  no\n       state  succeeded\n       \n       x",
                "state  failed"
            ]
        );
    }
}

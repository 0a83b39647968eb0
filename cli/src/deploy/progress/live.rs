//! The live part of a terminal: a frame of lines that is drawn anew in place, and lines above it that stay.
//!
//! Each line ends with a line feed of its own, so that a terminal whose width changes wraps each by itself, and it is known how
//! many rows the frame has become. (indicatif joins its lines by automatic wrapping: a narrower terminal then keeps pieces of
//! the frame, and a wider one loses lines above it.) What stays out of reach: rows that a narrower terminal pushes over its
//! upper edge, and those of a frame drawn after the terminal became narrower and before it said so (tmux takes 250 ms).
//!
//! Must not know what is shown.

use super::tree::Room;
use console::Term;
use std::fmt::Write as _;

const UP: &str = "\u{1b}[A";
const CLEAR_LINE: &str = "\u{1b}[2K";
const CLEAR_TO_END_OF_LINE: &str = "\u{1b}[K";
const CLEAR_TO_END_OF_SCREEN: &str = "\u{1b}[J";

/// The terminal on standard error.
#[derive(Debug)]
pub(super) struct Live {
    term: Term,
    reflows: bool,
    frame: Frame,
}

/// What was drawn last.
#[derive(Debug, Default)]
struct Frame {
    /// Columns of each line.
    columns: Vec<usize>,
    /// Columns of the terminal then.
    width: usize,
}

impl Live {
    /// Nothing is drawn yet.
    pub(super) fn new() -> Self {
        Self {
            term: Term::stderr(),
            reflows: reflows(&|name| std::env::var(name).ok()),
            frame: Frame::default(),
        }
    }

    /// Room for lines on the terminal now: the last column stays free, for where the cursor is behind it differs.
    pub(super) fn room(&self) -> Room {
        let terminal = self.terminal();
        Room {
            width: terminal.width - 1,
            ..terminal
        }
    }

    fn terminal(&self) -> Room {
        let (height, width) = self.term.size();
        Room {
            width: usize::from(width).max(20),
            height: usize::from(height),
        }
    }

    /// Puts `frame` in the place of the last one, and `above` above it, to stay.
    pub(super) fn draw(&mut self, above: &[String], frame: &[String]) {
        // Elsewhere than on a terminal there is no place to come back to.
        let frame = if self.term.is_term() { frame } else { &[] };
        let room = self.terminal();
        let painted = paint(&self.frame, above, frame, room, self.reflows);
        // A terminal that is gone ends no build.
        let _gone = self
            .term
            .write_str(&painted)
            .and_then(|()| self.term.flush());
        self.frame = Frame {
            columns: frame
                .iter()
                .map(|line| console::measure_text_width(line))
                .collect(),
            width: room.width,
        };
    }
}

/// Whether the terminal wraps what is on it anew when its width changes. Those that cut lines off instead are few, and say who
/// they are.
fn reflows(env: &dyn Fn(&str) -> Option<String>) -> bool {
    let is_linux = env("TERM").is_some_and(|term| term == "linux");
    let cuts = ["XTERM_VERSION", "STY"];
    !is_linux && (env("TMUX").is_some() || cuts.iter().all(|name| env(name).is_none()))
}

/// Rows that the frame takes on a terminal of `width` columns. The cursor is in the last one.
fn rows(frame: &Frame, width: usize, reflows: bool) -> usize {
    let of_line = |columns: &usize| match reflows {
        true => columns.div_ceil(width.max(1)).max(1),
        false => 1,
    };
    frame.columns.iter().map(of_line).sum()
}

fn paint(last: &Frame, above: &[String], frame: &[String], room: Room, reflows: bool) -> String {
    let mut out = String::new();
    // What has gone over the upper edge is out of reach.
    let rows = rows(last, room.width, reflows).min(room.height);
    if last.width != room.width {
        // Wrapped rows would stay parts of one line if they were only written over. One by one, and from below: terminals
        // keep a screen that is cleared at once.
        for at in 0..rows {
            out.push_str(if at == 0 { "\r" } else { UP });
            out.push_str(CLEAR_LINE);
        }
    } else {
        out.extend(std::iter::repeat_n(UP, rows.saturating_sub(1)));
        out.push_str(if rows > 0 { "\r" } else { "" });
    }
    for line in above.iter().flat_map(|lines| lines.split('\n')) {
        let _ = writeln!(out, "{line}{CLEAR_TO_END_OF_LINE}");
    }
    for (at, line) in frame.iter().enumerate() {
        let feed = if at == 0 { "" } else { "\n" };
        let _ = write!(out, "{feed}{line}{CLEAR_TO_END_OF_LINE}");
    }
    out.push_str(CLEAR_TO_END_OF_SCREEN);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(columns: &[usize], width: usize) -> Frame {
        Frame {
            columns: columns.to_vec(),
            width,
        }
    }

    #[test]
    fn rows_are_those_of_the_width_there_is_now() {
        let drawn = frame(&[10, 99, 0, 100], 100);
        for (width, reflows, expected) in [
            (100, true, 4),
            (200, true, 4),
            (99, true, 5),
            (50, true, 6),
            (30, true, 1 + 4 + 1 + 4),
            (30, false, 4),
        ] {
            assert_eq!(rows(&drawn, width, reflows), expected, "{width} {reflows}");
        }
        assert_eq!(rows(&Frame::default(), 80, true), 0);
    }

    #[test]
    fn a_frame_takes_the_place_of_the_last_one() {
        let lines = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let room = |width| Room { width, height: 5 };
        let first = paint(&frame(&[], 9), &[], &lines(&["a", "b"]), room(9), true);
        assert_eq!(first, "a\u{1b}[K\nb\u{1b}[K\u{1b}[J");
        let next = paint(
            &frame(&[1, 1], 9),
            &lines(&["x\ny"]),
            &lines(&["c"]),
            room(9),
            true,
        );
        assert_eq!(next, "\u{1b}[A\rx\u{1b}[K\ny\u{1b}[K\nc\u{1b}[K\u{1b}[J");
        let narrower = paint(&frame(&[9], 9), &[], &[], room(5), true);
        assert_eq!(narrower, "\r\u{1b}[2K\u{1b}[A\u{1b}[2K\u{1b}[J");
        let tall = paint(&frame(&[9; 9], 9), &[], &[], room(5), true);
        assert_eq!(tall.matches(CLEAR_LINE).count(), 5);
    }

    #[test]
    fn terminals_that_cut_lines_off_are_known() {
        let known = |set: &'static [(&'static str, &'static str)]| {
            reflows(&move |name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(known(&[("TERM", "xterm-256color")]));
        assert!(known(&[
            ("TERM", "screen"),
            ("TMUX", "1"),
            ("XTERM_VERSION", "1")
        ]));
        assert!(!known(&[
            ("TERM", "xterm"),
            ("XTERM_VERSION", "XTerm(379)")
        ]));
        assert!(!known(&[("TERM", "linux")]));
        assert!(!known(&[("TERM", "screen"), ("STY", "1.tty")]));
    }
}

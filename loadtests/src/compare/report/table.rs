//! One case as rows of text. Pure.

use crate::compare::case::megabytes;
use crate::compare::outcome::{Outcome, Standing};

/// Names of the columns of [`rows`].
pub(super) const HEAD: [&str; 7] = ["", "runs", "min", "median", "max", "size", "against it"];

/// One row a contender, ours first in order of the case; the last column says how many times better our best is than it.
pub fn rows(outcome: &Outcome) -> Vec<[String; 7]> {
    let ours = outcome.contenders.iter().filter(|one| one.is_ours);
    let medians = ours.filter_map(|one| Some(one.spread()?.median));
    let best = medians.reduce(|a, b| {
        let first_is_better = outcome.unit.times_better(a, b) >= 1.0;
        if first_is_better { a } else { b }
    });
    let row = |one: &Standing| row(one, outcome, best);
    outcome.contenders.iter().map(row).collect()
}

fn row(one: &Standing, outcome: &Outcome, best: Option<f64>) -> [String; 7] {
    let show = |value: f64| outcome.unit.show(value);
    let none = || "-".to_owned();
    let mut name = one.name.clone();
    if let Some(why) = &one.absent {
        name.push_str(&format!(" (absent: {why})"));
    }
    let spread = one.spread();
    let ratio = best.zip(spread).filter(|_| !one.is_ours);
    [
        name,
        one.samples.len().to_string(),
        spread.map_or_else(none, |spread| show(spread.min)),
        spread.map_or_else(none, |spread| show(spread.median)),
        spread.map_or_else(none, |spread| show(spread.max)),
        one.size_bytes
            .map_or_else(none, |size| megabytes(size as f64)),
        ratio.map_or_else(none, |(best, spread)| {
            format!("{:.1}x", outcome.unit.times_better(best, spread.median))
        }),
    ]
}

/// A case for the terminal: its rows, aligned, and its verdicts.
pub fn table(outcome: &Outcome) -> String {
    let rows = rows(outcome);
    let head = HEAD.map(str::to_owned);
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| {
            let cells = rows.iter().chain([&head]);
            let lengths = cells.map(|row| row[column].chars().count());
            lengths.max().unwrap_or(0)
        })
        .collect();
    let mut text = format!("{}: {}\n", outcome.case, outcome.title);
    for row in [&head].into_iter().chain(&rows) {
        let mut line = format!("  {:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for verdict in &outcome.verdicts {
        let note = verdict.note.as_ref();
        let note = note.map_or(String::new(), |note| format!(" ({note})"));
        text.push_str(&format!(
            "  must be {}; is {}: {}{note}\n",
            verdict.must,
            verdict.got,
            verdict.word()
        ));
    }
    text
}

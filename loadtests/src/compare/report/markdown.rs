//! A page of results. The part between the marks is written by each run; what a person wrote around it stays. Pure.

use super::table::{HEAD, rows};
use crate::compare::outcome::Outcome;

const BEGIN: &str = "<!-- results: written by `slipway-loadtest compare --write` -->";
const END: &str = "<!-- end of results -->";

/// The page, with what `before` had outside of the marks.
pub fn markdown(scenario: &str, about: &str, outcomes: &[Outcome], before: &str) -> String {
    let results = results(scenario, outcomes);
    let around = before
        .split_once(BEGIN)
        .and_then(|(top, rest)| Some((top, rest.split_once(END)?.1)));
    match around {
        Some((top, bottom)) => format!("{top}{results}{bottom}"),
        None => format!("# {about}\n\n{results}\n"),
    }
}

fn results(scenario: &str, outcomes: &[Outcome]) -> String {
    let mut text = format!("{BEGIN}\n\n![Medians, smallest and largest]({scenario}.svg)\n");
    for outcome in outcomes {
        text.push_str(&case(outcome));
    }
    text.push_str(&format!("\n{END}"));
    text
}

fn case(outcome: &Outcome) -> String {
    let mut text = format!("\n## {}\n\n{}.", outcome.title, outcome.input);
    if outcome.is_quick {
        text.push_str(" **A quick run: not to be quoted.**");
    }
    text.push_str("\n\n");
    text.push_str(&line(&HEAD));
    text.push_str(&line(&HEAD.map(|name| match name {
        "" => "---",
        _ => "---:",
    })));
    for row in rows(outcome) {
        text.push_str(&line(&row.each_ref().map(String::as_str)));
    }
    if !outcome.verdicts.is_empty() {
        text.push_str("\n| must be | is | |\n|---|---|---|\n");
        for verdict in &outcome.verdicts {
            let note = verdict.note.as_ref();
            let note = note.map_or(String::new(), |note| format!("; {note}"));
            let word = format!("{}{note}", verdict.word());
            text.push_str(&line(&[&verdict.must, &verdict.got, &word]));
        }
    }
    let versions: Vec<String> = outcome.machine.versions.iter().map(version).collect();
    text.push_str(&format!(
        "\n{} on {}. {}.\n",
        outcome.day,
        outcome.machine.line(),
        versions.join(", ")
    ));
    text
}

fn version((name, version): (&String, &String)) -> String {
    format!("{name} {version}")
}

fn line(cells: &[&str]) -> String {
    let escaped: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", escaped.join(" | "))
}

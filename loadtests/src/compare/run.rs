//! Runs cases: every contender in turn, round after round (A B C A B C ...), so that what the machine does meanwhile
//! meets all of them alike.

use super::case::Case;
use super::machine::Machine;
use super::outcome::{Outcome, Standing, judge};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// What the caller chose, as scenarios see it.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Small inputs and few rounds: to see that everything works.
    pub quick: bool,
    /// Names of cases; empty for all.
    pub only: Vec<String>,
    /// Runs of each contender; absent for the case's own number.
    pub rounds: Option<usize>,
}

impl Choice {
    /// Whether a case of this name is to be run.
    pub fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == case)
    }

    /// `quick` or `full`, as was chosen.
    pub fn size<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Collects the outcomes of one scenario.
#[derive(Debug)]
pub struct Run {
    /// What the caller chose.
    pub choice: Choice,
    versions: BTreeMap<String, String>,
    outcomes: Vec<Outcome>,
}

impl Run {
    /// Nothing yet.
    pub fn new(choice: Choice) -> Run {
        Run {
            choice,
            versions: BTreeMap::new(),
            outcomes: Vec::new(),
        }
    }

    /// Notes the version of somebody who takes part; one that is not there is not noted.
    pub fn version(&mut self, name: &str, version: Option<String>) {
        if let Some(version) = version {
            self.versions.insert(name.to_owned(), version);
        }
    }

    /// Runs a case, unless others were asked for. A peer that fails is named with its reason and runs no more.
    ///
    /// # Errors
    /// One of ours fails.
    pub fn case(&mut self, case: Case<'_>) -> Result<()> {
        if !self.choice.wants(case.name) {
            return Ok(());
        }
        let rounds = self.choice.rounds.unwrap_or(case.rounds).max(1);
        tell(&format!("{}: {} ({})", case.name, case.title, case.input));
        let mut contenders = case.contenders;
        let mut standings: Vec<Standing> = contenders
            .iter()
            .map(|one| {
                let absent = one.runner.as_ref().err();
                Standing::new(&one.name, one.is_ours, absent.map(|why| reason(why)))
            })
            .collect();
        for round in 0..rounds {
            for (contender, standing) in contenders.iter_mut().zip(&mut standings) {
                let (Ok(runner), None) = (&mut contender.runner, &standing.absent) else {
                    continue;
                };
                match runner(round) {
                    Ok(sample) => {
                        let shown = case.unit.show(sample.value);
                        tell(&format!("  {:<44} {shown}", contender.name));
                        standing.add(sample);
                    }
                    Err(error) if contender.is_ours => {
                        return Err(error)
                            .with_context(|| format!("{}, {}", case.name, contender.name));
                    }
                    Err(error) => {
                        let why = reason(&format!("{error:#}"));
                        tell(&format!("  {:<44} failed: {why}", contender.name));
                        standing.absent = Some(why);
                    }
                }
            }
        }
        let verdicts = case
            .bars
            .iter()
            .map(|bar| judge(bar, case.unit, &standings, case.size_reference))
            .collect();
        self.outcomes.push(Outcome {
            case: case.name.to_owned(),
            title: case.title,
            input: case.input,
            unit: case.unit,
            is_quick: self.choice.quick,
            day: today(),
            machine: Machine::describe(self.versions.clone()),
            contenders: standings,
            verdicts,
        });
        Ok(())
    }

    /// All outcomes, in the order of the cases.
    pub fn finish(self) -> Vec<Outcome> {
        self.outcomes
    }
}

/// Most of a reason that a table has room for.
const REASON_BYTES: usize = 120;

/// News for whoever waits; results go to stdout.
fn tell(line: &str) {
    use std::io::Write;
    let _closed = writeln!(std::io::stderr(), "{line}");
}

/// Enough of a reason for a table: the end of its last line, where programs say what was wrong.
fn reason(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    let line = line.unwrap_or("failed").trim_start_matches("stderr: ");
    let from = line.floor_char_boundary(line.len().saturating_sub(REASON_BYTES));
    line[from..].to_owned()
}

fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.chars().take("2026-01-31".len()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::case::{Bar, Contender, Sample, Unit};
    use super::*;
    use std::cell::RefCell;

    fn sample(value: f64) -> Sample {
        Sample {
            value,
            ..Sample::default()
        }
    }

    fn case<'a>(contenders: Vec<Contender<'a>>) -> Case<'a> {
        Case {
            name: "c",
            title: "t".to_owned(),
            input: "i".to_owned(),
            unit: Unit::Seconds,
            rounds: 3,
            contenders,
            bars: vec![Bar::times("ours", "peer", 2.0)],
            size_reference: None,
        }
    }

    #[test]
    fn contenders_take_turns_and_the_absent_are_named() {
        let order = RefCell::new(String::new());
        let mut run = Run::new(Choice::default());
        run.case(case(vec![
            Contender::ours("ours", |_| {
                order.borrow_mut().push('a');
                Ok(sample(1.0))
            }),
            Contender::peer("peer", |_| {
                order.borrow_mut().push('b');
                Ok(sample(2.0))
            }),
            Contender::absent("other", "not installed"),
        ]))
        .unwrap();
        assert_eq!(*order.borrow(), "ababab");
        let outcome = &run.finish()[0];
        assert_eq!(outcome.verdicts[0].holds, Some(true));
        assert_eq!(
            outcome.contenders[2].absent.as_deref(),
            Some("not installed")
        );
    }

    #[test]
    fn a_peer_that_fails_runs_no_more_and_ours_must_not() {
        let mut run = Run::new(Choice::default());
        let fail = |round: usize| match round {
            0 => Ok(sample(2.0)),
            _ => Err(anyhow::anyhow!("status 1\ncannot\n\n")),
        };
        run.case(case(vec![
            Contender::ours("ours", |_| Ok(sample(1.0))),
            Contender::peer("peer", fail),
        ]))
        .unwrap();
        let outcomes = run.finish();
        let peer = &outcomes[0].contenders[1];
        assert_eq!(peer.samples, [2.0]);
        assert_eq!(peer.absent.as_deref(), Some("cannot"));
        let mut run = Run::new(Choice::default());
        let ours = case(vec![Contender::ours("ours", fail)]);
        assert!(run.case(ours).is_err());
    }

    #[test]
    fn only_what_was_asked_for_runs() {
        let mut run = Run::new(Choice {
            only: vec!["other".to_owned()],
            ..Choice::default()
        });
        let never = Contender::ours("ours", |_| Err(anyhow::anyhow!("it ran")));
        run.case(case(vec![never])).unwrap();
        assert_eq!(run.finish(), []);
    }
}

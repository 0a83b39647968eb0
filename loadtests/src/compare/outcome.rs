//! What came out of a case, and whether it is what must come out. Pure.

use super::case::{Bar, Sample, Unit};
use super::machine::Machine;
use serde::{Deserialize, Serialize};

/// A size this much above the reference must be said.
pub(super) const SIZE_NOTE_SHARE: f64 = 1.15;

/// One case, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// One line for people.
    pub title: String,
    /// The input, in one line.
    pub input: String,
    /// Of every sample.
    pub unit: Unit,
    /// Smaller and fewer runs than for a figure to be quoted.
    pub is_quick: bool,
    /// Day of the run, `YYYY-MM-DD`.
    pub day: String,
    /// Where it ran.
    pub machine: Machine,
    /// In the order of each round.
    pub contenders: Vec<Standing>,
    /// Required figures.
    pub verdicts: Vec<Verdict>,
}

/// One contender's samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The contender's name.
    pub name: String,
    /// Slipway's own.
    pub is_ours: bool,
    /// Why it has no or few samples: not installed, or failed.
    pub absent: Option<String>,
    /// In the order they were taken, in the case's unit.
    pub samples: Vec<f64>,
    /// Size of the last result, in bytes.
    pub size_bytes: Option<u64>,
    /// Most requests of any run.
    pub requests: Option<u64>,
}

impl Standing {
    /// A contender before its first run; `absent` says why there will be none.
    pub fn new(name: &str, is_ours: bool, absent: Option<String>) -> Standing {
        Standing {
            name: name.to_owned(),
            is_ours,
            absent,
            samples: Vec::new(),
            size_bytes: None,
            requests: None,
        }
    }

    /// Takes a sample in.
    pub fn add(&mut self, sample: Sample) {
        self.samples.push(sample.value);
        self.size_bytes = sample.size.or(self.size_bytes);
        self.requests = self.requests.max(sample.requests);
    }

    /// Smallest, median and largest; none without samples.
    pub fn spread(&self) -> Option<Spread> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted[sorted.len() / 2];
        let lower = sorted[(sorted.len() - 1) / 2];
        Some(Spread {
            min,
            median: f64::midpoint(lower, upper),
            max,
        })
    }
}

/// Three figures of some samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// The middle, or the mean of both middles.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

/// Whether one required figure holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What must be, for people.
    pub must: String,
    /// What came out, for people.
    pub got: String,
    /// Absent: it could not be measured, because somebody did not take part.
    pub holds: Option<bool>,
    /// What to know beside it, such as a larger result.
    pub note: Option<String>,
}

impl Verdict {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self.holds {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "not measured",
        }
    }
}

/// Judges a required figure by the medians of one run.
pub(super) fn judge(
    bar: &Bar,
    unit: Unit,
    contenders: &[Standing],
    size_reference: Option<&str>,
) -> Verdict {
    let find = |name: &str| contenders.iter().find(|contender| contender.name == name);
    let ours = find(bar.ours);
    let median = ours.and_then(Standing::spread).map(|spread| spread.median);
    let (mut must, mut got, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    if let Some((peer, least)) = bar.against {
        must.push(format!("{least}x against {peer}"));
        let theirs = find(peer)
            .and_then(Standing::spread)
            .map(|spread| spread.median);
        let times = median
            .zip(theirs)
            .map(|(ours, theirs)| unit.times_better(ours, theirs));
        got.push(times.map_or("-".to_owned(), |times| format!("{times:.1}x")));
        parts.push(times.map(|times| times >= least));
    }
    if let Some(most) = bar.at_most {
        must.push(format!("at most {}", unit.show(most)));
        got.push(median.map_or("-".to_owned(), |median| unit.show(median)));
        parts.push(median.map(|median| median <= most));
    }
    let peer_median = |peer| find(peer).and_then(Standing::spread).map(|it| it.median);
    if let Some((peer, most)) = bar.within {
        must.push(format!("at most {most}x {peer}"));
        let both = median.zip(peer_median(peer));
        let times = both.map(|(ours, theirs)| unit.times_better(theirs, ours));
        got.push(times.map_or("-".to_owned(), |times| format!("{times:.2}x")));
        parts.push(times.map(|times| times <= most));
    }
    if let Some((peer, most)) = bar.added {
        must.push(format!("at most {} above {peer}", unit.show(most)));
        let both = median.zip(peer_median(peer));
        let more = both.map(|(ours, theirs)| (ours - theirs).max(0.0));
        got.push(more.map_or("-".to_owned(), |more| unit.show(more)));
        parts.push(more.map(|more| more <= most));
    }
    if let Some(most) = bar.requests_at_most {
        must.push(format!("at most {most} requests"));
        let requests = ours.and_then(|ours| ours.requests);
        got.push(requests.map_or("-".to_owned(), |count| format!("{count} requests")));
        parts.push(requests.map(|count| count <= most));
    }
    // One that failed decides, even where another could not be measured.
    let holds = if parts.contains(&Some(false)) {
        Some(false)
    } else {
        parts
            .into_iter()
            .try_fold(true, |all, part| part.map(|part| all && part))
    };
    Verdict {
        must: format!("{}: {}", bar.ours, must.join(", ")),
        got: got.join(", "),
        holds,
        note: ours
            .zip(size_reference.and_then(find))
            .and_then(|(ours, reference)| size_note(ours, reference)),
    }
}

fn size_note(ours: &Standing, reference: &Standing) -> Option<String> {
    let share = ours.size_bytes? as f64 / reference.size_bytes? as f64;
    (share > SIZE_NOTE_SHARE).then(|| {
        let more = (share - 1.0) * 100.0;
        format!(
            "{more:.0}% larger than {}; a higher level makes it smaller",
            reference.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(name: &str, samples: &[f64], size: u64) -> Standing {
        let mut standing = Standing::new(name, name == "ours", None);
        for value in samples {
            standing.add(Sample {
                value: *value,
                size: Some(size),
                requests: Some(4),
            });
        }
        standing
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_both() {
        let spread = |samples: &[f64]| standing("a", samples, 1).spread();
        assert_eq!(spread(&[]), None);
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]),
            Some(Spread {
                min: 1.0,
                median: 2.0,
                max: 3.0
            })
        );
        assert_eq!(spread(&[4.0, 1.0]).map(|spread| spread.median), Some(2.5));
    }

    #[test]
    fn a_bar_holds_by_medians_and_by_every_part() {
        let all = [
            standing("ours", &[1.0, 2.0, 9.0], 100),
            standing("peer", &[10.0, 20.0, 21.0], 100),
        ];
        let holds = |bar: &Bar| judge(bar, Unit::Seconds, &all, None).holds;
        assert_eq!(holds(&Bar::times("ours", "peer", 10.0)), Some(true));
        assert_eq!(holds(&Bar::times("ours", "peer", 10.1)), Some(false));
        let both = Bar::times("ours", "peer", 10.0).at_most(1.9);
        assert_eq!(holds(&both), Some(false));
        let counted = Bar::times("ours", "peer", 10.0).requests_at_most(3);
        assert_eq!(holds(&counted), Some(false));
        assert_eq!(holds(&Bar::times("ours", "absent", 1.0)), None);
        let missed = Bar::times("ours", "absent", 1.0).at_most(1.0);
        assert_eq!(holds(&missed), Some(false), "what is known decides");
    }

    #[test]
    fn a_bound_above_a_peer_is_a_share_or_a_sum() {
        let all = [standing("ours", &[1.2], 1), standing("peer", &[1.0], 1)];
        let judged = |bar: Bar| {
            let verdict = judge(&bar, Unit::Seconds, &all, None);
            (verdict.holds, verdict.got)
        };
        let within = |times| judged(Bar::within("ours", "peer", times));
        assert_eq!(within(1.25), (Some(true), "1.20x".to_owned()));
        assert_eq!(within(1.15).0, Some(false));
        let added = |more| judged(Bar::added("ours", "peer", more));
        assert_eq!(added(0.25), (Some(true), "200 ms".to_owned()));
        assert_eq!(added(0.1).0, Some(false));
        assert_eq!(judged(Bar::within("ours", "absent", 2.0)).0, None);
        assert_eq!(judged(Bar::most("ours", 1.3)).0, Some(true));
    }

    #[test]
    fn more_per_second_is_better() {
        let all = [standing("ours", &[300.0], 1), standing("peer", &[100.0], 1)];
        let verdict = judge(
            &Bar::times("ours", "peer", 3.0),
            Unit::PerSecond,
            &all,
            None,
        );
        assert_eq!((verdict.holds, verdict.got.as_str()), (Some(true), "3.0x"));
    }

    #[test]
    fn a_larger_result_is_said() {
        let note = |size| {
            let all = [
                standing("ours", &[1.0], size),
                standing("peer", &[9.0], 100),
            ];
            judge(
                &Bar::times("ours", "peer", 1.0),
                Unit::Seconds,
                &all,
                Some("peer"),
            )
            .note
        };
        assert_eq!(note(115), None);
        assert!(note(120).is_some_and(|note| note.starts_with("20% larger")));
    }
}

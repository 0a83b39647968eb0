//! What is compared: a case, its contenders, and what must come out. Values only.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What a sample counts, and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Seconds; less is better.
    Seconds,
    /// Something per second; more is better.
    PerSecond,
    /// Bytes; less is better.
    Bytes,
}

impl Unit {
    /// How many times `ours` is better than `theirs`; above 1 is better.
    pub fn times_better(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Unit::Seconds | Unit::Bytes => theirs / ours,
            Unit::PerSecond => ours / theirs,
        }
    }

    /// A value with its unit, for people.
    pub fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds if value < 0.1 => format!("{:.1} ms", value * 1000.0),
            Unit::Seconds if value < 1.0 => format!("{:.0} ms", value * 1000.0),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::PerSecond if value < 100.0 => format!("{value:.1}/s"),
            Unit::PerSecond => format!("{value:.0}/s"),
            Unit::Bytes => megabytes(value),
        }
    }
}

/// Bytes in millions, for people.
pub(super) fn megabytes(bytes: f64) -> String {
    if bytes < 1e6 {
        format!("{:.1} kB", bytes / 1e3)
    } else {
        format!("{:.1} MB", bytes / 1e6)
    }
}

/// What one run of one contender gave.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// In the case's unit.
    pub value: f64,
    /// Bytes of what it made (compressed layers in the registry, say); absent where size says nothing.
    pub size: Option<u64>,
    /// Requests that the other side saw, where they are counted.
    pub requests: Option<u64>,
}

impl Sample {
    /// A time and nothing else.
    pub fn seconds(time: std::time::Duration) -> Sample {
        Sample {
            value: time.as_secs_f64(),
            ..Sample::default()
        }
    }
}

/// Runs a contender once, for the given round (from 0): prepares, measures, proves the result, and gives the measure.
pub type Runner<'a> = Box<dyn FnMut(usize) -> Result<Sample> + 'a>;

/// Somebody who can do the work of a case.
pub struct Contender<'a> {
    /// Unique in its case.
    pub name: String,
    /// Slipway's own; the others are peers.
    pub is_ours: bool,
    /// Does the work, or says why it is not there.
    pub runner: Result<Runner<'a>, String>,
}

impl<'a> Contender<'a> {
    /// One of ours.
    pub fn ours(name: &str, run: impl FnMut(usize) -> Result<Sample> + 'a) -> Contender<'a> {
        Contender {
            name: name.to_owned(),
            is_ours: true,
            runner: Ok(Box::new(run)),
        }
    }

    /// Somebody else's.
    pub fn peer(name: &str, run: impl FnMut(usize) -> Result<Sample> + 'a) -> Contender<'a> {
        Contender {
            name: name.to_owned(),
            is_ours: false,
            runner: Ok(Box::new(run)),
        }
    }

    /// Somebody else's that cannot take part, and why: it is named in the results all the same.
    pub fn absent(name: &str, why: impl Into<String>) -> Contender<'a> {
        Contender {
            name: name.to_owned(),
            is_ours: false,
            runner: Err(why.into()),
        }
    }
}

impl std::fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.runner.as_ref().map(|_| "ready");
        f.debug_struct("Contender")
            .field("name", &self.name)
            .field("runner", &state)
            .finish()
    }
}

/// What must come out of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Whose figure it is (a contender of ours).
    pub ours: &'static str,
    /// Against whom (a peer), and how many times better at least, by medians.
    pub against: Option<(&'static str, f64)>,
    /// Median of ours at most, in the case's unit.
    pub at_most: Option<f64>,
    /// Requests of ours at most.
    pub requests_at_most: Option<u64>,
    /// Against whom (a peer), and how many times worse at most, by medians.
    pub within: Option<(&'static str, f64)>,
    /// Against whom (a peer), and how much more than its median at most, in the case's unit.
    pub added: Option<(&'static str, f64)>,
}

impl Bar {
    /// Nothing yet of `ours`.
    fn of(ours: &'static str) -> Bar {
        Bar {
            ours,
            against: None,
            at_most: None,
            requests_at_most: None,
            within: None,
            added: None,
        }
    }

    /// `ours` at least `times` better than `peer`.
    pub fn times(ours: &'static str, peer: &'static str, times: f64) -> Bar {
        Bar {
            against: Some((peer, times)),
            ..Bar::of(ours)
        }
    }

    /// `ours` at most `times` worse than `peer`.
    pub fn within(ours: &'static str, peer: &'static str, times: f64) -> Bar {
        Bar {
            within: Some((peer, times)),
            ..Bar::of(ours)
        }
    }

    /// `ours` at most `more` above `peer`, in the case's unit.
    pub fn added(ours: &'static str, peer: &'static str, more: f64) -> Bar {
        Bar {
            added: Some((peer, more)),
            ..Bar::of(ours)
        }
    }

    /// Median of `ours` at most this, in the case's unit.
    pub fn most(ours: &'static str, value: f64) -> Bar {
        Bar::of(ours).at_most(value)
    }

    /// And its median at most this, in the case's unit.
    #[must_use]
    pub fn at_most(self, value: f64) -> Bar {
        Bar {
            at_most: Some(value),
            ..self
        }
    }

    /// And this many requests at most.
    #[must_use]
    pub fn requests_at_most(self, count: u64) -> Bar {
        Bar {
            requests_at_most: Some(count),
            ..self
        }
    }
}

/// One comparison: every contender does the same work on the same input.
#[derive(Debug)]
pub struct Case<'a> {
    /// Short and unique in its scenario; `--only` takes it.
    pub name: &'static str,
    /// One line for people.
    pub title: String,
    /// The input, in one line.
    pub input: String,
    /// Of every sample.
    pub unit: Unit,
    /// Runs of each contender.
    pub rounds: usize,
    /// In the order of each round.
    pub contenders: Vec<Contender<'a>>,
    /// What must come out.
    pub bars: Vec<Bar>,
    /// The peer whose size others' sizes are held against (gzip -6, say).
    pub size_reference: Option<&'static str>,
}

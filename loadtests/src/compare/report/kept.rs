//! Results of earlier runs, kept until their case is run again. Pure.

use crate::compare::outcome::Outcome;

/// The old outcomes with the new in their places; new cases come last.
pub fn merge(old: Vec<Outcome>, new: Vec<Outcome>) -> Vec<Outcome> {
    let mut all = old;
    for outcome in new {
        match all.iter_mut().find(|one| one.case == outcome.case) {
            Some(place) => *place = outcome,
            None => all.push(outcome),
        }
    }
    all
}

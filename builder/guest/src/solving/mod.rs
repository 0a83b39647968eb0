//! Builds on their way: solved by BuildKit, pushed, and what became of them put into words.
//!
//! It must not know how builds are kept, nor how events are asked for.

mod convert;
mod outcome;
mod reach;
mod run;
mod seen;
mod wishes;

pub(crate) use convert::Throttle;
pub(crate) use outcome::chain;
pub(crate) use run::start;
pub(crate) use seen::solves;

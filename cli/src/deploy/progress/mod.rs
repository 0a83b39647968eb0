//! Progress of a build as people see it: events in, lines out.
//!
//! [`board`] keeps what is known of each step; [`plain`] and [`tree`] are pure functions of it; [`view`] alone prints,
//! on a terminal through [`live`]. Must not know where events come from.

mod board;
mod live;
mod plain;
mod text;
mod tree;
mod view;

pub(crate) use board::Board;
pub(crate) use text::{bytes, clean_lines, seconds};
pub(crate) use view::{View, millis};

#[cfg(test)]
mod tests;

//! The process's environment, as what reads it is given it.
//!
//! It must not know what is read.

/// What the environment gives; tests give their own.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

//! What bad input and bad luck get, on a whole farm: a clear message with a hint last, the right exit code (1 the caller's fault,
//! 2 ours, 130 interrupted), nothing lost, nothing left running.

mod caller;
mod context;
mod database;
mod disk;
mod interrupt;
mod power;
mod registry;
mod version;

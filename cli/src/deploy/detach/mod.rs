//! `slipway deploy --detach`. On Unix it is two processes; Windows has no such way yet, and the flag is refused there.

#[cfg(not(unix))]
mod refused;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(super) use refused::{HandOver, supervise};
#[cfg(unix)]
pub(super) use unix::{HandOver, supervise};

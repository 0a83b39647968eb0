//! Looks at the machine once in a while: counts what runs, and collects garbage when the disk fills up while nothing
//! does.
//!
//! It must not know how garbage is chosen.

use crate::garbage::{Pressure, Reason, pressure};
use crate::guest::Guest;
use crate::phase::Phase;
use crate::share::meminfo;
use crate::{limits, running};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Watches until `stop`.
pub(crate) async fn watch(guest: Arc<Guest>, stop: CancellationToken) {
    // Dropping the future is safe at each of its waits: dockerd finishes or forgets what it was asked.
    stop.run_until_cancelled(look_again_and_again(&guest)).await;
}

async fn look_again_and_again(guest: &Guest) {
    guest
        .books
        .wait_phase(Duration::MAX, |phase| phase != Phase::Starting)
        .await;
    let mut collected_at: Option<Instant> = None;
    let mut buildkit_asks = 0;
    loop {
        running::count(&guest.books, &guest.docker).await;
        meminfo::refresh();
        guest.builds.forget_old();
        let due = collected_at.is_none_or(|at| at.elapsed() >= limits::COLLECT_PERIOD);
        let high = guest
            .disk()
            .is_some_and(|disk| pressure(disk) == Pressure::High);
        if due && high && guest.books.activity().is_quiet() {
            guest.collect(Reason::Routine).await;
            collected_at = Some(Instant::now());
        }
        tokio::time::sleep(limits::WATCH_PERIOD).await;
        // Not at once: whoever has woken the machine wants all of it.
        if buildkit_asks < limits::BUILDKIT_ASKS_MAX && !guest.knows_buildkit() {
            buildkit_asks += 1;
            guest.ask_buildkit().await;
        }
    }
}

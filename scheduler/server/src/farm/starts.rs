//! Turns of builders that start on one host: a few at once, the others in the order in which they came, each knowing how many
//! come first. So many builders that wake at once leave the host's API to those that run.
//!
//! Must not know: what a start is.

use crate::limits::HOST_STARTS_MAX;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The turns of one host.
#[derive(Debug)]
pub(crate) struct Starts {
    places: Semaphore,
    /// Tickets given out.
    given: AtomicU64,
    /// Tickets whose turn has come, or that were given up.
    over: AtomicU64,
}

impl Default for Starts {
    fn default() -> Self {
        Self {
            places: Semaphore::new(HOST_STARTS_MAX),
            given: AtomicU64::new(0),
            over: AtomicU64::new(0),
        }
    }
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Ticket<'s> {
    starts: &'s Starts,
    number: u64,
}

/// A turn; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the turn"]
pub(super) struct Turn<'s>(
    #[expect(dead_code, reason = "held until it is dropped")] Option<SemaphorePermit<'s>>,
);

impl Starts {
    /// A turn now, if nobody waits and there is one.
    pub(super) fn now(&self) -> Option<Turn<'_>> {
        self.places
            .try_acquire()
            .ok()
            .map(|place| Turn(Some(place)))
    }

    /// A place in the queue.
    pub(super) fn queue(&self) -> Ticket<'_> {
        Ticket {
            starts: self,
            number: self.given.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// How many in the queue come before this ticket.
    pub(super) fn ahead(&self, number: u64) -> u64 {
        number.saturating_sub(self.over.load(Ordering::Relaxed))
    }
}

impl<'s> Ticket<'s> {
    /// Which one.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Waits for the turn.
    pub(super) async fn turn(self) -> Turn<'s> {
        // Nobody closes it.
        Turn(self.starts.places.acquire().await.ok())
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.starts.over.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn turns_come_in_order_and_each_knows_how_many_come_first() {
        let starts = Arc::new(Starts::default());
        let mut turns: Vec<_> = (0..HOST_STARTS_MAX).filter_map(|_| starts.now()).collect();
        assert_eq!(turns.len(), HOST_STARTS_MAX);
        assert!(starts.now().is_none());
        let (told, mut heard) = tokio::sync::mpsc::channel(3);
        let mut numbers = Vec::new();
        for n in 0..3 {
            let (asked, came) = tokio::sync::oneshot::channel();
            let (starts, told) = (Arc::clone(&starts), told.clone());
            tokio::spawn(async move {
                let ticket = starts.queue();
                asked.send(ticket.number()).expect("heard");
                let turn = ticket.turn().await;
                told.send(n).await.expect("heard");
                drop(turn);
            });
            numbers.push(came.await.expect("a number"));
        }
        assert_eq!(
            numbers.iter().map(|n| starts.ahead(*n)).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        // Nobody overtakes those who wait.
        turns.pop();
        assert!(starts.now().is_none());
        assert_eq!(heard.recv().await, Some(0));
        assert_eq!(heard.recv().await, Some(1));
        assert_eq!(heard.recv().await, Some(2));
        assert_eq!(starts.ahead(numbers[2]), 0);
    }
}

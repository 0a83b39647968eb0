//! Standing still, so that the host can keep the machine's memory and go on from it another time, instead of booting.
//!
//! The life offers it when the machine ends for want of use. The host takes the offer through the door, or does not; then the
//! machine ends as always. While it stands still, its volume is written out and frozen: memory that is thrown away later takes
//! nothing with it. All of it happens in the life, one thing after another; the door only asks.
//!
//! ```text
//! Closed ──offer──▶ Offered ──host takes it──▶ Asked ──frozen──▶ Still ──told──▶ Told ──thawed──▶ Closed
//!    ▲                 │ nobody does              │ it fails        │ never told                      │
//!    └─────────────────┴──────────────────────────┴─────────────────┘◀────────────────────────────────┘
//! ```
//!
//! It must not know how memory is kept.

use crate::books::Books;
use crate::limits::{CAPTURE_OFFER_WAIT_MAX, CAPTURE_SETTLE, CAPTURE_STILL_MAX};
use crate::phase::Event;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::sync::Arc;
use tokio::sync::watch;

/// What the machine is told when it has stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is another time, and it is wanted again.
    GoOn,
    /// Its memory was not kept: it ends as it was about to.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Closed,
    Offered,
    Asked,
    Still,
    Told(Told),
}

/// The offer. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Capture {
    state: Arc<watch::Sender<State>>,
    /// Where the cache volume is mounted.
    volume: &'static str,
}

impl Capture {
    /// Nothing is offered yet.
    pub(crate) fn new(volume: &'static str) -> Self {
        Self {
            state: Arc::default(),
            volume,
        }
    }

    /// Whether the host may take it now.
    pub(crate) fn is_offered(&self) -> bool {
        *self.state.borrow() == State::Offered
    }

    /// For the host: has the machine stand still. Gives whether it does.
    pub(crate) async fn take(&self) -> bool {
        let mut states = self.state.subscribe();
        if !self.moved(State::Offered, State::Asked) {
            return false;
        }
        // The sender lives in `self`.
        let asked = states.wait_for(|state| *state != State::Asked).await;
        asked.is_ok_and(|state| *state == State::Still)
    }

    /// For the host: tells a machine that stands still how it goes on, and returns when it does. Fine if it does not stand still.
    pub(crate) async fn tell(&self, told: Told) {
        let mut states = self.state.subscribe();
        if self.moved(State::Still, State::Told(told)) {
            // The sender lives in `self`.
            let _ = states.wait_for(|state| *state == State::Closed).await;
        }
    }

    /// For the life of a machine that is to end: offers its memory. Gives whether the machine goes on instead of ending; the books
    /// say so then. `hurry` ends the offer while nobody has taken it.
    pub(crate) async fn offer(&self, books: &Books, hurry: impl Future<Output = ()>) -> bool {
        let taken = async {
            self.settle().await;
            let mut states = self.state.subscribe();
            self.state.send_replace(State::Offered);
            let taken = states.wait_for(|state| *state != State::Offered);
            // Whether it was is looked at below.
            let _ = tokio::time::timeout(CAPTURE_OFFER_WAIT_MAX, taken).await;
        };
        let hurried = tokio::select! {
            () = taken => false,
            () = hurry => true,
        };
        if hurried && *self.state.borrow() == State::Closed {
            return false;
        }
        if self.moved(State::Offered, State::Closed) {
            tracing::info!("nobody keeps the machine's memory: it ends");
            return false;
        }
        let told = match blocking(sys::freeze, self.volume).await {
            Ok(()) => self.wait_still().await,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the machine does not stand still"
                );
                Told::End
            }
        };
        // Also what is frozen by half.
        if let Err(error) = blocking(sys::thaw, self.volume).await {
            tracing::debug!(error = format!("{error:#}"), "nothing to thaw");
        }
        if told == Told::GoOn {
            books.on(Event::Resumed);
        }
        self.state.send_replace(State::Closed);
        told == Told::GoOn
    }

    /// What is kept is as small as it can be: freed memory is not.
    async fn settle(&self) {
        if let Err(error) = blocking(give_memory_back, self.volume).await {
            tracing::debug!(error = format!("{error:#}"), "caches stay");
        }
        tokio::time::sleep(CAPTURE_SETTLE).await;
    }

    async fn wait_still(&self) -> Told {
        let mut states = self.state.subscribe();
        self.state.send_replace(State::Still);
        let told = states.wait_for(|state| matches!(state, State::Told(_)));
        // By the machine's own clock, which stands while it does not run.
        match tokio::time::timeout(CAPTURE_STILL_MAX, told).await {
            Ok(Ok(state)) => match *state {
                State::Told(told) => told,
                State::Closed | State::Offered | State::Asked | State::Still => Told::End,
            },
            Ok(Err(_)) | Err(_) => Told::End,
        }
    }

    fn moved(&self, from: State, to: State) -> bool {
        self.state.send_if_modified(|state| {
            let is = *state == from;
            if is {
                *state = to;
            }
            is
        })
    }
}

async fn blocking(work: fn(&'static str) -> Result<()>, volume: &'static str) -> Result<()> {
    let done = tokio::task::spawn_blocking(move || work(volume)).await;
    done.context("the work broke off")?
}

/// Gives back the memory that only holds what is on disks: the kernel does so in the background, with what it was freed of.
fn give_memory_back(volume: &'static str) -> Result<()> {
    let root = File::open(volume).context("open the cache volume")?;
    nix::unistd::syncfs(root).context("write the cache volume out")?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop caches")
}

/// Interface: `FIFREEZE` and `FITHAW` of `include/uapi/linux/fs.h`.
#[expect(unsafe_code, reason = "freezing is an ioctl alone")]
mod sys {
    use super::{File, Result};
    use anyhow::Context as _;
    use nix::libc::c_int;
    use std::os::fd::AsRawFd;

    nix::ioctl_readwrite!(fifreeze, b'X', 119, c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, c_int);

    /// All that was written before is on the disk then, and the file system on it needs no recovery.
    pub(super) fn freeze(volume: &'static str) -> Result<()> {
        let root = File::open(volume).context("open the cache volume")?;
        let mut unused = 0;
        // SAFETY: the descriptor is open for the call; the kernel ignores the argument.
        let frozen = unsafe { fifreeze(root.as_raw_fd(), &mut unused) };
        frozen.map(drop).context("freeze the cache volume")
    }

    pub(super) fn thaw(volume: &'static str) -> Result<()> {
        let root = File::open(volume).context("open the cache volume")?;
        let mut unused = 0;
        // SAFETY: as above.
        let thawed = unsafe { fithaw(root.as_raw_fd(), &mut unused) };
        thawed.map(drop).context("thaw the cache volume")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn ending() -> Books {
        let books = Books::new(Instant::now());
        books.on(Event::Answered);
        books.on(Event::EndAsked);
        books
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_that_nobody_takes_is_withdrawn() {
        let (capture, books) = (Capture::new("/there is none"), ending());
        assert!(!capture.take().await, "not before it is offered");
        assert!(!capture.offer(&books, std::future::pending()).await);
        assert!(!capture.is_offered());
        assert!(!capture.take().await, "nor after");
        capture.tell(Told::GoOn).await;
        assert_eq!(books.phase(), crate::phase::Phase::Ending);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_in_a_hurry_does_not_wait() {
        let (capture, books) = (Capture::new("/there is none"), ending());
        let began = tokio::time::Instant::now();
        assert!(!capture.offer(&books, std::future::ready(())).await);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_cannot_stand_still_ends() {
        let (capture, books) = (Capture::new("/there is none"), ending());
        let host = async {
            let mut states = capture.state.subscribe();
            let offered = states.wait_for(|state| *state == State::Offered);
            drop(offered.await.unwrap());
            capture.take().await
        };
        let (goes_on, taken) = tokio::join!(capture.offer(&books, std::future::pending()), host);
        assert!(!goes_on && !taken);
    }
}

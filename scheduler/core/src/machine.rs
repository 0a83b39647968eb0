//! The life of one machine: a closed set of states and one transition function.
//!
//! ```text
//!              StartAsked            HostRuns            GuestReady
//!   Stopped ──────────────▶ Starting ─────────▶ Booting ───────────▶ Running
//!      ▲  ▲                    │  │                │ │                │   │
//!      │  │ Ended(clean), Gone │  │ StartFailed    │ │ Ended(crash)   │   │ EndAsked
//!      │  └────────────────────┼──┼────────────────┘ └───▶ Crashed ◀──┘   ▼
//!      │ GaveUp                └──┴──────────────────────▶   │   ◀───── Ending ──▶ Running (EndRefused)
//!      └─────────────────────────────────────────────────────┘            │
//!      └───────────────────────────── Ended, Gone ────────────────────────┘
//! ```
//!
//! Must not know: hosts, volumes, who wants the machine, or how anything is carried out.

use crate::generation::Generation;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Wait before the first new try after a crash or a failed start.
pub const RESTART_BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The wait doubles with each failure in a row, up to this.
pub const RESTART_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A start that waits for something else than its own machine (a key, a volume that is in use, room) counts as no more
/// failures than this, so that it is tried again soon after that is over.
pub const DELAYED_STARTS_COUNTED_MAX: u32 = 3;

const _: () = assert!(RESTART_BACKOFF_MIN.as_millis() < RESTART_BACKOFF_MAX.as_millis());

/// What a machine is doing, as the control plane knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum MachineState {
    /// It does not run, and stays so until somebody wants it.
    Stopped,
    /// This generation was asked of the host; whether it runs is not known yet.
    Starting {
        /// The generation asked for.
        generation: Generation,
        /// When it was asked for.
        since: Timestamp,
    },
    /// Its PID 1 lives. Connections are taken and wait in the backlog; dockerd has not answered yet.
    Booting {
        /// The generation that runs.
        generation: Generation,
        /// When it was seen to run.
        since: Timestamp,
    },
    /// dockerd answers.
    Running {
        /// The generation that runs.
        generation: Generation,
    },
    /// It was asked to end. Nobody may be connected to it any more.
    Ending {
        /// The generation that ends.
        generation: Generation,
        /// When it was asked.
        since: Timestamp,
    },
    /// It ended badly, or did not start. It is tried again at `retry_at` if somebody still wants it.
    Crashed {
        /// The generation that failed.
        generation: Generation,
        /// Failed starts in a row, this one included; 0 if it had been running well.
        failures: u32,
        /// Not before this.
        retry_at: Timestamp,
    },
}

/// What may happen to a machine. Each carries the generation it is about, so that late news of an older one is told
/// from news of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// The control plane has recorded `generation` and is about to ask the host for it.
    StartAsked {
        /// The new generation.
        generation: Generation,
        /// When.
        at: Timestamp,
    },
    /// The host says that this generation's PID 1 lives.
    HostRuns {
        /// Which generation.
        generation: Generation,
        /// When this was learnt.
        at: Timestamp,
    },
    /// The guest says that dockerd answers.
    GuestReady {
        /// Which generation.
        generation: Generation,
    },
    /// The host refused or failed to start this generation, and it does not run.
    StartFailed {
        /// Which generation.
        generation: Generation,
        /// When.
        at: Timestamp,
        /// Failed starts in a row before this.
        failures_before: u32,
    },
    /// The machine was asked to end.
    EndAsked {
        /// Which generation.
        generation: Generation,
        /// When.
        at: Timestamp,
    },
    /// The guest refused to end, because something is in flight.
    EndRefused {
        /// Which generation.
        generation: Generation,
    },
    /// The host says that this generation has ended, or that it has no such machine (`clean` is then false).
    Ended {
        /// Which generation.
        generation: Generation,
        /// The guest said that it ended well.
        clean: bool,
        /// When this was learnt.
        at: Timestamp,
        /// Failed starts in a row before this.
        failures_before: u32,
    },
    /// Nobody wants a crashed machine any more.
    GaveUp,
}

/// An event does not belong to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not apply to {state:?}")]
pub struct IllegalTransition {
    /// The state as it was, and stays.
    pub state: MachineState,
    /// What was to happen.
    pub event: MachineEvent,
}

/// The wait after `failures` failed starts in a row: doubles from [`RESTART_BACKOFF_MIN`] to [`RESTART_BACKOFF_MAX`].
pub fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    RESTART_BACKOFF_MAX.min(RESTART_BACKOFF_MIN * (1 << doublings))
}

impl MachineState {
    /// A word for people and for the store.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting { .. } => "starting",
            Self::Booting { .. } => "booting",
            Self::Running { .. } => "running",
            Self::Ending { .. } => "ending",
            Self::Crashed { .. } => "crashed",
        }
    }

    /// The generation that may be alive on a host; absent when none can be.
    pub fn live_generation(&self) -> Option<Generation> {
        match *self {
            Self::Starting { generation, .. }
            | Self::Booting { generation, .. }
            | Self::Running { generation }
            | Self::Ending { generation, .. } => Some(generation),
            Self::Stopped | Self::Crashed { .. } => None,
        }
    }

    /// The generation one may connect to: its PID 1 lives and was not asked to end.
    pub fn connectable(&self) -> Option<Generation> {
        match *self {
            Self::Booting { generation, .. } | Self::Running { generation } => Some(generation),
            Self::Stopped | Self::Starting { .. } | Self::Ending { .. } | Self::Crashed { .. } => {
                None
            }
        }
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`IllegalTransition`] if the event does not belong here: it is about another generation, or makes no sense.
    /// The caller keeps the old state.
    pub fn on(self, event: MachineEvent) -> Result<Self, IllegalTransition> {
        use MachineEvent as E;
        let illegal = Err(IllegalTransition { state: self, event });
        match event {
            E::StartAsked { generation, at } => self.start_asked(generation, at).ok_or(()),
            E::HostRuns { generation, at } => self.host_runs(generation, at).ok_or(()),
            E::GuestReady { generation } => self.guest_ready(generation).ok_or(()),
            E::StartFailed {
                generation,
                at,
                failures_before,
            } => match self {
                Self::Starting {
                    generation: mine, ..
                } if mine == generation => Ok(crashed(generation, at, failures_before)),
                Self::Starting { .. }
                | Self::Stopped
                | Self::Booting { .. }
                | Self::Running { .. }
                | Self::Ending { .. }
                | Self::Crashed { .. } => Err(()),
            },
            E::EndAsked { generation, at } => match self.live_generation() {
                Some(mine) if mine == generation => Ok(self.end_asked(generation, at)),
                Some(_) | None => Err(()),
            },
            E::EndRefused { generation } => match self {
                Self::Ending {
                    generation: mine, ..
                } if mine == generation => Ok(Self::Running { generation }),
                Self::Ending { .. }
                | Self::Stopped
                | Self::Starting { .. }
                | Self::Booting { .. }
                | Self::Running { .. }
                | Self::Crashed { .. } => Err(()),
            },
            E::Ended {
                generation,
                clean,
                at,
                failures_before,
            } => match self.live_generation() {
                Some(mine) if mine == generation => {
                    Ok(self.ended(generation, clean, at, failures_before))
                }
                Some(_) | None => Err(()),
            },
            E::GaveUp => match self {
                Self::Crashed { .. } => Ok(Self::Stopped),
                Self::Stopped
                | Self::Starting { .. }
                | Self::Booting { .. }
                | Self::Running { .. }
                | Self::Ending { .. } => Err(()),
            },
        }
        .or(illegal)
    }

    fn start_asked(self, generation: Generation, at: Timestamp) -> Option<Self> {
        match self {
            Self::Stopped => Some(Self::Starting {
                generation,
                since: at,
            }),
            Self::Crashed {
                generation: old, ..
            } if generation > old => Some(Self::Starting {
                generation,
                since: at,
            }),
            Self::Crashed { .. }
            | Self::Starting { .. }
            | Self::Booting { .. }
            | Self::Running { .. }
            | Self::Ending { .. } => None,
        }
    }

    /// Seeing it run is welcome news from anywhere but an older generation: a control plane that comes back finds
    /// machines it had written off.
    fn host_runs(self, generation: Generation, at: Timestamp) -> Option<Self> {
        match self {
            Self::Starting {
                generation: mine, ..
            } if mine == generation => Some(Self::Booting {
                generation,
                since: at,
            }),
            Self::Booting {
                generation: mine, ..
            }
            | Self::Running { generation: mine }
            | Self::Ending {
                generation: mine, ..
            } if mine == generation => Some(self),
            Self::Crashed {
                generation: mine, ..
            } if mine <= generation => Some(Self::Booting {
                generation,
                since: at,
            }),
            Self::Stopped => Some(Self::Booting {
                generation,
                since: at,
            }),
            Self::Starting { .. }
            | Self::Booting { .. }
            | Self::Running { .. }
            | Self::Ending { .. }
            | Self::Crashed { .. } => None,
        }
    }

    fn guest_ready(self, generation: Generation) -> Option<Self> {
        match self {
            Self::Booting {
                generation: mine, ..
            }
            | Self::Running { generation: mine }
                if mine == generation =>
            {
                Some(Self::Running { generation })
            }
            Self::Booting { .. }
            | Self::Running { .. }
            | Self::Stopped
            | Self::Starting { .. }
            | Self::Ending { .. }
            | Self::Crashed { .. } => None,
        }
    }

    /// Asked twice, the first moment counts: it is what the patience is measured from.
    fn end_asked(self, generation: Generation, at: Timestamp) -> Self {
        match self {
            Self::Ending { .. } => self,
            Self::Stopped
            | Self::Starting { .. }
            | Self::Booting { .. }
            | Self::Running { .. }
            | Self::Crashed { .. } => Self::Ending {
                generation,
                since: at,
            },
        }
    }

    /// What was asked to end has ended, however it went; what ended well stays stopped.
    fn ended(self, generation: Generation, clean: bool, at: Timestamp, before: u32) -> Self {
        match self {
            Self::Ending { .. } => Self::Stopped,
            Self::Running { .. } if !clean => Self::Crashed {
                generation,
                failures: 0,
                retry_at: at.after(backoff(0)),
            },
            Self::Starting { .. } | Self::Booting { .. } if !clean => {
                crashed(generation, at, before)
            }
            Self::Stopped
            | Self::Starting { .. }
            | Self::Booting { .. }
            | Self::Running { .. }
            | Self::Crashed { .. } => Self::Stopped,
        }
    }
}

fn crashed(generation: Generation, at: Timestamp, failures_before: u32) -> MachineState {
    let failures = failures_before.saturating_add(1);
    MachineState::Crashed {
        generation,
        failures,
        retry_at: at.after(backoff(failures)),
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

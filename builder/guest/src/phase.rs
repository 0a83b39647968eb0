//! The life of a machine as the guest sees it: one enum, one transition function.
//!
//! ```text
//! Starting ──answered──▶ Ready ──end asked──▶ Ending ──engine ended──▶ Ended
//!    │                      ▲◀─────resumed──────┘ │
//!    │ └──────────────end asked──────────────▶ │ └─engine failed─┐
//!    └─any daemon gone─▶ Crashed ◀─any daemon gone (from Ready) ─┘
//! ```
//!
//! Pure. It must not know what a daemon is, nor how one is ended.

/// Where the machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The daemons were started; dockerd has not answered yet.
    Starting,
    /// dockerd has answered.
    Ready,
    /// Somebody asked for the end; nothing new is begun.
    Ending,
    /// Everything has ended well.
    Ended,
    /// A daemon ended by itself, or could not be ended well.
    Crashed,
}

/// What moves a machine on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// dockerd answered its first ping.
    Answered,
    /// SIGTERM, or the end was asked for over the API.
    EndAsked,
    /// dockerd ended.
    EngineEnded(Manner),
    /// containerd ended.
    ContainerdEnded,
    /// dockerd does not get on with its start.
    StartGivenUp,
    /// Its memory was kept when it was about to end, and it is wanted again.
    Resumed,
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// With exit code 0.
    Clean,
    /// By SIGTERM itself: it had not begun to listen for it, so it had nothing to lose.
    Terminated,
    /// Anything else.
    Failed,
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen while {phase:?}")]
pub(crate) struct IllegalTransition {
    phase: Phase,
    event: Event,
}

impl Phase {
    /// The phase after `event`.
    pub(crate) fn on(self, event: Event) -> Result<Phase, IllegalTransition> {
        let illegal = IllegalTransition { phase: self, event };
        match (self, event) {
            (Phase::Starting, Event::Answered) | (Phase::Ending, Event::Resumed) => {
                Ok(Phase::Ready)
            }
            // The answer may race with the request to end; the end wins.
            (Phase::Ending, Event::Answered) => Ok(Phase::Ending),
            (Phase::Starting | Phase::Ready | Phase::Ending, Event::EndAsked) => Ok(Phase::Ending),
            (
                Phase::Starting | Phase::Ready,
                Event::EngineEnded(Manner::Clean | Manner::Terminated | Manner::Failed)
                | Event::ContainerdEnded,
            )
            | (Phase::Starting, Event::StartGivenUp)
            | (Phase::Ending, Event::EngineEnded(Manner::Failed)) => Ok(Phase::Crashed),
            (Phase::Ending, Event::EngineEnded(Manner::Clean | Manner::Terminated)) => {
                Ok(Phase::Ended)
            }
            // containerd keeps nothing that outlives the machine: how dockerd ends is what counts. And a start that
            // is given up while the machine ends already is no news.
            (Phase::Ending, Event::ContainerdEnded | Event::StartGivenUp) => Ok(Phase::Ending),
            (Phase::Starting, Event::Resumed)
            | (Phase::Ready, Event::Answered | Event::StartGivenUp | Event::Resumed)
            | (
                Phase::Ended | Phase::Crashed,
                Event::Answered
                | Event::EndAsked
                | Event::EngineEnded(Manner::Clean | Manner::Terminated | Manner::Failed)
                | Event::ContainerdEnded
                | Event::StartGivenUp
                | Event::Resumed,
            ) => Err(illegal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_in_every_phase() {
        use Event::{Answered, ContainerdEnded, EndAsked, EngineEnded, Resumed, StartGivenUp};
        use Manner::{Clean, Failed, Terminated};
        use Phase::{Crashed, Ended, Ending, Ready, Starting};
        let events = [
            Answered,
            EndAsked,
            EngineEnded(Clean),
            EngineEnded(Terminated),
            EngineEnded(Failed),
            ContainerdEnded,
            StartGivenUp,
            Resumed,
        ];
        let table = [
            (
                Starting,
                [
                    Some(Ready),
                    Some(Ending),
                    Some(Crashed),
                    Some(Crashed),
                    Some(Crashed),
                    Some(Crashed),
                    Some(Crashed),
                    None,
                ],
            ),
            (
                Ready,
                [
                    None,
                    Some(Ending),
                    Some(Crashed),
                    Some(Crashed),
                    Some(Crashed),
                    Some(Crashed),
                    None,
                    None,
                ],
            ),
            (
                Ending,
                [
                    Some(Ending),
                    Some(Ending),
                    Some(Ended),
                    Some(Ended),
                    Some(Crashed),
                    Some(Ending),
                    Some(Ending),
                    Some(Ready),
                ],
            ),
            (Ended, [None; 8]),
            (Crashed, [None; 8]),
        ];
        for (phase, row) in table {
            for (event, want) in events.into_iter().zip(row) {
                assert_eq!(phase.on(event).ok(), want, "{phase:?} on {event:?}");
            }
        }
    }
}

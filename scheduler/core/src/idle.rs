//! When a builder may be ended for want of work.
//!
//! Two witnesses must agree: the gateway (nothing is connected, nothing was for the idle time) and the guest (no
//! build, push or container, and none was for the idle time). Either alone may veto. Steps of builds are no third: who
//! waits for one is a build of the guest's or a connection of the gateway's.
//!
//! Must not know: how either is asked.

use crate::guest_api::Activity;
use crate::limits::BUILDER_IDLE_MIN;
use crate::time::Timestamp;
use std::time::Duration;

/// What the gateway's side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Something is in flight; the end of it will be told.
    Busy,
    /// Quiet, but not long enough.
    NotBefore(Timestamp),
    /// Quiet for long enough: the guest may be asked.
    Due,
}

/// The gateway's side: `in_flight` connections now, the last of which ended at `quiet_since`.
pub fn gateway(now: Timestamp, in_flight: u32, quiet_since: Timestamp, idle: Duration) -> Idle {
    if in_flight > 0 {
        return Idle::Busy;
    }
    let due = quiet_since.after(idle.max(BUILDER_IDLE_MIN));
    if now >= due {
        Idle::Due
    } else {
        Idle::NotBefore(due)
    }
}

/// The guest's side, asked at `now`. A busy guest is asked again after the shortest idle time.
pub fn guest(now: Timestamp, activity: &Activity, idle: Duration) -> Idle {
    let idle = idle.max(BUILDER_IDLE_MIN);
    if !activity.is_idle() {
        return Idle::NotBefore(now.after(BUILDER_IDLE_MIN));
    }
    let quiet_for = Duration::from_millis(activity.idle_ms);
    match idle.checked_sub(quiet_for) {
        None | Some(Duration::ZERO) => Idle::Due,
        Some(rest) => Idle::NotBefore(now.after(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(10);
    const T: Timestamp = Timestamp(100_000);

    #[test]
    fn the_gateway_vetoes_while_busy_and_until_quiet_long_enough() {
        assert_eq!(gateway(T, 1, Timestamp(0), IDLE), Idle::Busy);
        assert_eq!(gateway(T, 0, Timestamp(90_000), IDLE), Idle::Due);
        assert_eq!(
            gateway(T, 0, Timestamp(90_001), IDLE),
            Idle::NotBefore(Timestamp(100_001))
        );
        // The clock was set back: wait, never reap early.
        assert_eq!(
            gateway(T, 0, Timestamp(200_000), IDLE),
            Idle::NotBefore(Timestamp(210_000))
        );
    }

    #[test]
    fn the_guest_vetoes_for_each_kind_of_work() {
        let quiet = Activity {
            builds: 0,
            pushes: 0,
            containers: 0,
            steps: 0,
            idle_ms: 10_000,
        };
        assert_eq!(guest(T, &quiet, IDLE), Idle::Due);
        let left_over = Activity { steps: 1, ..quiet };
        assert_eq!(guest(T, &left_over, IDLE), Idle::Due);
        for busy in [
            Activity { builds: 1, ..quiet },
            Activity { pushes: 1, ..quiet },
            Activity {
                containers: 1,
                ..quiet
            },
        ] {
            assert!(
                matches!(guest(T, &busy, IDLE), Idle::NotBefore(at) if at > T),
                "{busy:?}"
            );
        }
        let recent = Activity {
            idle_ms: 9_000,
            ..quiet
        };
        assert_eq!(guest(T, &recent, IDLE), Idle::NotBefore(Timestamp(101_000)));
    }

    proptest::proptest! {
        #[test]
        fn never_due_with_work_in_flight(now: u64, n in 1u32.., since: u64, idle in 0u64..1 << 40) {
            let verdict = gateway(Timestamp(now), n, Timestamp(since), Duration::from_millis(idle));
            proptest::prop_assert_eq!(verdict, Idle::Busy);
        }

        #[test]
        fn a_wait_always_lies_ahead(now in 0u64..1 << 40, idle_ms: u32, idle in 0u64..1 << 32) {
            let activity = Activity { idle_ms: u64::from(idle_ms), ..Activity::default() };
            if let Idle::NotBefore(at) =
                guest(Timestamp(now), &activity, Duration::from_millis(idle))
            {
                proptest::prop_assert!(at > Timestamp(now));
            }
        }
    }
}

//! Whether daemons that start get anywhere. A slow start is waited for; one that does nothing is given up.
//!
//! What counts as getting somewhere: processor time, also time spent waiting for a processor; bytes read and written; lines
//! of output; and a process that waits for a disk. What a daemon that hangs still does by its timers stays below
//! [`STEP_CPU`] and [`STEP_BYTES`] in [`limits::START_STALL_MAX`].
//!
//! [`Progress`] is pure; [`measure`] reads `/proc`. It must not know what is started, nor what follows from giving up.

use crate::limits::{self, START_LOOK_PERIOD, START_WAIT_MAX};
use std::fs;
use std::time::{Duration, Instant};

/// Processor time that counts as progress.
const STEP_CPU: Duration = Duration::from_millis(200);
/// Bytes read or written that count as progress.
const STEP_BYTES: u64 = 64 << 10;
/// What `/proc/PID/stat` counts processor time in: `USER_HZ`, the same on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// What all processes but this one have done since they were started, in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Processor time, and time spent waiting for a processor.
    pub(crate) cpu: Duration,
    /// Bytes read and written.
    pub(crate) bytes: u64,
    /// Lines of output.
    pub(crate) lines: u64,
    /// One of them waits for a disk now.
    pub(crate) waits_for_disk: bool,
}

/// Why a start is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GivenUp {
    /// It did nothing.
    #[error("it has made no progress for {} s", .0.as_secs())]
    Stalled(Duration),
    /// It did not come to an end.
    #[error("it has taken {} s and is not done", .0.as_secs())]
    TooLong(Duration),
}

/// A start that is watched.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    looked: Instant,
    mark: Done,
    /// How long nothing was done since the mark.
    still: Duration,
    stall: Duration,
}

impl Progress {
    /// One that begins now, and may do nothing for `stall`.
    pub(crate) fn new(now: Instant, stall: Duration) -> Self {
        Self {
            began: now,
            looked: now,
            mark: Done::default(),
            still: Duration::ZERO,
            stall,
        }
    }

    /// Takes what was done up to `now`.
    ///
    /// # Errors
    /// Why the start is given up.
    pub(crate) fn look(&mut self, now: Instant, done: Done) -> Result<(), GivenUp> {
        let whole = now.saturating_duration_since(self.began);
        // Whoever looks late did not run himself: the machine was paused, or got no processor.
        let since = now.saturating_duration_since(self.looked);
        self.looked = now;
        // A process that has ended takes what it did with it.
        let moved = done.cpu.abs_diff(self.mark.cpu) >= STEP_CPU
            || done.bytes.abs_diff(self.mark.bytes) >= STEP_BYTES
            || done.lines != self.mark.lines
            || done.waits_for_disk;
        if moved {
            (self.mark, self.still) = (done, Duration::ZERO);
        } else {
            self.still += since.min(START_LOOK_PERIOD * 2);
        }
        if whole >= START_WAIT_MAX {
            Err(GivenUp::TooLong(whole))
        } else if self.still >= self.stall {
            Err(GivenUp::Stalled(self.still))
        } else {
            Ok(())
        }
    }
}

/// Watches until the start has to be given up. Gives why. `lines` counts the lines of output so far.
pub(crate) async fn watch(progress: &mut Progress, lines: impl Fn() -> u64) -> GivenUp {
    loop {
        tokio::time::sleep(START_LOOK_PERIOD).await;
        let done = Done {
            lines: lines(),
            ..measure()
        };
        if let Err(given_up) = progress.look(Instant::now(), done) {
            return given_up;
        }
    }
}

/// What all processes of this machine but the guest have done. What cannot be read counts as nothing.
fn measure() -> Done {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut sum = Done::default();
    for pid in pids.filter(|pid| *pid != own) {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let stat = read("stat").unwrap_or_default();
        let (ticks, waits) = parse_stat(&stat).unwrap_or_default();
        sum.cpu += TICK * ticks + parse_run_delay(&read("schedstat").unwrap_or_default());
        sum.bytes += parse_io(&read("io").unwrap_or_default());
        sum.waits_for_disk |= waits;
    }
    sum
}

/// Ticks of processor time, and whether it waits for a disk (`proc_pid_stat(5)`).
fn parse_stat(text: &str) -> Option<(u32, bool)> {
    // The name may hold anything; what follows it holds no bracket.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let waits = fields.next()? == "D";
    // Fields 14 and 15, counted from 1; the state is the third.
    let mut ticks = fields.skip(10).map_while(|field| field.parse::<u32>().ok());
    Some((ticks.next()?.saturating_add(ticks.next()?), waits))
}

/// How long it waited for a processor: the second number, in nanoseconds (`Documentation/scheduler/sched-stats.rst`).
fn parse_run_delay(text: &str) -> Duration {
    let delay = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    Duration::from_nanos(delay.unwrap_or(0))
}

/// Bytes of all reads and writes (`proc_pid_io(5)`).
fn parse_io(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| ["rchar", "wchar"].contains(name))
        .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
        .sum()
}

const _: () = assert!(limits::START_STALL_MAX.as_secs() < START_WAIT_MAX.as_secs());
const _: () = assert!(START_LOOK_PERIOD.as_secs() * 10 < limits::START_STALL_MAX.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    /// Looks each period, at what `done` says was done by then; gives when it was given up, and why.
    fn follow(seconds: u64, done: impl Fn(u64) -> Done) -> Result<(), (u64, GivenUp)> {
        let began = Instant::now();
        let mut progress = Progress::new(began, STALL);
        for second in 1..=seconds {
            let now = began + Duration::from_secs(second);
            progress
                .look(now, done(second))
                .map_err(|why| (second, why))?;
        }
        Ok(())
    }

    #[test]
    fn a_start_that_does_nothing_is_given_up_and_a_slow_one_is_waited_for() {
        let nothing = |_| Done::default();
        assert_eq!(follow(29, nothing), Ok(()));
        let (at, why) = follow(100, nothing).expect_err("it stalls");
        assert_eq!((at, why), (30, GivenUp::Stalled(STALL)));
        // Each of these alone, ever so slowly.
        let slowly = 400;
        let cpu = |s| Done {
            cpu: Duration::from_millis(s * 10),
            ..Done::default()
        };
        let bytes = |s| Done {
            bytes: s * 4096,
            ..Done::default()
        };
        let lines = |s| Done {
            lines: s / 25,
            ..Done::default()
        };
        let disk = |_| Done {
            waits_for_disk: true,
            ..Done::default()
        };
        assert_eq!(follow(slowly, cpu), Ok(()));
        assert_eq!(follow(slowly, bytes), Ok(()));
        assert_eq!(follow(slowly, lines), Ok(()));
        assert_eq!(follow(slowly, disk), Ok(()));
    }

    #[test]
    fn what_a_hanging_daemon_does_by_its_timers_is_no_progress() {
        let ticking = |s| Done {
            cpu: Duration::from_millis(s),
            bytes: s * 100,
            ..Done::default()
        };
        let (at, _) = follow(1000, ticking).expect_err("it stalls");
        assert_eq!(at, 30);
    }

    #[test]
    fn a_start_that_never_ends_is_given_up_in_the_end() {
        let busy = |s| Done {
            cpu: Duration::from_secs(s),
            ..Done::default()
        };
        let (at, why) = follow(10_000, busy).expect_err("it takes too long");
        assert_eq!(at, START_WAIT_MAX.as_secs());
        assert_eq!(why, GivenUp::TooLong(START_WAIT_MAX));
    }

    #[test]
    fn time_in_which_the_guest_itself_did_not_run_is_not_held_against_anybody() {
        let began = Instant::now();
        let mut progress = Progress::new(began, STALL);
        for look in 1..5 {
            let now = began + STALL * 2 * look;
            assert_eq!(progress.look(now, Done::default()), Ok(()), "{look}");
        }
    }

    #[test]
    fn reads_what_the_kernel_says() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 9 0 100 1 1";
        assert_eq!(parse_stat(stat), Some((42, false)));
        assert_eq!(parse_stat(&stat.replace(" S ", " D ")), Some((42, true)));
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_run_delay("123 456 7\n"), Duration::from_nanos(456));
        assert_eq!(parse_run_delay(""), Duration::ZERO);
        let io = "rchar: 10\nwchar: 5\nsyscr: 99\nread_bytes: 4096\n";
        assert_eq!(parse_io(io), 15);
        // All of it of a real process: this test's parent at least has run and read.
        let done = measure();
        assert!(done.cpu > Duration::ZERO && done.bytes > 0, "{done:?}");
    }
}

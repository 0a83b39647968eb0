//! A daemon's output: warnings and errors are passed on, within a bound; the last lines are kept for a crash.
//!
//! It must not know which daemon it is.

use crate::limits;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;

/// The output of one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    daemon: &'static str,
    said: Arc<Said>,
}

#[derive(Debug, Default)]
struct Said {
    last: Mutex<VecDeque<String>>,
    /// Lines in all.
    lines: AtomicU64,
}

impl Output {
    /// Follows a pipe until the daemon and all its children have closed it. Must be called within a runtime.
    pub(crate) fn follow(daemon: &'static str, pipe: Option<OwnedFd>) -> io::Result<Output> {
        let said = Arc::new(Said::default());
        if let Some(pipe) = pipe {
            let reader = BufReader::new(pipe::Receiver::from_owned_fd(pipe)?);
            let kept = said.clone();
            tokio::spawn(async move {
                if let Err(error) = read_all(daemon, reader, &kept).await {
                    tracing::warn!(daemon, %error, "output is lost");
                }
            });
        }
        Ok(Output { daemon, said })
    }

    /// How many lines it has said.
    pub(crate) fn lines(&self) -> u64 {
        self.said.lines.load(Ordering::Relaxed)
    }

    /// The lines that are kept, oldest first.
    pub(crate) fn last(&self) -> Vec<String> {
        let last = self
            .said
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.iter().cloned().collect()
    }

    /// Logs the lines that are kept.
    pub(crate) fn log_last(&self) {
        for line in self
            .said
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            tracing::warn!(daemon = self.daemon, "{line}");
        }
    }
}

async fn read_all(
    daemon: &'static str,
    mut reader: BufReader<pipe::Receiver>,
    said: &Said,
) -> io::Result<()> {
    let mut budget = Budget::new(Instant::now());
    let mut line = Vec::new();
    loop {
        line.clear();
        let bound = limits::OUTPUT_LINE_BYTES_MAX as u64;
        if (&mut reader)
            .take(bound)
            .read_until(b'\n', &mut line)
            .await?
            == 0
        {
            return Ok(());
        }
        if !line.ends_with(b"\n") {
            skip_line(&mut reader).await?;
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if is_worth_telling(&text) {
            match budget.take(Instant::now()) {
                Decision::Tell { dropped: 0 } => tracing::warn!(daemon, "{text}"),
                Decision::Tell { dropped } => tracing::warn!(daemon, dropped, "{text}"),
                Decision::Drop => {}
            }
        }
        said.lines.fetch_add(1, Ordering::Relaxed);
        let mut kept = said.last.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == limits::OUTPUT_LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

async fn skip_line(reader: &mut BufReader<pipe::Receiver>) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(());
        }
        let (length, found) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        reader.consume(length);
        if found {
            return Ok(());
        }
    }
}

/// The daemons write logfmt; a line without a level is a panic's or a shell's, and so is worth telling.
fn is_worth_telling(line: &str) -> bool {
    !line.is_empty()
        && !["level=info", "level=debug", "level=trace"]
            .iter()
            .any(|level| line.contains(level))
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Tell { dropped: u32 },
    Drop,
}

#[derive(Debug)]
struct Budget {
    window_began: Instant,
    told: u32,
    dropped: u32,
}

impl Budget {
    fn new(now: Instant) -> Budget {
        Budget {
            window_began: now,
            told: 0,
            dropped: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Decision {
        if now.saturating_duration_since(self.window_began) >= limits::OUTPUT_WINDOW {
            self.window_began = now;
            self.told = 0;
        }
        if self.told >= limits::OUTPUT_LINES_MAX {
            self.dropped = self.dropped.saturating_add(1);
            return Decision::Drop;
        }
        self.told += 1;
        Decision::Tell {
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_and_worse_are_told() {
        for (line, told) in [
            ("time=x level=info msg=y", false),
            ("time=x level=debug msg=y", false),
            ("time=x level=warning msg=y", true),
            ("time=x level=error msg=y", true),
            ("panic: runtime error", true),
            ("", false),
        ] {
            assert_eq!(is_worth_telling(line), told, "{line}");
        }
    }

    #[test]
    fn a_flood_is_counted_and_dropped_until_the_next_window() {
        let began = Instant::now();
        let mut budget = Budget::new(began);
        for _ in 0..limits::OUTPUT_LINES_MAX {
            assert_eq!(budget.take(began), Decision::Tell { dropped: 0 });
        }
        assert_eq!(budget.take(began), Decision::Drop);
        assert_eq!(budget.take(began), Decision::Drop);
        let later = began + limits::OUTPUT_WINDOW;
        assert_eq!(budget.take(later), Decision::Tell { dropped: 2 });
        assert_eq!(budget.take(later), Decision::Tell { dropped: 0 });
    }
}

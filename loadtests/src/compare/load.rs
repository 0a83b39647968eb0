//! Requests on kept connections, timed one by one.

use crate::testbed::Connection;
use anyhow::{Result, anyhow, ensure};
use std::time::{Duration, Instant};

/// `GET path`, `count` times on each connection, all connections at once. The times of all, sorted.
///
/// # Errors
/// An answer is not 200.
pub(super) fn requests(
    connections: &mut [Connection],
    path: &str,
    count: usize,
) -> Result<Vec<Duration>> {
    let mut times = match connections {
        [one] => on(one, path, count)?,
        many => std::thread::scope(|scope| {
            let threads: Vec<_> = many
                .iter_mut()
                .map(|one| scope.spawn(|| on(one, path, count)))
                .collect();
            let mut all = Vec::new();
            for thread in threads {
                all.extend(thread.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            Ok::<_, anyhow::Error>(all)
        })?,
    };
    times.sort_unstable();
    Ok(times)
}

fn on(connection: &mut Connection, path: &str, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        let (status, _) = connection.get(path)?;
        times.push(begin.elapsed());
        ensure!(status == 200, "{path} answered {status}");
    }
    Ok(times)
}

/// The time below which `percent` of sorted times lie; zero if there is none.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let at = (sorted.len() * percent / 100).min(last);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_none() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(51));
        assert_eq!(percentile(&times, 99), Duration::from_millis(100));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}

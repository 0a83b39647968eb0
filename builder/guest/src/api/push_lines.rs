//! A push as Docker tells it: JSON lines with status, progress bars and the digest at the end.
//!
//! It must not know how a push is done.

use crate::guest::Guest;
use crate::limits;
use crate::loans::Borrower;
use crate::push::{self, Logins, PushFailure};
use crate::solving::{Throttle, chain};
use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use slipway_core::build::{PushProgress, PushState};
use slipway_core::guest_api::StartPush;
use slipway_registry_push::{Pushed, SourceError, Target};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Cells of Docker's progress bar.
const BAR_CELLS: u64 = 50;

/// Begins a push; gives its lines. It ends when nobody reads them any more.
pub(super) fn stream(
    guest: Arc<Guest>,
    start: StartPush,
) -> impl Stream<Item = Bytes> + Send + Sync + 'static {
    // Before there is an answer, so that whoever lends finds it.
    let borrower = start.loan.clone().map(|id| {
        let registries = name_of(&start).map(|name| name.registry().to_owned());
        guest.loans.begin(id, registries.into_iter().collect())
    });
    let (lines, told) = mpsc::channel(limits::PUSH_LINES_QUEUED_MAX);
    // Owned by the stream: it ends when the push does, or when the receiver is dropped.
    tokio::spawn(async move {
        tokio::select! {
            () = Box::pin(tell(&guest, &start, borrower.as_ref(), &lines)) => {}
            () = lines.closed() => tracing::info!("a push was given up by its caller"),
        }
    });
    ReceiverStream::new(told)
}

fn name_of(start: &StartPush) -> Option<Target> {
    Target::parse(&start.target).ok()
}

async fn tell(
    guest: &Guest,
    start: &StartPush,
    borrower: Option<&Borrower>,
    lines: &mpsc::Sender<Bytes>,
) {
    let name = name_of(start);
    if let Some(name) = &name {
        let repository = format!("{}/{}", name.registry(), name.repository());
        send(
            lines,
            &json!({"status": format!("The push refers to repository [{repository}]")}),
        )
        .await;
    }
    let throttle = Mutex::new(Throttle::default());
    let progress_lines = lines.clone();
    let progress = move |news: PushProgress| {
        let bytes_only = news.state == PushState::Pushing;
        let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let due = throttle.admit(news.item.clone(), !bytes_only, Instant::now());
        // Half of the queue is for changes of state, of which there are few for each layer.
        let room = !bytes_only || progress_lines.capacity() > limits::PUSH_LINES_QUEUED_MAX / 2;
        if let Some(line) = line_of(&news).filter(|_| due && room) {
            drop(progress_lines.try_send(to_bytes(&line)));
        }
    };
    let logins = Logins {
        given: start.credential.iter().collect(),
        borrower,
    };
    let pushed = match push::prepare(guest, &start.target, &logins, None) {
        Ok(push) => push.image(guest, &start.image, progress).await,
        Err(error) => Err(error),
    };
    let last = match &pushed {
        Ok(pushed) => done(pushed, name.as_ref().map_or("", Target::tag)),
        Err(error) => vec![failed(&message(error, start))],
    };
    for line in last {
        send(lines, &line).await;
    }
}

async fn send(lines: &mpsc::Sender<Bytes>, line: &Value) {
    // A receiver that is gone ends the push through `closed`.
    drop(lines.send(to_bytes(line)).await);
}

fn to_bytes(line: &Value) -> Bytes {
    format!("{line}\r\n").into()
}

/// The line for a layer's news. Docker tells nothing of config and manifest.
fn line_of(news: &PushProgress) -> Option<Value> {
    let hex = news.item.strip_prefix("sha256:")?;
    let id: String = hex.chars().take(12).collect();
    let status = match news.state {
        PushState::Waiting => "Preparing",
        PushState::Pushing => {
            return Some(json!({
                "status": "Pushing",
                "progressDetail": {"current": news.current, "total": news.total},
                "progress": bar(news.current, news.total),
                "id": id,
            }));
        }
        PushState::Pushed => "Pushed",
        PushState::Exists => "Layer already exists",
        PushState::Mounted => "Mounted from another repository",
    };
    Some(json!({"status": status, "progressDetail": {}, "id": id}))
}

fn done(pushed: &Pushed, tag: &str) -> Vec<Value> {
    let (digest, size) = (pushed.digest.to_string(), pushed.manifest_bytes.len());
    vec![
        json!({"status": format!("{tag}: digest: {digest} size: {size}")}),
        json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}}),
    ]
}

fn failed(message: &str) -> Value {
    json!({"errorDetail": {"message": message}, "error": message})
}

fn message(error: &PushFailure, start: &StartPush) -> String {
    if let PushFailure::Source(SourceError::NoImage { .. }) = error {
        return format!(
            "An image does not exist locally with the tag: {}",
            start.image
        );
    }
    match error.hint() {
        Some(hint) => format!("{} (hint: {hint})", chain(error)),
        None => chain(error),
    }
}

/// Docker's bar: `[=====>     ]  5MB/10MB`.
fn bar(current: u64, total: u64) -> String {
    if total == 0 {
        return size(current);
    }
    let filled = usize::try_from(current.min(total) * BAR_CELLS / total).unwrap_or(0);
    let cells = usize::try_from(BAR_CELLS).unwrap_or(0);
    let mut cells_text = "=".repeat(filled);
    if filled < cells {
        cells_text.push('>');
        cells_text.push_str(&" ".repeat(cells - filled - 1));
    }
    format!("[{cells_text}] {:>9}/{}", size(current), size(total))
}

/// Decimal units, as Docker writes them, with about four digits.
fn size(bytes: u64) -> String {
    let (mut unit, mut scale) = (0, 1_u64);
    let units = ["B", "kB", "MB", "GB", "TB"];
    while bytes / scale >= 1000 && unit + 1 < units.len() {
        scale *= 1000;
        unit += 1;
    }
    let whole = bytes / scale;
    let thousandths = bytes % scale * 1000 / scale;
    let text = match (unit, whole) {
        (0, _) => whole.to_string(),
        (_, 0..=9) => format!("{whole}.{thousandths:03}"),
        (_, 10..=99) => format!("{whole}.{:02}", thousandths / 10),
        (_, _) => format!("{whole}.{}", thousandths / 100),
    };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_in_dockers_words() {
        let item = format!("sha256:{}", "0123456789abcdef".repeat(4));
        for (state, status) in [
            (PushState::Waiting, "Preparing"),
            (PushState::Pushed, "Pushed"),
            (PushState::Exists, "Layer already exists"),
            (PushState::Mounted, "Mounted from another repository"),
        ] {
            let news = PushProgress {
                item: item.clone(),
                state,
                current: 0,
                total: 0,
                compressed: 0,
                sent: 0,
            };
            let line = line_of(&news).expect("a layer");
            assert_eq!(
                line,
                json!({"status": status, "progressDetail": {}, "id": "0123456789ab"})
            );
        }
        let news = PushProgress {
            item,
            state: PushState::Pushing,
            current: 1_500_000,
            total: 3_000_000,
            compressed: 700_000,
            sent: 600_000,
        };
        let line = line_of(&news).expect("a layer");
        assert_eq!(
            line["progressDetail"],
            json!({"current": 1_500_000, "total": 3_000_000})
        );
        let config = PushProgress {
            item: "config".to_owned(),
            ..news
        };
        assert_eq!(line_of(&config), None);
    }

    #[test]
    fn bars_and_sizes_are_dockers() {
        assert_eq!(bar(0, 0), "0B");
        assert_eq!(
            bar(1_500_000, 3_000_000),
            format!("[{}>{}]   1.500MB/3.000MB", "=".repeat(25), " ".repeat(24))
        );
        assert_eq!(bar(5, 3), format!("[{}]        5B/3B", "=".repeat(50)));
        for (bytes, text) in [
            (999, "999B"),
            (1_000, "1.000kB"),
            (12_345, "12.34kB"),
            (123_456, "123.4kB"),
            (u64::MAX, "18446744.0TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}

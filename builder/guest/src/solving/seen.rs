//! Builds that Docker clients ask BuildKit for by themselves: found in BuildKit's own records, and told like any other build. They are
//! their clients', and end with them.
//!
//! It must not know who asks for them, nor by which way they came.

use super::convert::Converter;
use super::outcome;
use super::run::NoSolve;
use crate::builds::{Build, Seen};
use crate::guest::Guest;
use crate::limits;
use bytes::Bytes;
use futures_util::Stream;
use sha2::{Digest as _, Sha256};
use slipway_buildkit::{Client, SolveEnd, SolveRecord, dial_docker_grpc};
use slipway_core::build::{BuildEvent, BuildOutcome, BuildSpec};
use slipway_core::guest_api::SeenSolve;
use slipway_core::id::{BuildId, ID_ENTROPY_BYTES};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// What of the frontend's attributes is told: nothing that could be a secret.
const ATTRS_TOLD: [&str; 3] = ["filename", "target", "platform"];

/// JSON lines of [`SeenSolve`] for all solves that the guest did not ask for itself, from some seconds ago on. Each is followed from then
/// on, whether or not anybody reads. Ends when BuildKit cannot be asked any more.
pub(crate) fn solves(guest: Arc<Guest>) -> impl Stream<Item = Bytes> + Send + Sync + 'static {
    let (lines, told) = mpsc::channel(limits::SEEN_QUEUED_MAX);
    // Owned by the stream: it ends with BuildKit, or when the receiver is dropped.
    tokio::spawn(async move {
        tokio::select! {
            watched = Box::pin(watch(&guest, &lines)) => if let Err(error) = watched {
                tracing::debug!(error = outcome::chain(&error), "solves are not seen");
            },
            () = lines.closed() => {}
        }
    });
    ReceiverStream::new(told)
}

async fn connect(guest: &Guest) -> Result<Client, NoSolve> {
    let stream = dial_docker_grpc(guest.docker.connect().await?).await?;
    Ok(Client::connect(stream).await?)
}

async fn watch(guest: &Arc<Guest>, lines: &mpsc::Sender<Bytes>) -> Result<(), NoSolve> {
    let since = SystemTime::now()
        .checked_sub(limits::SEEN_SINCE)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let client = connect(guest).await?;
    let (records, mut seen) = mpsc::channel::<SolveRecord>(limits::SEEN_QUEUED_MAX);
    let telling = async {
        while let Some(record) = seen.recv().await {
            let is_old = record.created_at.is_none_or(|at| at < since);
            if is_old || is_ours(&record.build_ref) {
                continue;
            }
            let Some(solve) = see(guest, record) else {
                continue;
            };
            let Ok(mut line) = serde_json::to_vec(&solve) else {
                continue;
            };
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        listened = client.solves(records) => Ok(listened?),
        () = telling => Ok(()),
    }
}

/// Solves of the guest's own builds have the build's id in their name.
fn is_ours(build_ref: &str) -> bool {
    build_ref
        .rsplit_once('-')
        .is_some_and(|(id, _attempt)| id.parse::<BuildId>().is_ok())
}

/// The build of this solve, which is followed from now on if it was not before. None if there are too many.
fn see(guest: &Arc<Guest>, record: SolveRecord) -> Option<SeenSolve> {
    let id = id_of(&record);
    let seen = SeenSolve {
        id: id.clone(),
        spec: spec_of(&record),
        reference: record.build_ref.clone(),
    };
    if let Seen::New(build) = guest.builds.see(id, record.created_at)? {
        // Owned by the build itself: it ends with the solve, or with the connection to BuildKit.
        tokio::spawn(follow(guest.clone(), build, record));
    }
    Some(seen)
}

/// The same for the same solve, however often it is seen.
fn id_of(record: &SolveRecord) -> BuildId {
    let since_1970 = record
        .created_at
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(since_1970.as_nanos().to_be_bytes());
    hash.update(record.build_ref.as_bytes());
    let mut entropy = [0; ID_ENTROPY_BYTES];
    for (to, from) in entropy.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    BuildId::from_entropy(entropy)
}

fn spec_of(record: &SolveRecord) -> BuildSpec {
    let short = |text: &String| text.len() <= limits::SEEN_TEXT_BYTES_MAX;
    let attrs = record.frontend_attrs.iter();
    let mut names = record.image_names.iter().filter(|name| short(name));
    BuildSpec {
        image: names.next().cloned().unwrap_or_default(),
        tags: names.take(limits::SEEN_NAMES_MAX).cloned().collect(),
        push: record.push,
        frontend_attrs: attrs
            .filter(|(name, value)| ATTRS_TOLD.contains(&name.as_str()) && short(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        ..BuildSpec::default()
    }
}

async fn follow(guest: Arc<Guest>, build: Arc<Build>, record: SolveRecord) {
    build.append(BuildEvent::Started);
    let ended = tokio::select! {
        ended = Box::pin(follow_to_end(&guest, &build, &record)) => {
            ended.unwrap_or_else(|error| outcome::of_system(&outcome::chain(&error)))
        }
        // Only the machine's end stops it.
        _why = build.stopped() => {
            outcome::of_system("the builder ended while the build ran")
        }
    };
    build.end(ended);
}

async fn follow_to_end(
    guest: &Guest,
    build: &Build,
    record: &SolveRecord,
) -> Result<BuildOutcome, NoSolve> {
    let client = connect(guest).await?;
    let mut converter = Converter::new(build.accepted_at());
    let (events, mut told) = mpsc::channel(limits::EVENTS_QUEUED_MAX);
    let telling = async {
        // Ends with the solve, which holds the sender.
        while let Some(event) = told.recv().await {
            for event in converter.convert(event, Instant::now()) {
                build.append(event);
            }
        }
    };
    let (ended, ()) = tokio::join!(client.follow_to_end(&record.build_ref, events), telling);
    Ok(match ended {
        Ok(end) => succeeded(guest, build, record, end).await,
        Err(failure) => outcome::of_solve(&failure),
    })
}

async fn succeeded(
    guest: &Guest,
    build: &Build,
    record: &SolveRecord,
    end: SolveEnd,
) -> BuildOutcome {
    let (steps, steps_cached) = build.steps_seen().count();
    let image_id = end.image_id.unwrap_or_default();
    // A result that went to the client, or to a registry alone, is no image here.
    let image = if image_id.is_empty() {
        None
    } else {
        guest.docker.image(&image_id).await.ok()
    };
    // Where BuildKit pushes, an image's id is the digest of its manifest.
    let digest = (record.push && !image_id.is_empty()).then(|| image_id.clone());
    BuildOutcome::Succeeded {
        image_id,
        digest,
        size_bytes: image.map_or(0, |image| image.size),
        build_ms: u64::try_from(end.took.as_millis()).unwrap_or(u64::MAX),
        push_ms: 0,
        steps,
        steps_cached,
        platforms: Box::default(),
        statements: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(build_ref: &str) -> SolveRecord {
        SolveRecord {
            build_ref: build_ref.to_owned(),
            created_at: Some(SystemTime::UNIX_EPOCH),
            ..SolveRecord::default()
        }
    }

    #[test]
    fn our_own_solves_are_told_from_those_of_clients() {
        let id = BuildId::from_entropy([7; ID_ENTROPY_BYTES]);
        assert!(is_ours(&format!("{id}-1")));
        for theirs in ["", "-", "k3x0c9fqmxmdb3oqmyb9kc8h4", "a-b-1", id.as_str()] {
            assert!(!is_ours(theirs), "{theirs}");
        }
    }

    #[test]
    fn a_solve_has_one_id_and_two_have_two() {
        assert_eq!(id_of(&record("a")), id_of(&record("a")));
        assert_ne!(id_of(&record("a")), id_of(&record("b")));
        let later = SolveRecord {
            created_at: Some(SystemTime::now()),
            ..record("a")
        };
        assert_ne!(id_of(&record("a")), id_of(&later));
    }

    #[test]
    fn what_is_told_of_a_solve_is_short_and_holds_no_secret() {
        let attrs = [
            ("filename", "Dockerfile".to_owned()),
            ("context", "https://user:token@git.example/x".to_owned()),
            ("build-arg:PASSWORD", "x".to_owned()),
            ("target", "t".repeat(limits::SEEN_TEXT_BYTES_MAX + 1)),
        ];
        let spec = spec_of(&SolveRecord {
            frontend_attrs: attrs.map(|(k, v)| (k.to_owned(), v)).into(),
            image_names: (0..100).map(|n| format!("r/a:{n}")).collect(),
            ..record("a")
        });
        assert_eq!(spec.image, "r/a:0");
        assert_eq!(spec.tags.len(), limits::SEEN_NAMES_MAX);
        assert_eq!(
            spec.frontend_attrs.into_iter().collect::<Vec<_>>(),
            [("filename".to_owned(), "Dockerfile".to_owned())]
        );
    }
}

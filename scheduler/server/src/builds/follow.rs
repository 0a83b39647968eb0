//! Following a build on its guest, from the last number recorded to its end.
//!
//! Must not know: who reads the events.

use super::patience::until_available;
use super::{Inner, Live};
use crate::chain::chain;
use crate::clock::now;
use crate::farm::{BuilderKey, FarmError};
use crate::guest_client::GuestError;
use crate::limits::{
    BUILD_GONE_WAIT, BUILD_SILENCE_MAX, CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, EVENT_BATCH_MAX,
};
use crate::problem::Problem;
use futures_util::StreamExt;
use http::StatusCode;
use slipway_core::build::{BuildEvent, BuildOutcome, BuildSource, Fault, NumberedEvent};
use slipway_core::limits::{BUILD_DURATION_MAX, BUILD_EVENTS_BYTES_MAX, BUILD_LOG_CHUNK_BYTES_MAX};
use slipway_store::{Build, ErrorKind};
use std::borrow::Cow;
use std::time::Duration;
use tokio::time::Instant;

/// What the guest has told of a build in the end.
#[derive(Debug)]
enum Told {
    /// How it ended.
    End(BuildOutcome),
    /// More than twice what is kept, without an end.
    TooMuch,
}

/// Why one try to follow a build ended without its end, in words for the build's owner.
#[derive(Debug)]
enum Lost {
    /// The guest does not know the build, or there is no guest: it will not come back.
    Build(Words),
    /// There is no machine to ask; perhaps in a moment.
    Machine(Words),
    /// Nobody could be asked.
    Contact(Words),
}

type Words = Cow<'static, str>;

/// What of an error the owner of a build may read. The log has the rest.
fn told<'a, E>(build: &Build, error: &'a E) -> Words
where
    E: std::error::Error + 'static,
    Problem: From<&'a E>,
{
    tracing::warn!(build = %build.id, why = ?chain(error), "build not followed");
    Problem::from(error).message
}

/// The same of what the build's own builder says, or does not.
fn guest_told(build: &Build, error: &GuestError) -> Words {
    tracing::warn!(build = %build.id, why = ?chain(error), "build not followed");
    match error {
        GuestError::Refused { message, .. } => message.clone().into(),
        GuestError::Older => error.to_string().into(),
        GuestError::Transport(_) | GuestError::TimedOut(_) | GuestError::Protocol(_) => {
            "the builder does not answer".into()
        }
    }
}

/// Why a guest does not know a build. What a classic builder tells is heard by the server alone, so such a build is unknown to its guest in
/// the server's next life.
fn unknown_to_guest(source: BuildSource) -> &'static str {
    match source {
        BuildSource::Deploy | BuildSource::Buildkit => {
            "the builder was started anew during the build"
        }
        BuildSource::Docker => "the server or the builder was started anew during the build",
    }
}

impl Inner {
    /// Follows a build to its end.
    pub(super) async fn follow(&self, build: Build, key: &BuilderKey, live: &Live) {
        let mut reader = Follower {
            last_seq: build.last_seq,
            bytes: build.event_bytes,
            told: build.event_bytes,
            heard: Instant::now(),
            missing_since: None,
        };
        let mut pause = CONNECT_RETRY_MIN;
        loop {
            let before = reader.last_seq;
            let lost = match self.follow_once(&build, key, live, &mut reader).await {
                Ok(Told::End(outcome)) => return self.finish(&build, outcome).await,
                Ok(Told::TooMuch) => return self.cut_off(&build, key).await,
                Err(lost) => lost,
            };
            if let Some(why) = reader.judge(lost, now().since(build.created_at)) {
                let outcome = BuildOutcome::Failed {
                    fault: Fault::System,
                    message: why.into_owned(),
                    hint: Some("deploy again; the cache has what was finished".to_owned()),
                    excerpt: None,
                };
                return self.give_up(&build, outcome).await;
            }
            pause = if reader.last_seq > before {
                CONNECT_RETRY_MIN
            } else {
                CONNECT_RETRY_MAX.min(pause * 2)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes events until the build has ended, or the guest cannot be heard any more.
    async fn follow_once(
        &self,
        build: &Build,
        key: &BuilderKey,
        live: &Live,
        reader: &mut Follower,
    ) -> Result<Told, Lost> {
        let guest = match self.farm.guest_if_running(key).await {
            Ok(guest) => guest,
            Err(FarmError::NotRunning) => {
                return Err(Lost::Machine("the builder ended during the build".into()));
            }
            Err(error) => return Err(Lost::Contact(told(build, &error))),
        };
        let events = match guest.events(&build.id, reader.last_seq).await {
            Ok(events) => events,
            Err(GuestError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => {
                return Err(Lost::Build(unknown_to_guest(build.source).into()));
            }
            Err(error) => return Err(Lost::Contact(guest_told(build, &error))),
        };
        (reader.heard, reader.missing_since) = (Instant::now(), None);
        let mut batches = std::pin::pin!(events.ready_chunks(EVENT_BATCH_MAX));
        while let Some(batch) = batches.next().await {
            let mut events = Vec::with_capacity(batch.len());
            let mut broken = None;
            for event in batch {
                match event {
                    Ok(event) => events.push(event),
                    Err(error) => broken = Some(Lost::Contact(guest_told(build, &error))),
                }
            }
            let outcome = events.iter().rev().find_map(|event| match &event.event {
                BuildEvent::Ended(outcome) => Some(outcome.clone()),
                BuildEvent::Queued { .. }
                | BuildEvent::Started
                | BuildEvent::Step(_)
                | BuildEvent::Log { .. }
                | BuildEvent::Progress { .. }
                | BuildEvent::Warning { .. }
                | BuildEvent::Push(_)
                | BuildEvent::LogTruncated => None,
            });
            reader.bound(&mut events);
            self.record(build, live, reader, &events).await?;
            if reader.told > BYTES_MAX * 2 && outcome.is_none() {
                // Nothing that it tells from here on would be kept, so it is not read either.
                return Ok(Told::TooMuch);
            }
            if let Some(outcome) = outcome {
                return Ok(Told::End(outcome));
            }
            if let Some(lost) = broken {
                return Err(lost);
            }
            reader.heard = Instant::now();
        }
        Err(Lost::Contact(
            "the builder stopped telling of the build".into(),
        ))
    }

    /// Ends a build whose guest does not stop telling of it.
    async fn cut_off(&self, build: &Build, key: &BuilderKey) {
        tracing::warn!(org = %build.org, build = %build.id, "a guest tells too much of a build");
        if let Ok(mut guest) = self.farm.guest_if_running(key).await {
            // It is given up in any case.
            let _ = guest.cancel_build(&build.id).await;
        }
        let outcome = BuildOutcome::Failed {
            fault: Fault::User,
            message: "the builder told more of the build than twice what is kept".to_owned(),
            hint: Some("have the build print less".to_owned()),
            excerpt: None,
        };
        self.give_up(build, outcome).await;
    }

    async fn record(
        &self,
        build: &Build,
        live: &Live,
        reader: &mut Follower,
        events: &[NumberedEvent],
    ) -> Result<(), Lost> {
        match self
            .store
            .append_build_events(&build.org, &build.id, events)
            .await
        {
            Ok(last) => {
                reader.last_seq = last;
                live.recorded.send_modify(|seq| *seq = last);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                Err(Lost::Contact(told(build, &error)))
            }
            Err(error) => Err(Lost::Build(told(build, &error))),
        }
    }

    /// Records the end that the guest told. Long texts stay in the build's last event alone: rows are read in lists.
    pub(super) async fn finish(&self, build: &Build, outcome: BuildOutcome) {
        let outcome = outcome.without_texts();
        let finished = until_available(
            || {
                self.store
                    .finish_build(&build.org, &build.id, &outcome, now())
            },
            |error| tracing::error!(build = %build.id, why = ?chain(error), "end not recorded"),
        );
        match finished.await {
            Ok(ended) => {
                tracing::info!(build = %build.id, state = ended.state.as_str(), "build ended");
                self.publish(&ended);
            }
            Err(error) => tracing::error!(build = %build.id, why = ?chain(&error), "end lost"),
        }
    }

    /// Ends a build that the guest will not tell the end of.
    pub(super) async fn give_up(&self, build: &Build, outcome: BuildOutcome) {
        tracing::warn!(build = %build.id, ?outcome, "build given up");
        let last = self
            .store
            .build(&build.org, &build.id)
            .await
            .map(|b| b.last_seq);
        if let Ok(last) = last {
            let at_ms = u64::try_from(now().since(build.created_at).as_millis());
            let event = NumberedEvent {
                seq: last + 1,
                at_ms: at_ms.unwrap_or(u64::MAX),
                event: BuildEvent::Ended(outcome.clone()),
            };
            if let Err(error) = self
                .store
                .append_build_events(&build.org, &build.id, &[event])
                .await
            {
                tracing::error!(build = %build.id, why = ?chain(&error), "end not told");
            }
        }
        self.finish(build, outcome).await;
    }
}

/// What is kept of one build's events: one chunk above the guest's own bound is room for its word that the log was cut.
const BYTES_MAX: u64 = (BUILD_EVENTS_BYTES_MAX + BUILD_LOG_CHUNK_BYTES_MAX) as u64;

/// How far a build was followed.
struct Follower {
    last_seq: u64,
    bytes: u64,
    /// Bytes that the guest told, those that were dropped included.
    told: u64,
    /// When the guest was heard last.
    heard: Instant,
    /// Since when there is no machine to ask.
    missing_since: Option<Instant>,
}

impl Follower {
    /// Drops what goes over the bound, except the end. The guest keeps the same bound, so this is for one that does not.
    fn bound(&mut self, events: &mut Vec<NumberedEvent>) {
        events.retain(|event| {
            let size = serde_json::to_vec(event).map_or(0, |json| json.len() as u64);
            let kept =
                self.bytes + size <= BYTES_MAX || matches!(event.event, BuildEvent::Ended(_));
            self.told += size;
            if kept {
                self.bytes += size;
            }
            kept
        });
    }

    /// Whether to give up, and why.
    fn judge(&mut self, lost: Lost, age: Duration) -> Option<Words> {
        let over = age > BUILD_DURATION_MAX + BUILD_SILENCE_MAX;
        match lost {
            Lost::Build(why) => Some(why),
            Lost::Machine(why) => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                (since.elapsed() > BUILD_GONE_WAIT).then_some(why)
            }
            Lost::Contact(why) => {
                let silent = self.heard.elapsed() > BUILD_SILENCE_MAX;
                (silent || over).then(|| format!("the builder cannot be reached: {why}").into())
            }
        }
    }
}

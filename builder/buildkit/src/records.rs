//! What a builder records of solves, whoever asked for them: that they begin, what was asked, and how they ended.
//!
//! It must not know who reads it, nor which solves are of interest.

use crate::client::{Client, FailedSteps, IMAGE_CONFIG_KEY, IMAGE_ID_KEY};
use crate::event::{SolveEvent, time_of};
use crate::limits::{EVENTS_DRAIN_WAIT_MAX, RECORD_WAIT_MAX};
use crate::solve_error::{SolveError, SolveFailure};
use bollard_buildkit_proto::moby::buildkit::v1 as control;
use control::BuildHistoryEventType as Kind;
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// A solve as its builder has recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SolveRecord {
    /// Name of the solve, which its client chose.
    pub build_ref: String,
    /// Attributes of the frontend. They may hold what the client keeps secret, as a password in an address.
    pub frontend_attrs: BTreeMap<String, String>,
    /// Names of the image; none if the result does not become one.
    pub image_names: Vec<String>,
    /// BuildKit pushes the image by itself.
    pub push: bool,
    /// When it was asked for, by the builder's clock.
    pub created_at: Option<SystemTime>,
}

/// How a solve ended well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SolveEnd {
    /// Id or digest of the image, where there is one.
    pub image_id: Option<String>,
    /// From the builder's clock; zero if it does not say.
    pub took: Duration,
}

impl Client {
    /// Solves from now on, those under way, and those that ended not long ago, in the order in which they became known; one may come more than
    /// once. Goes on until `records` is dropped, or the builder or the connection ends.
    ///
    /// # Errors
    /// What ended it.
    pub async fn solves(&self, records: mpsc::Sender<SolveRecord>) -> Result<(), SolveError> {
        let request = control::BuildHistoryRequest::default();
        let answer = self.control().listen_build_history(request).await;
        let mut events = answer.map_err(SolveError::of_status)?.into_inner();
        loop {
            let event = tokio::select! {
                event = events.message() => event.map_err(SolveError::of_status)?,
                () = records.closed() => return Ok(()),
            };
            let Some(event) = event else {
                return Ok(());
            };
            if event.r#type() == Kind::Deleted {
                continue;
            }
            if let Some(record) = event.record
                && records.send(record_of(record)).await.is_err()
            {
                return Ok(());
            }
        }
    }

    /// Follows a solve that somebody else asked for to its end. Events go to `events` as with [`Client::solve`]. Dropping the future leaves the
    /// solve alone.
    ///
    /// # Errors
    /// Why the solve failed, or why its end is not known.
    pub async fn follow_to_end(
        &self,
        build_ref: &str,
        events: mpsc::Sender<SolveEvent>,
    ) -> Result<SolveEnd, SolveFailure> {
        let failed = FailedSteps::default();
        let status = control::StatusRequest {
            r#ref: build_ref.to_owned(),
        };
        let follow = self.follow(status, events, &failed);
        let recorded = self.recorded_end(build_ref);
        tokio::pin!(follow, recorded);
        let record = tokio::select! {
            recorded = &mut recorded => {
                let drained = tokio::time::timeout(EVENTS_DRAIN_WAIT_MAX, &mut follow).await;
                if drained.is_err() {
                    tracing::debug!("events of a solve did not end in time; the rest is dropped");
                }
                recorded?
            }
            () = &mut follow => tokio::time::timeout(RECORD_WAIT_MAX, &mut recorded)
                .await
                .map_err(|_elapsed| not_recorded())??,
        };
        end_of(record, |digest| failed.name(digest))
    }

    /// The record of a solve once it has ended.
    async fn recorded_end(
        &self,
        build_ref: &str,
    ) -> Result<control::BuildHistoryRecord, SolveError> {
        let request = control::BuildHistoryRequest {
            r#ref: build_ref.to_owned(),
            ..Default::default()
        };
        let answer = self.control().listen_build_history(request).await;
        let mut events = answer.map_err(SolveError::of_status)?.into_inner();
        while let Some(event) = events.message().await.map_err(SolveError::of_status)? {
            let complete = event.r#type() == Kind::Complete;
            if let Some(record) = event.record
                && complete
                && record.r#ref == build_ref
            {
                return Ok(record);
            }
        }
        Err(not_recorded())
    }
}

fn not_recorded() -> SolveError {
    SolveError::of_status(Status::new(
        Code::Unknown,
        "the builder did not record how the build ended",
    ))
}

fn record_of(record: control::BuildHistoryRecord) -> SolveRecord {
    let mut image_names = Vec::new();
    let mut push = false;
    for exporter in &record.exporters {
        let names = exporter.attrs.get("name").into_iter();
        let names = names.flat_map(|names| names.split(','));
        image_names.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        push |= exporter
            .attrs
            .get("push")
            .is_some_and(|value| value == "true");
    }
    SolveRecord {
        build_ref: record.r#ref,
        frontend_attrs: record.frontend_attrs.into_iter().collect(),
        image_names,
        push,
        created_at: record.created_at.as_ref().and_then(time_of),
    }
}

fn end_of(
    record: control::BuildHistoryRecord,
    name_of: impl FnOnce(&str) -> Option<String>,
) -> Result<SolveEnd, SolveFailure> {
    if let Some(error) = record.error {
        let (code, details) = (Code::from_i32(error.code), error.encode_to_vec());
        let status = Status::with_details(code, error.message, details.into());
        return Err(SolveFailure::of_status(status, name_of));
    }
    let time = |stamp: &Option<_>| stamp.as_ref().and_then(time_of);
    let took = time(&record.completed_at)
        .zip(time(&record.created_at))
        .and_then(|(end, start)| end.duration_since(start).ok());
    let response = record.exporter_response;
    let answered = response
        .get(IMAGE_ID_KEY)
        .or_else(|| response.get(IMAGE_CONFIG_KEY));
    // dockerd's own exporter says nothing else of the image than its descriptor.
    let results = record.result.into_iter();
    let mut described = results.flat_map(|result| {
        let first = result.result_deprecated.into_iter();
        first.chain(result.results.into_values())
    });
    Ok(SolveEnd {
        image_id: answered
            .cloned()
            .or_else(|| Some(described.next()?.digest))
            .filter(|id| !id.is_empty()),
        took: took.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_buildkit_proto::google::{protobuf::Timestamp, rpc};

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn a_record_says_what_was_asked_and_how_it_ended() {
        let exporter = |attrs: &[(&str, &str)]| control::Exporter {
            r#type: "image".to_owned(),
            attrs: attrs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let record = control::BuildHistoryRecord {
            r#ref: "r".to_owned(),
            exporters: vec![
                exporter(&[("name", "a:1,b:2"), ("push", "true")]),
                exporter(&[]),
            ],
            created_at: at(5),
            completed_at: at(7),
            exporter_response: [(IMAGE_ID_KEY.to_owned(), "sha256:x".to_owned())].into(),
            ..Default::default()
        };
        let asked = record_of(record.clone());
        assert_eq!((asked.build_ref.as_str(), asked.push), ("r", true));
        assert_eq!(asked.image_names, ["a:1", "b:2"]);
        let ended = end_of(record.clone(), |_| None).expect("it ended well");
        assert_eq!(ended.image_id.as_deref(), Some("sha256:x"));
        assert_eq!(ended.took, Duration::from_secs(2));

        let failed = |code: Code, message: &str| {
            let error = rpc::Status {
                code: code as i32,
                message: message.to_owned(),
                details: Vec::new(),
            };
            let record = control::BuildHistoryRecord {
                error: Some(error),
                ..record.clone()
            };
            end_of(record, |_| None).expect_err("it failed").error
        };
        let cancelled = failed(Code::Cancelled, "context canceled");
        assert!(matches!(cancelled, SolveError::Cancelled), "{cancelled:?}");
        let step = failed(
            Code::Unknown,
            "failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 3",
        );
        assert!(
            matches!(step, SolveError::StepFailed { exit_code: 3, .. }),
            "{step:?}"
        );
    }
}

//! What a solve tells while it runs, in plain types. It must not know who listens.

use crate::solve_error::tidy;
use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1 as control;
use std::time::{Duration, SystemTime};

/// One thing that happened. BuildKit repeats a step as its state changes: the newest word on a digest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SolveEvent {
    /// A step was announced or changed state.
    Step {
        /// Identity of the step within the solve.
        digest: String,
        /// As BuildKit names it, such as `[2/5] RUN make`.
        name: String,
        /// When it began, by the builder's clock; absent while it waits.
        started_at: Option<SystemTime>,
        /// When it ended, by the builder's clock.
        completed_at: Option<SystemTime>,
        /// Its result came from the cache.
        cached: bool,
        /// Why it failed.
        error: Option<String>,
    },
    /// Output of a step.
    Log {
        /// Of which step.
        digest: String,
        /// 1 is stdout, 2 is stderr.
        stream: u8,
        /// As the process wrote it; lines may be cut anywhere.
        bytes: Vec<u8>,
    },
    /// Progress inside a step (a transfer, an export).
    Progress {
        /// Of which step.
        digest: String,
        /// What is being done, unique within the step.
        id: String,
        /// Bytes or items done.
        current: u64,
        /// Of how many; 0 if not known.
        total: u64,
        /// It is done.
        done: bool,
    },
    /// A warning of the frontend.
    Warning {
        /// One line.
        message: String,
    },
}

/// Everything that one status message of BuildKit says, in order.
pub(crate) fn events_of(status: control::StatusResponse) -> impl Iterator<Item = SolveEvent> {
    let steps = status.vertexes.into_iter().map(|vertex| SolveEvent::Step {
        digest: vertex.digest,
        name: vertex.name,
        started_at: vertex.started.as_ref().and_then(time_of),
        completed_at: vertex.completed.as_ref().and_then(time_of),
        cached: vertex.cached,
        error: (!vertex.error.is_empty()).then(|| tidy(&vertex.error).into_owned()),
    });
    let progress = status
        .statuses
        .into_iter()
        .map(|status| SolveEvent::Progress {
            digest: status.vertex,
            id: status.id,
            current: u64::try_from(status.current).unwrap_or(0),
            total: u64::try_from(status.total).unwrap_or(0),
            done: status.completed.is_some(),
        });
    let logs = status.logs.into_iter().map(|log| SolveEvent::Log {
        digest: log.vertex,
        stream: u8::try_from(log.stream).unwrap_or(1),
        bytes: log.msg,
    });
    let warnings = status
        .warnings
        .into_iter()
        .map(|warning| SolveEvent::Warning {
            message: String::from_utf8_lossy(&warning.short).trim().to_owned(),
        });
    steps.chain(progress).chain(logs).chain(warnings)
}

pub(crate) fn time_of(stamp: &Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(stamp.seconds).ok()?;
    let nanos = u32::try_from(stamp.nanos).ok()?;
    // BuildKit sends Go's zero time for "not yet" in places; it is before 1970 and was refused above.
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_events_in_order() {
        let status = control::StatusResponse {
            vertexes: vec![control::Vertex {
                digest: "d".into(),
                name: "n".into(),
                started: Some(Timestamp {
                    seconds: 2,
                    nanos: 5,
                }),
                completed: Some(Timestamp {
                    seconds: -62_135_596_800,
                    nanos: 0,
                }),
                error: "bad".into(),
                ..Default::default()
            }],
            statuses: vec![control::VertexStatus {
                id: "i".into(),
                vertex: "d".into(),
                current: -1,
                total: 7,
                ..Default::default()
            }],
            logs: vec![control::VertexLog {
                vertex: "d".into(),
                stream: 2,
                msg: b"x\n".to_vec(),
                ..Default::default()
            }],
            warnings: vec![control::VertexWarning {
                short: b"w \n".to_vec(),
                ..Default::default()
            }],
        };
        let events: Vec<_> = events_of(status).collect();
        assert_eq!(
            events,
            [
                SolveEvent::Step {
                    digest: "d".into(),
                    name: "n".into(),
                    started_at: Some(SystemTime::UNIX_EPOCH + Duration::new(2, 5)),
                    completed_at: None,
                    cached: false,
                    error: Some("bad".into()),
                },
                SolveEvent::Progress {
                    digest: "d".into(),
                    id: "i".into(),
                    current: 0,
                    total: 7,
                    done: false,
                },
                SolveEvent::Log {
                    digest: "d".into(),
                    stream: 2,
                    bytes: b"x\n".to_vec()
                },
                SolveEvent::Warning {
                    message: "w".into()
                },
            ]
        );
    }
}

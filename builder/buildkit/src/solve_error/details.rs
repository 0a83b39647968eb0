//! The typed details that BuildKit puts beside an error: with which code a process ended, which step it was, and where that
//! stands in the Dockerfile.
//!
//! BuildKit writes them as JSON within protobuf. What is malformed or unknown is left out: the error's text is still there.

use base64::Engine as _;
use prost::Message as _;
use serde::Deserialize;

/// What is known beside the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Details {
    /// The exit code of a process.
    pub(super) exit_code: Option<i32>,
    /// Digest of the step that was at work. Absent while the Dockerfile was only read.
    pub(super) step: Option<String>,
    /// Where in the Dockerfile.
    pub(super) source: Option<Source>,
}

/// A place in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Name of the file.
    pub(super) filename: String,
    /// The whole file.
    pub(super) text: String,
    /// First and last line of each range that failed, from 1; 0 where BuildKit does not know.
    pub(super) ranges: Vec<(usize, usize)>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

// Field names differ in their case between versions of BuildKit.
#[derive(Deserialize)]
struct ExitMessage {
    #[serde(alias = "Code", default)]
    code: u32,
}

#[derive(Deserialize)]
struct Vertex {
    #[serde(alias = "Digest", default)]
    digest: String,
}

#[derive(Deserialize)]
struct SourceMessage {
    info: Option<Info>,
    #[serde(default)]
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Range {
    start: Option<Position>,
    end: Option<Position>,
}

#[derive(Deserialize)]
struct Position {
    #[serde(alias = "Line", default)]
    line: usize,
}

impl Details {
    /// Reads the bytes of `grpc-status-details-bin`.
    pub(super) fn of(bytes: &[u8]) -> Details {
        let mut details = Details::default();
        let Ok(status) = RpcStatus::decode(bytes) else {
            return details;
        };
        for any in &status.details {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            match name {
                "gatewayapi.ExitMessage+json" => {
                    details.exit_code = read::<ExitMessage>(&any.value)
                        .map(|exit| i32::try_from(exit.code).unwrap_or(i32::MAX));
                }
                "errdefs.Vertex+json" => {
                    details.step = read::<Vertex>(&any.value).map(|vertex| vertex.digest);
                }
                // The last of several is the innermost: what was included, not what includes it.
                "errdefs.Source+json" => {
                    details.source = read(&any.value).and_then(source_of).or(details.source);
                }
                _ => {}
            }
        }
        details
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    serde_json::from_slice(json)
        .inspect_err(|error| tracing::debug!(%error, "a detail of an error could not be read"))
        .ok()
}

fn source_of(message: SourceMessage) -> Option<Source> {
    let info = message.info?;
    let data = base64::engine::general_purpose::STANDARD
        .decode(info.data)
        .ok()?;
    let line = |position: Option<Position>| position.map_or(0, |position| position.line);
    let ranges = message.ranges.into_iter().map(|range| {
        let start = line(range.start);
        (start, line(range.end).max(start))
    });
    Some(Source {
        filename: info.filename,
        text: String::from_utf8_lossy(&data).into_owned(),
        ranges: ranges.collect(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The bytes of `grpc-status-details-bin` with these details: name of the type and JSON.
    pub(crate) fn encoded(details: &[(&str, String)]) -> Vec<u8> {
        let any = |(name, json): &(&str, String)| Any {
            type_url: format!("github.com/moby/buildkit/{name}"),
            value: json.clone().into_bytes(),
        };
        RpcStatus {
            details: details.iter().map(any).collect(),
        }
        .encode_to_vec()
    }

    /// A detail that names lines of a Dockerfile.
    pub(crate) fn source(dockerfile: &str, ranges: &str) -> (&'static str, String) {
        let data = base64::engine::general_purpose::STANDARD.encode(dockerfile);
        let info = format!(r#"{{"filename":"Dockerfile","data":"{data}"}}"#);
        (
            "errdefs.Source+json",
            format!(r#"{{"info":{info},"ranges":{ranges}}}"#),
        )
    }

    #[test]
    fn details_are_read_and_what_is_malformed_is_left_out() {
        let bytes = encoded(&[
            ("errdefs.Stack+json", "{}".to_owned()),
            source(
                "FROM a\nRUN b\n",
                r#"[{"start":{"line":2},"end":{"line":2}},{"start":{},"end":{}}]"#,
            ),
            ("errdefs.Vertex+json", r#"{"digest":"sha256:1"}"#.to_owned()),
            ("gatewayapi.ExitMessage+json", r#"{"Code":7}"#.to_owned()),
            ("errdefs.Source+json", "[]".to_owned()),
        ]);
        let details = Details::of(&bytes);
        assert_eq!(details.exit_code, Some(7));
        assert_eq!(details.step.as_deref(), Some("sha256:1"));
        let source = details.source.expect("a source");
        assert_eq!(source.text, "FROM a\nRUN b\n");
        assert_eq!(source.ranges, [(2, 2), (0, 0)]);
        assert_eq!(Details::of(b"\xff\xff"), Details::default());
        assert_eq!(Details::of(b""), Details::default());
    }
}

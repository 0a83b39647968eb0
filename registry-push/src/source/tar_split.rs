//! Reads tar-split's record of a layer: JSON lines in gzip, from which the tar is put together byte for byte.
//!
//! One line is either raw bytes of the tar (headers, padding) or the place of a file's content
//! (github.com/vbatts/tar-split, `tar/storage/entry.go`). Knows nothing of where contents lie.

use super::SourceError;
use crate::limits::TAR_SPLIT_LINE_BYTES;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::{BufRead, Read as _};
use std::path::{Path, PathBuf};

/// One step in putting the tar together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// These bytes come next.
    Segment(Vec<u8>),
    /// The content of this file comes next, exactly so many bytes.
    File {
        /// As in the tar header; any bytes.
        name: Vec<u8>,
        /// Bytes of content, at least 1.
        size: u64,
        /// CRC-64 (Go's ISO table) of the content, from when the layer was made.
        checksum: u64,
    },
}

/// Entries of one record, in order.
pub(crate) struct TarSplit<R> {
    lines: R,
    line: Vec<u8>,
    path: PathBuf,
    position: u64,
}

#[derive(serde::Deserialize)]
struct RawEntry<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: i64,
    #[serde(default, borrow)]
    payload: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    position: u64,
}

impl<R: BufRead> TarSplit<R> {
    /// Reads from the uncompressed record; `path` is for messages.
    pub(crate) fn new(lines: R, path: &Path) -> TarSplit<R> {
        TarSplit {
            lines,
            line: Vec::new(),
            path: path.to_path_buf(),
            position: 0,
        }
    }

    /// Where the lines come from.
    pub(crate) fn lines(&self) -> &R {
        &self.lines
    }

    /// The next entry that stands for at least one byte; `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        loop {
            self.line.clear();
            let read = (&mut self.lines)
                .take(TAR_SPLIT_LINE_BYTES + 1)
                .read_until(b'\n', &mut self.line)
                .map_err(SourceError::io("read", &self.path))?;
            if read == 0 {
                return Ok(None);
            }
            if self.line.len() as u64 > TAR_SPLIT_LINE_BYTES {
                return Err(SourceError::TooLong {
                    path: self.path.clone(),
                    limit: TAR_SPLIT_LINE_BYTES,
                });
            }
            if self.line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let entry =
                parse(&self.line, self.position).map_err(|reason| SourceError::Damaged {
                    path: self.path.clone(),
                    reason: format!("entry {}: {reason}", self.position),
                })?;
            self.position += 1;
            if let Some(entry) = entry {
                return Ok(Some(entry));
            }
        }
    }
}

fn parse(line: &[u8], position: u64) -> Result<Option<Entry>, String> {
    let raw: RawEntry<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if raw.position != position {
        return Err(format!("it has position {}", raw.position));
    }
    match raw.kind {
        1 => {
            let size = u64::try_from(raw.size).map_err(|_| "negative size".to_string())?;
            let name = match (raw.name_raw, raw.name) {
                (Some(name), _) => STANDARD.decode(name).map_err(|error| error.to_string())?,
                (None, Some(name)) => name.into_bytes(),
                (None, None) => Vec::new(),
            };
            // Directories, links, devices and empty files have a header and no content.
            if size == 0 {
                return Ok(None);
            }
            let checksum = checksum(&raw.payload.unwrap_or_default())?;
            Ok(Some(Entry::File {
                name,
                size,
                checksum,
            }))
        }
        2 => {
            let payload = raw.payload.unwrap_or_default();
            let bytes = STANDARD
                .decode(payload.as_bytes())
                .map_err(|error| error.to_string())?;
            Ok((!bytes.is_empty()).then_some(Entry::Segment(bytes)))
        }
        other => Err(format!("unknown type {other}")),
    }
}

fn checksum(payload: &str) -> Result<u64, String> {
    let bytes = STANDARD
        .decode(payload)
        .map_err(|error| error.to_string())?;
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| "no checksum of 8 bytes".to_string())?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> Result<Vec<Entry>, SourceError> {
        let mut record = TarSplit::new(text.as_bytes(), Path::new("tar-split.json"));
        let mut entries = Vec::new();
        while let Some(entry) = record.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn segments_and_files_in_order() {
        let text = concat!(
            r#"{"type":2,"payload":"aGVhZA==","position":0}"#,
            "\n",
            r#"{"type":1,"name":"dir/","payload":null,"position":1}"#,
            "\n",
            r#"{"type":1,"name":"a","size":3,"payload":"AAAAAAAAAQI=","position":2}"#,
            "\n",
            r#"{"type":1,"name_raw":"Y2Fm6Q==","size":1,"payload":"AAAAAAAAAAA=","position":3}"#,
            "\n",
            r#"{"type":2,"payload":"","position":4}"#,
        );
        assert_eq!(
            all(text).expect("parses"),
            [
                Entry::Segment(b"head".to_vec()),
                Entry::File {
                    name: b"a".to_vec(),
                    size: 3,
                    checksum: 0x102
                },
                Entry::File {
                    name: b"caf\xe9".to_vec(),
                    size: 1,
                    checksum: 0
                },
            ]
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        for text in [
            "{",
            r#"{"type":3,"position":0}"#,
            r#"{"type":1,"name":"a","size":-1,"payload":"AAAAAAAAAAA=","position":0}"#,
            r#"{"type":1,"name":"a","size":99999999999999999999,"payload":"AAAAAAAAAAA=","position":0}"#,
            r#"{"type":2,"payload":"!","position":0}"#,
            r#"{"type":1,"name_raw":"!","size":1,"payload":"AAAAAAAAAAA=","position":0}"#,
            r#"{"type":1,"name":"a","size":1,"position":0}"#,
            r#"{"type":1,"name":"a","size":1,"payload":null,"position":0}"#,
            r#"{"type":1,"name":"a","size":1,"payload":"AAAA","position":0}"#,
            r#"{"type":2,"payload":"aGVhZA==","position":1}"#,
            r#"{"type":2,"payload":"aGVhZA=="#,
        ] {
            assert!(
                matches!(all(text), Err(SourceError::Damaged { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn an_endless_line_is_refused_without_being_held() {
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        let mut record = TarSplit::new(endless, Path::new("x"));
        assert!(matches!(
            record.next_entry(),
            Err(SourceError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_entries_or_an_error(text in "[ -~\n]{0,400}") {
            let _ = all(&text);
        }

        #[test]
        fn any_name_and_size_survive(
            name in proptest::collection::vec(any::<u8>(), 0..200),
            size in 1..i64::MAX,
            checksum in any::<u64>(),
        ) {
            let payload = STANDARD.encode(checksum.to_be_bytes());
            let line = format!(
                r#"{{"type":1,"name_raw":"{}","size":{size},"payload":"{payload}","position":0}}"#,
                STANDARD.encode(&name)
            );
            let expected = Entry::File { name, size: size.unsigned_abs(), checksum };
            prop_assert_eq!(all(&line).expect("parses"), vec![expected]);
        }
    }
}

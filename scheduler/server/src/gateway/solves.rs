//! Solves in a BuildKit client's stream: whoever names one first has asked for it, and its request says how the image is to be called.
//!
//! HTTP/2 is looked at from outside: frame by frame, and of each frame of data its first bytes, if they look like a request about a solve, which
//! begins with the solve's name. What merely looks like one does no harm: nobody asks for it. Bounded by one small buffer for each
//! stream, and nothing is held back.
//!
//! Must not know: what is done with the names.

use crate::bounds::{REFERENCE_BYTES_MAX, SOLVE_LOOKED_AT_BYTES, SOLVE_NAME_BYTES_MAX};
use slipway_core::build::BuildSpec;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What every HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const PADDED: u8 = 8;
/// gRPC's own head of a message, the field's key and length, and what may come before with padding.
const BEFORE_NAME: usize = 1 + 5 + 2;
const NAME_BYTES_MIN: usize = 8;
/// Names of its image that are read.
const NAMES_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// So much of the preface was seen.
    Preface(usize),
    Head,
    /// In a frame, with so many bytes to come.
    Payload(usize),
    /// It is no HTTP/2.
    Off,
}

/// Reads along.
#[derive(Debug)]
pub(super) struct SolveNames {
    at: At,
    head: Vec<u8>,
    /// The beginning of a frame of data, while it is of interest.
    begun: Vec<u8>,
}

impl SolveNames {
    pub(super) fn new() -> Self {
        Self {
            at: At::Preface(0),
            head: Vec::with_capacity(FRAME_HEAD),
            begun: Vec::new(),
        }
    }

    /// Takes the next bytes, however they were cut, and gives the names in them to `found`.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut found: impl FnMut(Named)) {
        while !bytes.is_empty() {
            match self.at {
                At::Off => return,
                At::Preface(seen) => {
                    let rest = &PREFACE[seen..];
                    let n = rest.len().min(bytes.len());
                    if rest[..n] != bytes[..n] {
                        self.at = At::Off;
                        return;
                    }
                    bytes = &bytes[n..];
                    self.at = match n == rest.len() {
                        true => At::Head,
                        false => At::Preface(seen + n),
                    };
                }
                At::Head => {
                    let n = (FRAME_HEAD - self.head.len()).min(bytes.len());
                    self.head.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if self.head.len() == FRAME_HEAD {
                        self.begin_frame();
                    }
                }
                At::Payload(left) => {
                    let n = left.min(bytes.len());
                    if self.is_data() && self.is_plausible() {
                        let room = SOLVE_LOOKED_AT_BYTES
                            .saturating_sub(self.begun.len())
                            .min(n);
                        self.begun.extend_from_slice(&bytes[..room]);
                    }
                    bytes = &bytes[n..];
                    self.at = At::Payload(left - n);
                    if left == n {
                        self.end_frame(&mut found);
                    }
                }
            }
        }
    }

    /// Bytes that are held.
    #[cfg(feature = "fuzz")]
    pub(super) fn held(&self) -> usize {
        self.head.len() + self.begun.len()
    }

    fn begin_frame(&mut self) {
        let length = usize::from(self.head[0]) << 16
            | usize::from(self.head[1]) << 8
            | usize::from(self.head[2]);
        self.begun.clear();
        self.at = At::Payload(length);
        if length == 0 {
            self.end_frame(&mut |_: Named| {});
        }
    }

    fn end_frame(&mut self, found: &mut impl FnMut(Named)) {
        if self.is_data()
            && let Some(named) = named_in(&self.begun, self.is_padded())
        {
            found(named);
        }
        self.head.clear();
        self.at = At::Head;
    }

    fn is_data(&self) -> bool {
        self.head.get(3) == Some(&DATA)
    }

    fn is_padded(&self) -> bool {
        self.head.get(4).is_some_and(|flags| flags & PADDED != 0)
    }

    /// Whether what is there of the frame may become a request about a solve.
    fn is_plausible(&self) -> bool {
        self.begun.len() < BEFORE_NAME || request_in(&self.begun, self.is_padded()).is_some()
    }
}

/// A solve, as a client names it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Named {
    /// The name of the solve.
    pub(super) reference: String,
    /// What is known of what is asked; nothing where it is only asked after.
    pub(super) spec: Option<BuildSpec>,
}

/// The message, if it begins as a request about a solve does: with a short text as its first field.
fn request_in(data: &[u8], is_padded: bool) -> Option<&[u8]> {
    match data.get(usize::from(is_padded)..)? {
        [0, _, _, _, _, message @ ..] if message.first() == Some(&0x0a) => {
            let length = usize::from(*message.get(1)?);
            (NAME_BYTES_MIN..=SOLVE_NAME_BYTES_MAX)
                .contains(&length)
                .then_some(message)
        }
        _ => None,
    }
}

fn named_in(data: &[u8], is_padded: bool) -> Option<Named> {
    let mut fields = Fields(request_in(data, is_padded)?);
    let (_, reference) = fields.next()?;
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    if !reference.iter().all(is_name) {
        return None;
    }
    let (mut names, mut push, mut is_solve) = (Vec::new(), false, false);
    let mut attribute = |entry: &[u8]| {
        let mut parts = Fields(entry);
        let (Some((1, key)), Some((2, value))) = (parts.next(), parts.next()) else {
            return;
        };
        match key {
            b"name" => names = image_names(value),
            b"push" => push = value == b"true",
            _ => {}
        }
    };
    // Fields of `SolveRequest`: the exporter and its attributes, as older and as newer clients say it, and the frontend's.
    for (number, value) in fields {
        is_solve |= matches!(number, 3..=13);
        match number {
            4 => attribute(value),
            13 => Fields(value)
                .filter(|(number, _)| *number == 2)
                .for_each(|(_, entry)| attribute(entry)),
            _ => {}
        }
    }
    let mut names = names.into_iter();
    let spec = is_solve.then(|| BuildSpec {
        image: names.next().unwrap_or_default(),
        tags: names.collect(),
        push,
        ..BuildSpec::default()
    });
    Some(Named {
        reference: String::from_utf8_lossy(reference).into_owned(),
        spec,
    })
}

fn image_names(list: &[u8]) -> Vec<String> {
    let list = String::from_utf8_lossy(list);
    let names = list.split(',').filter(|name| {
        !name.is_empty() && name.len() <= REFERENCE_BYTES_MAX && !name.contains(char::is_control)
    });
    names.take(NAMES_MAX).map(str::to_owned).collect()
}

/// The fields of a protobuf message that hold bytes, up to the first that is not whole or of another kind than a number.
struct Fields<'d>(&'d [u8]);

impl<'d> Iterator for Fields<'d> {
    type Item = (u64, &'d [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.number()?;
            let value = self.number()?;
            match key & 7 {
                0 => {}
                2 => {
                    let (bytes, rest) = self.0.split_at_checked(usize::try_from(value).ok()?)?;
                    self.0 = rest;
                    return Some((key >> 3, bytes));
                }
                _ => return None,
            }
        }
    }
}

impl Fields<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

/// A client's stream; what it names is told while it is read.
pub(super) struct Read<S, F> {
    stream: S,
    names: SolveNames,
    found: F,
}

impl<S, F: FnMut(Named)> Read<S, F> {
    pub(super) fn new(stream: S, found: F) -> Self {
        Self {
            stream,
            names: SolveNames::new(),
            found,
        }
    }
}

impl<S: AsyncRead + Unpin, F: FnMut(Named) + Unpin> AsyncRead for Read<S, F> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            names,
            found,
        } = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(cx, buffer);
        names.read(&buffer.filled()[before..], found);
        read
    }
}

impl<S: AsyncWrite + Unpin, F: Unpin> AsyncWrite for Read<S, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [&head[..], payload].concat()
    }

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        assert!(length < 128);
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn grpc(proto: &[u8]) -> Vec<u8> {
        let size = u32::try_from(proto.len()).unwrap().to_be_bytes();
        [&[0], &size[..], proto].concat()
    }

    fn message(name: &str) -> Vec<u8> {
        grpc(&field(1, name.as_bytes()))
    }

    fn attribute(key: &str, value: &str) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, value.as_bytes())].concat()
    }

    #[test]
    fn a_request_says_how_the_image_is_called_in_both_ways() {
        let old = [
            field(1, b"the-reference"),
            field(3, b"moby"),
            field(4, &attribute("other", "x")),
            field(4, &attribute("name", "r.example/a:1,b")),
            field(6, b"dockerfile.v0"),
        ];
        let exporter = [field(1, b"image"), field(2, &attribute("push", "true"))];
        let new = [
            field(1, b"the-reference"),
            // A number, as `internal`.
            vec![11 << 3, 1],
            field(13, &exporter.concat()),
            // The rest of it is cut off.
            vec![9 << 3 | 2, 100, 0],
        ];
        let named = |parts: &[Vec<u8>]| named_in(&grpc(&parts.concat()), false).unwrap();
        let spec = named(&old).spec.unwrap();
        assert_eq!((spec.image.as_str(), spec.push), ("r.example/a:1", false));
        assert_eq!(spec.tags, ["b"]);
        let spec = named(&new).spec.unwrap();
        assert_eq!((spec.image.as_str(), spec.push), ("", true));
        assert_eq!(named(&old[..1]).spec, None, "only asked after");
    }

    fn names(bytes: &[u8], piece: usize) -> Vec<String> {
        let (mut names, mut found) = (SolveNames::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            names.read(piece, |named| found.push(named.reference));
        }
        assert!(names.begun.capacity() <= 2 * SOLVE_LOOKED_AT_BYTES);
        found
    }

    #[test]
    fn names_are_found_however_the_stream_is_cut() {
        let padded = [&[3], &message("padded-name")[..], &[0; 3]].concat();
        let stream = [
            PREFACE.to_vec(),
            frame(4, 0, &[]),
            frame(1, 4, b"headers"),
            frame(DATA, 0, &message("k3x0c9fqmxmdb3oqmyb9kc8h4")),
            frame(DATA, 0, &[]),
            frame(DATA, PADDED, &padded),
            frame(DATA, 0, &message("short")),
            frame(DATA, 0, &message("not a name!")),
            frame(DATA, 0, &[7; 70_000]),
            frame(DATA, 0, &message("the-second")),
        ]
        .concat();
        for piece in [1, 2, 7, 1000, stream.len()] {
            assert_eq!(
                names(&stream, piece),
                ["k3x0c9fqmxmdb3oqmyb9kc8h4", "padded-name", "the-second"],
                "in pieces of {piece}"
            );
        }
    }

    #[test]
    fn what_is_no_http2_is_not_looked_at() {
        let stream = [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            frame(DATA, 0, &message("a-name-in-it")),
        ];
        assert!(names(&stream.concat(), 5).is_empty());
        let cut = [PREFACE.to_vec(), frame(DATA, 0, &message("a-name-in-it"))].concat();
        assert!(names(&cut[..cut.len() - 1], 3).is_empty());
    }
}

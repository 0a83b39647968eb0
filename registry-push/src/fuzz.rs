//! What fuzzing calls: a function for each parser of foreign bytes, which panics when the parser breaks its word.
//! `loadtests/fuzz` runs them.

use crate::compress::Codec;
use crate::digest::Digest;
use crate::registry::fuzz as registry;
use crate::source::fuzz as source;
use crate::target::Target;
use std::io::Read as _;

/// A target: takes any bytes.
pub type Function = fn(&[u8]);

/// Name and function of each target.
pub const TARGETS: &[(&str, Function)] = &[
    ("image_reference", image_reference),
    ("layer_member", layer_member),
    ("layer_record", source::layer_record),
    ("layer_index_line", layer_index_line),
    ("archive_tar", source::archive_tar),
    ("archive_json", source::archive_json),
    ("registry_answer", registry::answer),
    ("registry_challenge", registry::challenge),
];

/// A reference, and a tag after a NUL. What is parsed is parsed again from what it prints, and fits a URL's path as it is.
fn image_reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (text, tag) = text.split_once('\0').unwrap_or((&text, "v1"));
    let Ok(target) = Target::parse(text) else {
        return;
    };
    assert_eq!(Target::parse(&target.to_string()).as_ref(), Ok(&target));
    let plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
            && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
    };
    assert!(
        plain(target.repository()) && plain(target.tag()),
        "{target}"
    );
    if let Ok(other) = target.with_tag(tag) {
        assert_eq!(other.tag(), tag);
        assert_eq!(other.registry(), target.registry());
        assert_eq!(other.repository(), target.repository());
    }
}

/// A codec, a length, and content: what is compressed unpacks to what it was.
fn layer_member(bytes: &[u8]) {
    let [choice, length, content @ ..] = bytes else {
        return;
    };
    let level = 1 + choice / 2 % 12;
    let codec = match choice % 2 {
        0 => Codec::Gzip { level },
        _ => Codec::Zstd { level },
    };
    // Repeated, so that long matches are seen too.
    let input = content.repeat(1 + usize::from(*length));
    let Some(mut compressor) = codec.compressor() else {
        panic!("no compressor");
    };
    let Some(member) = compressor.member(&input) else {
        panic!("the library failed");
    };
    let mut found = Vec::new();
    let read = match codec {
        Codec::Gzip { .. } => {
            flate2::bufread::MultiGzDecoder::new(&member[..]).read_to_end(&mut found)
        }
        Codec::Zstd { .. } => zstd::stream::read::Decoder::new(&member[..])
            .and_then(|mut decoder| decoder.read_to_end(&mut found)),
    };
    assert!(read.is_ok() && found == input, "{codec}");
}

/// A line of the index: what is taken for a layer without reading the line is what the line says.
fn layer_index_line(bytes: &[u8]) {
    crate::index::fuzz_line(bytes);
    if let Ok(digest) = Digest::parse(&String::from_utf8_lossy(bytes)) {
        assert_eq!(digest.hex().len(), 64);
    }
}

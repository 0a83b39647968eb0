//! Compression of one member, and the identity of the result.
//!
//! A compressed layer is a row of members of [`MEMBER_BYTES`] of input, each compressed apart from the others: gzip members (RFC 1952,
//! section 2.2: "A gzip file consists of a series of members"; eStargz layers are made this way too) or zstd frames (RFC 8878, section 3:
//! "one or more frames"). Every client reads both. It lets any number of threads work at once and makes the result the same whatever
//! their number. Which library does what, and how that was measured: docs/benchmarks/codecs.md.

use crate::limits::MEMBER_BYTES;
use crate::manifest::Packing;
use bytes::Bytes;
use libdeflater::{CompressionLvl, Compressor};
use std::str::FromStr;

/// What ISA-L may add to input that cannot be compressed: five bytes for each stored block of 64 KiB, header and trailer.
const ISAL_SLACK: usize = 4096;

/// How layers are compressed. As text: `gzip`, `gzip:6`, `zstd`, `zstd:3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// gzip, which every client reads. Level 1 is by ISA-L, 2 (fast) to 12 (small) by libdeflate; others are taken as the nearest.
    Gzip {
        /// 1 to 12.
        level: u8,
    },
    /// zstd, smaller and faster; the manifest then is an OCI one, which Docker reads from 20.10.10 on.
    Zstd {
        /// zstd's level, 1 (fast) to 19 (small); others are taken as the nearest.
        level: u8,
    },
}

/// The text names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression; it is gzip, gzip:1 to gzip:12, zstd, or zstd:1 to zstd:19")]
pub struct CodecError(String);

impl Default for Codec {
    fn default() -> Codec {
        Codec::Gzip { level: 1 }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Codec, CodecError> {
        let fail = || CodecError(text.chars().take(40).collect());
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, level.parse::<u8>().map_err(|_| fail())?),
            None => (text, 1),
        };
        match (name, level) {
            ("gzip", 1..=12) => Ok(Codec::Gzip { level }),
            ("zstd", 1..=19) => Ok(Codec::Zstd { level }),
            _ => Err(fail()),
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Codec::Gzip { .. } => write!(f, "gzip:{}", self.level()),
            Codec::Zstd { .. } => write!(f, "zstd:{}", self.level()),
        }
    }
}

impl Codec {
    /// Names everything that decides the compressed bytes: two layers of one diffID and one id are one blob.
    ///
    /// ISA-L picks its code by the processor, and may cut differently on another kind; then a layer becomes another blob of the same
    /// content, which costs one upload.
    pub fn id(&self) -> String {
        let library = match self {
            Codec::Gzip { level: 0..=1 } => "gzip-isal2.31.0",
            Codec::Gzip { .. } => "gzip-libdeflate1.26",
            Codec::Zstd { .. } => "zstd1.5.7",
        };
        format!("{library}-{}-{MEMBER_BYTES}", self.level())
    }

    /// How the blobs it makes are compressed.
    pub(crate) fn packing(&self) -> Packing {
        match self {
            Codec::Gzip { .. } => Packing::Gzip,
            Codec::Zstd { .. } => Packing::Zstd,
        }
    }

    /// About what one compressor takes for its tables and its output, in bytes.
    pub(crate) fn tables_bytes(&self) -> usize {
        match (self, self.level()) {
            (Codec::Gzip { .. }, 1..=9) | (Codec::Zstd { .. }, 1..=3) => 3 << 19,
            (Codec::Zstd { .. }, 4..=6) => 4 << 20,
            (Codec::Zstd { .. }, 7..=9) => 6 << 20,
            (Codec::Gzip { .. } | Codec::Zstd { .. }, _) => 12 << 20,
        }
    }

    fn level(&self) -> u8 {
        match self {
            Codec::Gzip { level } => (*level).clamp(1, 12),
            Codec::Zstd { level } => (*level).clamp(1, 19),
        }
    }

    /// A compressor of this kind, to be used again and again by one thread. `None` when there is no memory for it.
    pub(crate) fn compressor(&self) -> Option<MemberCompressor> {
        let library = match (self, i32::from(self.level())) {
            (Codec::Gzip { .. }, 1) => Library::Isal,
            (Codec::Gzip { .. }, level) => {
                Library::Deflate(Compressor::new(CompressionLvl::new(level).ok()?))
            }
            (Codec::Zstd { .. }, level) => {
                let mut compressor = zstd::bulk::Compressor::new(level).ok()?;
                compressor.include_checksum(true).ok()?;
                Library::Zstd(compressor)
            }
        };
        let output = Vec::new();
        Some(MemberCompressor { library, output })
    }
}

enum Library {
    /// Makes its tables anew for each member.
    Isal,
    Deflate(Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

/// Makes members. Each thread keeps one: [`Codec::tables_bytes`].
pub(crate) struct MemberCompressor {
    library: Library,
    output: Vec<u8>,
}

impl MemberCompressor {
    /// One complete member of `input`. `None` when the library fails, which by its contract happens only without memory.
    pub(crate) fn member(&mut self, input: &[u8]) -> Option<Bytes> {
        let bound = match &mut self.library {
            Library::Isal => input.len() + input.len() / 8 + ISAL_SLACK,
            Library::Deflate(compressor) => compressor.gzip_compress_bound(input.len()),
            Library::Zstd(_) => zstd::zstd_safe::compress_bound(input.len()),
        };
        if self.output.len() < bound {
            self.output.resize(bound, 0);
        }
        let output = self.output.as_mut_slice();
        let length = match &mut self.library {
            Library::Isal => isal::compress_into(
                input,
                output,
                isal::CompressionLevel::One,
                isal::Codec::Gzip,
            )
            .ok(),
            Library::Deflate(compressor) => compressor.gzip_compress(input, output).ok(),
            Library::Zstd(compressor) => compressor.compress_to_buffer(input, output).ok(),
        };
        Some(Bytes::copy_from_slice(self.output.get(..length?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::MultiGzDecoder;
    use std::io::Read as _;

    const CODECS: [&str; 8] = [
        "gzip", "gzip:2", "gzip:6", "gzip:12", "zstd", "zstd:3", "zstd:9", "zstd:19",
    ];

    fn unpack(codec: Codec, packed: &[u8]) -> Vec<u8> {
        let mut unpacked = Vec::new();
        match codec {
            Codec::Gzip { .. } => MultiGzDecoder::new(packed)
                .read_to_end(&mut unpacked)
                .expect("gunzip"),
            Codec::Zstd { .. } => zstd::Decoder::new(packed)
                .expect("zstd")
                .read_to_end(&mut unpacked)
                .expect("unzstd"),
        };
        unpacked
    }

    fn round_trip(codec: Codec, input: &[u8]) -> usize {
        let mut compressor = codec.compressor().expect("compressor");
        let packed: Vec<u8> = input
            .chunks(MEMBER_BYTES)
            .flat_map(|chunk| compressor.member(chunk).expect("member"))
            .collect();
        assert!(unpack(codec, &packed) == input, "{codec}");
        packed.len()
    }

    #[test]
    fn members_concatenate_to_the_input() {
        let input: Vec<u8> = (0..400_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        for text in CODECS {
            let codec = text.parse().expect("codec");
            assert!(round_trip(codec, &input) < input.len() / 2, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_compressed_grows_by_little() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(2 * MEMBER_BYTES + 77)
        .collect();
        for text in CODECS {
            let packed = round_trip(text.parse().expect("codec"), &noise);
            assert!(packed < noise.len() + noise.len() / 100, "{text}: {packed}");
        }
    }

    #[test]
    fn members_of_any_length_are_whole() {
        for text in CODECS {
            let codec: Codec = text.parse().expect("codec");
            let mut compressor = codec.compressor().expect("compressor");
            for length in [0, 1, 2, 100, 65_535, 65_536, MEMBER_BYTES] {
                let input = vec![b'x'; length];
                let packed = compressor.member(&input).expect("member");
                assert!(
                    !packed.is_empty() && unpack(codec, &packed) == input,
                    "{text} {length}"
                );
            }
        }
    }

    #[test]
    fn text_and_back() {
        for text in CODECS {
            let codec: Codec = text.parse().expect("codec");
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        for text in [
            "", "gzip:0", "gzip:13", "gzip:", "zstd:20", "zstd:x", "lz4", "gzip:1:1",
        ] {
            assert!(text.parse::<Codec>().is_err(), "{text}");
        }
    }
}

//! Compression of one member, and the identity of the result.
//!
//! A compressed layer is gzip made of independent members of [`MEMBER_BYTES`] each (RFC 1952, section 2.2: "A gzip file
//! consists of a series of members"; eStargz layers are made this way too, and every client reads them). libdeflate writes whole members
//! only, which is what lets several threads work at once, and it makes the result the same whatever their number. One member of many
//! deflate blocks would need the last-block bit of each part cleared, and libdeflate does not say where that bit is.
//!
//! Level 1 is the default: a Debian root file system of 413 MB in one layer becomes 155.4 MB, with `gzip -6` 143.6 MB (8% less); level 6
//! gives 142.7 MB for about twice the time. Read back by docker 26.1, skopeo 1.9 and flate2 in the tests.

use crate::limits::MEMBER_BYTES;
use libdeflater::{CompressionLvl, Compressor};

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// gzip by libdeflate. Level 1 (fast) to 12 (small); others are taken as the nearest.
    Gzip {
        /// libdeflate's level.
        level: u8,
    },
}

impl Default for Codec {
    fn default() -> Codec {
        Codec::Gzip { level: 1 }
    }
}

impl Codec {
    /// Names everything that decides the compressed bytes: two layers of one diffID and one id are one blob.
    pub fn id(&self) -> String {
        match self {
            Codec::Gzip { .. } => {
                format!("gzip-libdeflate1.26-{}-{}", self.level(), MEMBER_BYTES)
            }
        }
    }

    /// Media type of a layer in a Docker schema 2 manifest (image-spec v2.2, "Media Types").
    pub fn media_type(&self) -> &'static str {
        match self {
            Codec::Gzip { .. } => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }

    fn level(&self) -> u8 {
        match self {
            Codec::Gzip { level } => (*level).clamp(1, 12),
        }
    }

    /// A compressor of this kind, to be used again and again by one thread.
    pub(crate) fn compressor(&self) -> MemberCompressor {
        let level = CompressionLvl::new(i32::from(self.level())).unwrap_or_default();
        MemberCompressor {
            inner: Compressor::new(level),
        }
    }
}

/// Makes members. Holds about 1 MiB of tables, so each thread keeps one.
pub(crate) struct MemberCompressor {
    inner: Compressor,
}

impl MemberCompressor {
    /// One complete gzip member of `input`.
    pub(crate) fn member(&mut self, input: &[u8]) -> Vec<u8> {
        let mut output = vec![0; self.inner.gzip_compress_bound(input.len())];
        // The bound is sufficient by libdeflate's contract, so this cannot fail; an empty result would be caught as a digest mismatch.
        let length = self.inner.gzip_compress(input, &mut output).unwrap_or(0);
        output.truncate(length);
        output.shrink_to_fit();
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::MultiGzDecoder;
    use std::io::Read as _;

    #[test]
    fn members_concatenate_to_the_input() {
        let input: Vec<u8> = (0..3_000_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        for level in [0, 1, 6, 12, 200] {
            let mut compressor = Codec::Gzip { level }.compressor();
            let packed: Vec<u8> = input
                .chunks(MEMBER_BYTES)
                .flat_map(|chunk| compressor.member(chunk))
                .collect();
            let mut unpacked = Vec::new();
            MultiGzDecoder::new(&packed[..])
                .read_to_end(&mut unpacked)
                .expect("gunzip");
            assert!(unpacked == input, "level {level}");
        }
    }

    #[test]
    fn an_empty_member_is_valid() {
        let packed = Codec::default().compressor().member(&[]);
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(&packed[..])
            .read_to_end(&mut unpacked)
            .expect("gunzip");
        assert!(unpacked.is_empty() && !packed.is_empty());
    }
}

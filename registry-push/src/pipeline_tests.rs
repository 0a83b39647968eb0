//! The pipeline on layers made in memory.

use super::*;
use flate2::read::MultiGzDecoder;
use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug)]
struct Made {
    bytes: Arc<Vec<u8>>,
    diff_id: Digest,
    read: Arc<AtomicU64>,
}

impl Made {
    fn new(bytes: Vec<u8>) -> Made {
        Made {
            diff_id: Digest::of(&bytes),
            bytes: Arc::new(bytes),
            read: Arc::default(),
        }
    }
}

struct MadeReader(Arc<Vec<u8>>, usize, Arc<AtomicU64>);

impl LayerReader for MadeReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        // Short and uneven reads, as from many small files.
        let count = (self.0.len() - self.1).min(buffer.len()).min(70_001);
        buffer[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
        self.1 += count;
        self.2.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
}

impl LayerSource for Made {
    fn diff_id(&self) -> &Digest {
        &self.diff_id
    }
    fn size_hint(&self) -> Option<u64> {
        None
    }
    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        Ok(Box::new(MadeReader(
            self.bytes.clone(),
            0,
            self.read.clone(),
        )))
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28).to_le_bytes()[0]
        })
        .collect()
}

async fn run(layer: Made, threads: usize) -> Result<(Vec<u8>, Summary), SourceError> {
    let mut pieces = Compressors::start(Codec::default(), threads).layer(Arc::new(layer));
    let mut packed = Vec::new();
    loop {
        match pieces.recv().await.expect("a piece or an end")? {
            Piece::Data { bytes, .. } => packed.extend_from_slice(&bytes),
            Piece::End(summary) => return Ok((packed, summary)),
        }
    }
}

#[tokio::test]
async fn the_same_bytes_whatever_the_number_of_threads() {
    for length in [
        0,
        1,
        MEMBER_BYTES - 1,
        MEMBER_BYTES,
        MEMBER_BYTES + 1,
        5 * MEMBER_BYTES + 77,
    ] {
        let input = noise(length);
        let (one, summary) = run(Made::new(input.clone()), 1).await.expect("runs");
        let (many, same) = run(Made::new(input.clone()), 7).await.expect("runs");
        assert!(one == many && summary == same, "length {length}");
        assert_eq!(summary.digest, Digest::of(&one));
        assert_eq!(
            (summary.size, summary.raw_size),
            (one.len() as u64, length as u64)
        );
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(&one[..])
            .read_to_end(&mut unpacked)
            .expect("gunzip");
        assert!(unpacked == input, "length {length}");
    }
}

#[tokio::test]
async fn a_layer_that_is_not_the_one_named_has_no_end() {
    let mut layer = Made::new(noise(2 * MEMBER_BYTES));
    layer.diff_id = Digest::of(b"another");
    let found = run(layer, 2).await;
    assert!(
        matches!(found, Err(SourceError::DiffId { .. })),
        "{found:?}"
    );
}

#[tokio::test]
async fn nobody_taking_pieces_stops_the_reader() {
    let layer = Made::new(noise(64 * MEMBER_BYTES));
    let read = layer.read.clone();
    let mut pieces = Compressors::start(Codec::default(), 2).layer(Arc::new(layer));
    // Wait until reading has come to rest, then see that it is far from the end.
    let mut last = u64::MAX;
    let rest = tokio::time::timeout(Duration::from_secs(180), async {
        loop {
            let now = read.load(Ordering::SeqCst);
            if now > 0 && now == last {
                return now;
            }
            last = now;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let rest = rest.await.expect("reading comes to rest");
    // One for each permit, and the piece in the channel, which has given its own back.
    let bound = (2 + MEMBERS_AHEAD + 1) * MEMBER_BYTES;
    assert!(rest <= bound as u64, "{rest} bytes read ahead");
    assert!(pieces.recv().await.is_some());
}

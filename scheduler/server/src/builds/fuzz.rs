//! The builds' part of [`crate::fuzz`].

use super::transcript::Transcript;
use slipway_core::build::BuildEvent;
use slipway_core::limits::BUILD_EVENTS_BYTES_MAX;

/// What dockerd's classic builder tells. However it is cut the same is read in it, numbered without gaps, with the end last.
pub(crate) fn classic(bytes: &[u8]) {
    let read = |piece: usize| {
        let mut transcript = Transcript::started(false);
        for piece in bytes.chunks(piece) {
            transcript.read(piece, 1);
        }
        let outcome = transcript.end(true, 2);
        let events = transcript.events();
        for (n, event) in (1..).zip(&events) {
            assert_eq!(event.seq, n);
        }
        let last = events.last().map(|event| &event.event);
        assert_eq!(last, Some(&BuildEvent::Ended(outcome)));
        events
    };
    let whole = read(bytes.len().max(1));
    let size: usize = whole
        .iter()
        .filter_map(|event| serde_json::to_vec(event).ok())
        .map(|json| json.len())
        .sum();
    assert!(size <= BUILD_EVENTS_BYTES_MAX + (64 << 10));
    assert_eq!(whole, read(3));
}

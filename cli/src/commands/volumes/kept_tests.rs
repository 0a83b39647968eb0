//! An export that is cut anywhere goes on, and ends as if it had not been cut; an import sends the rest of one.

use super::super::sent::{Counter, Sent, feed};
use super::*;
use slipway_terminal::exit::FailureKind;
use slipway_volume_stream::Records;
use slipway_volume_stream::limits::RECORD_BYTES;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

const SIZE: u64 = 6 << 20;

/// What a server sends of a volume that holds this word here and there.
fn exported(word: &str, start: u64) -> Vec<u8> {
    let mut contents = vec![0; usize::try_from(SIZE).unwrap()];
    for at in [0, (1 << 20) + 5, (4 << 20) + 7, contents.len() - 20] {
        contents[at..at + word.len()].copy_from_slice(word.as_bytes());
    }
    let header = Header {
        difference: false,
        foreign: false,
        sealed: false,
        size: SIZE,
        start,
    };
    let mut stream = Vec::new();
    let mut records = Records::begin(header, &mut stream).unwrap();
    for (offset, record) in (0..SIZE)
        .step_by(RECORD_BYTES)
        .zip(contents.chunks(RECORD_BYTES))
    {
        if offset >= start && record.iter().any(|byte| *byte != 0) {
            records.write(record, offset).unwrap();
        }
    }
    records.end().unwrap();
    stream
}

/// Takes what one connection brought.
fn take(kept: &mut Kept, stream: &[u8]) -> Outcome<()> {
    let mut frames = Frames::default();
    let mut continued = kept.bytes > 0;
    for piece in stream.chunks(64) {
        frames.push(piece);
        while let Some(frame) = next(&mut frames)? {
            kept.take(&frame, Some(&mut continued))?;
        }
    }
    Ok(())
}

#[test]
fn a_file_that_is_cut_anywhere_goes_on_and_is_as_if_it_were_not() {
    let dir = tempfile::tempdir().unwrap();
    let whole = exported("contents", 0);
    for cut in 0..=whole.len() {
        let path = dir.path().join(format!("{cut}"));
        std::fs::write(&path, &whole[..cut]).unwrap();
        let mut kept = Kept::open(&path).unwrap();
        assert_eq!(kept.whole, cut == whole.len());
        if !kept.whole {
            let at = kept.resume_at();
            take(&mut kept, &exported("contents", at)).unwrap();
        }
        assert!(kept.whole);
        drop(kept);
        assert!(std::fs::read(&path).unwrap() == whole, "cut at {cut}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_is_of_another_snapshot_or_damaged_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let whole = exported("contents", 0);
    std::fs::write(&path, &whole[..whole.len() - 60]).unwrap();
    let mut kept = Kept::open(&path).unwrap();
    let at = kept.resume_at();
    let refused = take(&mut kept, &exported("another", at)).unwrap_err();
    assert_eq!(refused.kind(), FailureKind::User);
    assert!(refused.message().contains("another snapshot"), "{refused}");

    let mut damaged = whole.clone();
    damaged[HEADER_BYTES + 20] ^= 1;
    for bad in [&damaged[..], b"some text that is no export at all"] {
        std::fs::write(&path, bad).unwrap();
        let refused = Kept::open(&path).unwrap_err();
        assert_eq!(refused.kind(), FailureKind::User, "{refused}");
        assert!(std::fs::read(&path).unwrap() == bad, "it is left alone");
    }
    let there = Kept::create(&path).unwrap_err();
    assert!(there.message().contains("there already"), "{there}");
    // A damaged record of the server's is not written down.
    let fresh = dir.path().join("fresh");
    let mut kept = Kept::create(&fresh).unwrap();
    let refused = take(&mut kept, &damaged).unwrap_err();
    assert_eq!(refused.kind(), FailureKind::System, "{refused}");
    assert_eq!(
        std::fs::metadata(&fresh).unwrap().len(),
        HEADER_BYTES as u64
    );
}

#[test]
fn what_lies_beside_a_file_says_what_it_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.slipvol");
    assert_eq!(Resume::read(&file).unwrap(), None);
    let resume = Resume {
        of: "vol_a".into(),
        snapshot: "snp_b".into(),
        temporary: true,
    };
    resume.write(&file).unwrap();
    assert!(dir.path().join("data.slipvol.resume").exists());
    assert_eq!(Resume::read(&file).unwrap(), Some(resume));
    std::fs::write(Resume::path(&file), "{}").unwrap();
    assert!(Resume::read(&file).is_err());
    Resume::remove(&file).unwrap();
    Resume::remove(&file).unwrap();
}

/// All that an import from `offset` on would send.
fn sent(file: &Path, offset: u64) -> (Outcome<()>, Vec<u8>) {
    let (to, mut pieces) = mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let all = Arc::new(Mutex::new(Vec::new()));
    let taking = std::thread::spawn({
        let all = Arc::clone(&all);
        move || {
            while let Some(Ok(piece)) = pieces.blocking_recv() {
                all.lock().unwrap().extend_from_slice(&piece[..]);
            }
        }
    });
    let from = Box::new(File::open(file).unwrap());
    let done = feed(from, offset, &to, &Counter::default());
    drop(to);
    taking.join().unwrap();
    let all = all.lock().unwrap().clone();
    (done, all)
}

#[test]
fn the_rest_of_a_file_is_what_its_server_would_have_exported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let whole = exported("contents", 0);
    std::fs::write(&path, &whole).unwrap();
    let (opened, said) = Sent::open(path.to_str().unwrap()).unwrap();
    assert!(opened.is_file());
    assert_eq!((said.size, said.digest.unwrap().len()), (SIZE, 64));
    for offset in [0, 1 << 20, 2 << 20, 5 << 20, SIZE] {
        let (done, rest) = sent(&path, offset);
        done.unwrap();
        assert!(rest == exported("contents", offset), "from {offset}");
    }
    // In the middle of a record, all of it is sent.
    let (done, rest) = sent(&path, 5);
    done.unwrap();
    assert!(rest == whole);
}

#[test]
fn what_has_something_after_its_end_is_not_sent_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let whole = exported("contents", 0);
    // Behind what is read at once, too.
    for rubbish in [1, 3 * crate::limits::TRANSFER_PIECE_BYTES] {
        std::fs::write(&path, [whole.clone(), vec![b'x'; rubbish]].concat()).unwrap();
        let (done, taken) = sent(&path, 0);
        let refused = done.unwrap_err();
        assert_eq!(refused.kind(), FailureKind::User, "{refused}");
        let why = refused.message();
        assert!(why.contains("something comes after its end"), "{why}");
        assert!(taken.len() < whole.len(), "without the end");
    }
}

#[test]
fn a_file_that_is_cut_or_lacks_something_is_not_taken_for_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let whole = exported("contents", 0);
    let part = exported("contents", 1 << 20);
    for bad in [&whole[..whole.len() - 1], &whole[..30], &part, b"", b"text"] {
        std::fs::write(&path, bad).unwrap();
        let refused = Sent::open(path.to_str().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), FailureKind::User, "{refused}");
    }
    // Records are missing before its end.
    let lacking = [
        &whole[..HEADER_BYTES],
        &part[HEADER_BYTES..part.len() - 48],
        &whole[whole.len() - 48..],
    ]
    .concat();
    std::fs::write(&path, &lacking).unwrap();
    Sent::open(path.to_str().unwrap()).unwrap();
    let (done, sent) = sent(&path, 0);
    assert_eq!(done.unwrap_err().kind(), FailureKind::User);
    assert!(sent.len() < lacking.len(), "its end is not sent");
}

#[test]
fn a_full_disk_and_a_closed_pipe_are_told_with_their_place() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut kept = Kept::empty(Box::new(full), "/some/file");
    let failure = take(&mut kept, &exported("contents", 0)).unwrap_err();
    assert_eq!(failure.kind(), FailureKind::User);
    assert_eq!(
        failure.message(),
        "cannot write the export to /some/file: the disk of this computer is full"
    );
    let hint = failure.hint_text().unwrap();
    assert!(hint.contains("make room"), "{hint}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut kept = Kept::empty(Box::new(writer), "standard output");
    let failure = take(&mut kept, &exported("contents", 0)).unwrap_err();
    assert_eq!(failure.kind(), FailureKind::User);
    let hint = failure.hint_text().unwrap();
    assert!(hint.contains("has ended"), "{hint}");
}

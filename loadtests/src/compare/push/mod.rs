//! `compare push`: from an image in dockerd's store to a registry on loopback, ours and the peers' ways.
//!
//! Every peer pushes the very image that we push: docker and skopeo from the same dockerd, buildah from a store of its own into
//! which the image was copied before. buildx builds and pushes at once, so it is compared in the scenario `deploy`.

pub(super) mod bench;
mod cases;
mod contenders;
pub(super) mod images;
mod proxy;

use super::Run;
use anyhow::Result;
use bench::Bench;

/// Makes the input of a case, and runs it.
type MakeAndRun = fn(&mut Bench, &mut Run) -> Result<()>;

/// Runs the cases that were asked for.
pub(super) fn run(run: &mut Run) -> Result<()> {
    const CASES: [(&str, MakeAndRun); 5] = [
        ("first", cases::first),
        ("unchanged", cases::unchanged),
        ("changed-top", cases::changed_top),
        ("small-layers", cases::small_layers),
        ("incompressible", cases::incompressible),
    ];
    if !CASES.iter().any(|(name, _)| run.choice.wants(name)) {
        return Ok(());
    }
    let mut bench = Bench::start()?;
    bench.note_versions(run);
    for (name, case) in CASES {
        if run.choice.wants(name) {
            case(&mut bench, run)?;
        }
    }
    Ok(())
}

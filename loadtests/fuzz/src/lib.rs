//! The parsers of foreign bytes, one function each that takes any bytes and panics when the parser breaks its word.
//!
//! Owns the table of them, the corpus (`corpus/TARGET/*`: examples, and each input that once broke something) and a small mutator
//! with a seed. `tests/corpus.rs` runs all with them in `make test`; `make fuzz` runs each under libFuzzer, which sees what code an
//! input reaches. Must not know what the parsers are for: what holds stands beside each, in the `fuzz` module of its crate.

pub mod mutate;
mod wire;

use std::io;
use std::path::{Path, PathBuf};

/// Name and function of a target.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub fn targets() -> Vec<Target> {
    [
        wire::TARGETS,
        slipway_buildkit::fuzz::TARGETS,
        slipway_host::fuzz::TARGETS,
        slipway_registry_push::fuzz::TARGETS,
        slipway_scheduler::fuzz::TARGETS,
        slipway_volumes::fuzz::TARGETS,
    ]
    .concat()
}

/// Where the corpus is.
pub fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The inputs of a target in the corpus, by name.
///
/// # Errors
/// There is no such directory, or it cannot be read.
pub fn corpus(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(corpus_dir().join(target))? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        inputs.push((path, bytes));
    }
    inputs.sort();
    Ok(inputs)
}

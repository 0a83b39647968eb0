//! Every target with every input of the corpus and with inputs made of it by a seed, for some seconds in all. `make fuzz` looks
//! longer and closer.

use slipway_fuzz::mutate::{Random, mutated};
use slipway_fuzz::{Target, corpus, corpus_dir, targets};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Inputs that are made for each target, as far as they fit into the time.
const MADE: usize = 3_000;
/// For all targets together, on top of the corpus.
const TIME: Duration = Duration::from_secs(8);

/// Runs one input; gives what it broke, with what it is and where it came from.
fn run(target: Target, from: &str, bytes: &[u8]) -> Result<(), String> {
    let (name, function) = target;
    catch_unwind(AssertUnwindSafe(|| function(bytes))).map_err(|_| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.broke"));
        let written = std::fs::write(&kept, bytes);
        let shown = String::from_utf8_lossy(bytes);
        format!("{name} broke on {from}: {shown:?} (kept: {kept:?}, {written:?})")
    })
}

fn run_all(target: Target, seed: u64, share: Duration) -> Result<(), String> {
    let (name, _) = target;
    let inputs = corpus(name).map_err(|error| format!("corpus of {name}: {error}"))?;
    if inputs.is_empty() {
        return Err(format!("{name} has no example"));
    }
    run(target, "nothing", b"")?;
    for (path, bytes) in &inputs {
        run(target, &path.display().to_string(), bytes)?;
    }
    let bytes: Vec<&[u8]> = inputs.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    let mut random = Random::new(seed);
    let until = Instant::now() + share;
    for n in 0..MADE {
        if Instant::now() > until {
            break;
        }
        let made = mutated(&bytes, &mut random);
        run(target, &format!("made input {n}"), &made)?;
    }
    Ok(())
}

#[test]
fn no_input_breaks_a_parser() {
    let targets = targets();
    let share = TIME / u32::try_from(targets.len()).unwrap();
    let broken: Vec<String> = (0..)
        .zip(targets)
        .filter_map(|(seed, target)| run_all(target, seed, share).err())
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn each_part_of_the_corpus_has_a_target_of_its_own() {
    let names: Vec<&str> = targets().into_iter().map(|(name, _)| name).collect();
    let known: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(known.len(), names.len(), "two targets of one name");
    let found: BTreeSet<String> = std::fs::read_dir(corpus_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, known);
}

//! One target under libFuzzer: which one, `SLIPWAY_FUZZ_TARGET` says; the arguments are libFuzzer's own. `make fuzz` calls it.
#![no_main]
#![allow(unsafe_code, reason = "the macro makes libFuzzer's entry points")]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let name = std::env::var("SLIPWAY_FUZZ_TARGET").unwrap_or_default();
    let targets = slipway_fuzz::targets();
    let found = targets.iter().find(|(known, _)| *known == name);
    match found {
        Some((_, target)) => *target,
        None => {
            let names: Vec<_> = targets.iter().map(|(name, _)| *name).collect();
            panic!("SLIPWAY_FUZZ_TARGET is one of {}", names.join(", "))
        }
    }
}

fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(chosen)(bytes));

#!/usr/bin/env bash
# Runs the parsers of foreign bytes under libFuzzer, one after the other: fuzz.sh SECONDS [TARGET...]
# What it finds is kept below target/fuzz; docs/ARCHITECTURE.md says what is done with it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
host=$(rustc -vV | sed -n 's/^host: //p')
work=$PWD/target/fuzz
mkdir -p "$work"

# The coverage that libFuzzer goes by is a pass of LLVM's, which the pinned stable compiler has as well; the sanitizers, which it has not, find
# little in code without `unsafe`. `--target` keeps the flags from build scripts, overflow checks make wrong arithmetic a finding.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16 -Cdebug-assertions -Coverflow-checks"
CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
  cargo build --release --locked --target "$host" --target-dir "$work/build" -p slipway-fuzz --features libfuzzer --bin slipway-fuzz
program=$work/build/$host/release/slipway-fuzz

if [ $# = 0 ]; then
  set -- $(ls loadtests/fuzz/corpus)
fi
broken=
for target in "$@"; do
  found=$work/found/$target
  mkdir -p "$found" "$work/broken"
  log=$work/$target.log
  if SLIPWAY_FUZZ_TARGET=$target "$program" "$found" "loadtests/fuzz/corpus/$target" -max_total_time="$seconds" \
    -timeout=10 -rss_limit_mb=2048 -max_len=8192 -artifact_prefix="$work/broken/$target-" -print_final_stats=1 >"$log" 2>&1; then
    printf '%-24s %s inputs tried, %s kept\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$(ls "$found" | wc -l)"
  else
    printf '%-24s BROKE: %s\n' "$target" "$log"
    broken="$broken $target"
  fi
done
[ -z "$broken" ] || { echo "broke:$broken; the inputs are in $work/broken" >&2; exit 1; }

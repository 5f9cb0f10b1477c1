#!/usr/bin/env bash
# Every fuzz target for some seconds; with names, only those. docs/fuzzing.md says what they are.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

seconds=${SIRA_FUZZ_SECONDS:-20}
cargo fuzz --version > /dev/null 2>&1 || cargo install --locked cargo-fuzz@0.13.2
# cargo-fuzz wants a nightly compiler; of the stable one, this opens what it needs. The sanitizer is left out: parsers have no unsafe.
export RUSTC_BOOTSTRAP=1
build=(--fuzz-dir fuzz --sanitizer none --target-dir "$CARGO_TARGET_DIR/fuzz")
cargo fuzz build "${build[@]}"
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list --fuzz-dir fuzz)
[ $# -eq 0 ] || targets=("$@")
for target in "${targets[@]}"; do
    printf '\n== %s\n' "$target"
    found=$CARGO_TARGET_DIR/fuzz-corpus/$target
    mkdir -p "$found"
    # What is found goes beside the target folder; the seeds in fuzz/corpus stay as they are.
    cargo fuzz run "${build[@]}" "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1
done

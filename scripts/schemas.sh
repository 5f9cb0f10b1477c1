#!/usr/bin/env bash
# Writes the Rust code of schemas/*.fbs; with --check, only compares. Needs cmake and a C++ compiler the first time.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${SIRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sira}
flatc=$(CARGO_TARGET_DIR="$cache/flatc" cargo run --quiet --locked --manifest-path "$root/scripts/flatc/Cargo.toml")
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for pair in spec:tensor record:store; do
  schema=${pair%:*} crate=${pair#*:}
  "$flatc" --rust --gen-all -o "$out" "$root/schemas/$schema.fbs"
  target=$root/crates/$crate/src/generated/$schema.rs
  if [ "${1:-}" = --check ]; then
    cmp "$out/${schema}_generated.rs" "$target" || { echo "sira: schemas/$schema.fbs changed; run make schemas" >&2; exit 1; }
  else
    cp "$out/${schema}_generated.rs" "$target"
  fi
done

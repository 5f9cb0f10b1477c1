#!/usr/bin/env bash
# Prints the folder that holds librocksdb.a, compiling it first where it is missing (about 15 minutes on 2 cores).
# The archive lies outside the checkout and serves every clone, branch and profile of this machine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${SIRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sira}
# Hardware CRC32C: every x86-64 server since 2011 has SSE4.2 and PCLMUL.
[ "$(uname -m)" != x86_64 ] || export CXXFLAGS="${CXXFLAGS:-} -msse4.2 -mpclmul"
# Whatever changes the archive is part of its name: version, features and flags.
id=$( (cat "$here/rocksdb/Cargo.toml" "$here/rocksdb/Cargo.lock"; echo "${CXXFLAGS:-}") | sha256sum | cut -c1-16)
dir=$cache/rocksdb-$(uname -m)-$id

if [ ! -f "$dir/librocksdb.a" ]; then
  mkdir -p "$dir"
  exec 9>"$dir/lock"
  flock 9 # two clones at once compile it once
  if [ ! -f "$dir/librocksdb.a" ]; then
    echo "sira: compiling RocksDB once for this machine (about 15 minutes on 2 cores)" >&2
    env -u ROCKSDB_LIB_DIR CARGO_TARGET_DIR="$dir/build" \
      cargo build --release --locked --manifest-path "$here/rocksdb/Cargo.toml" >&2
    archive=$(find "$dir/build/release/build" -path '*librocksdb-sys*' -name librocksdb.a -print -quit)
    cp "$archive" "$dir/librocksdb.a.tmp"
    mv "$dir/librocksdb.a.tmp" "$dir/librocksdb.a"
    rm -rf "$dir/build"
  fi
fi
echo "$dir"

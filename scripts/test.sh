#!/usr/bin/env bash
# Everything CI runs; with `check`, without the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --all --check
step scripts/schemas.sh --check
step cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
step .venv/bin/ruff check --config python-client/pyproject.toml python-client scripts examples benches/compare benches/codecs benches/encoded benches/restart fuzz
step .venv/bin/ruff format --check --config python-client/pyproject.toml python-client scripts examples benches/compare benches/codecs benches/encoded benches/restart fuzz
(cd python-client && step ../.venv/bin/mypy --config-file pyproject.toml)
MYPYPATH=benches:benches/codecs:python-client step .venv/bin/mypy --config-file python-client/pyproject.toml --package compare --package codecbench
step .venv/bin/hadolint docker/Dockerfile
[ "${1:-}" != check ] || exit 0

step cargo test --quiet --locked --workspace
RUSTDOCFLAGS='-D warnings' step cargo doc --quiet --locked --workspace --no-deps
step make --no-print-directory build
# As the tests of Rust were built, so that little is compiled for it.
step cargo build --quiet --locked --workspace --lib
native=$(mktemp -d)
trap 'rm -rf "$native"' EXIT
step scripts/native.sh "$CARGO_TARGET_DIR/debug/libsira_native.so" "$native"
step .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$native"/sira_native-*.whl
# Or its tests would be skipped.
step .venv/bin/python -c 'import sira_native'
SIRA_BIN=$PWD/bin/sira step .venv/bin/pytest --quiet python-client/tests
step cargo build --quiet --locked --package sira-benches --bin wirebench
SIRA_BIN=$PWD/bin/sira WIREBENCH=$CARGO_TARGET_DIR/debug/wirebench step .venv/bin/pytest --quiet --config-file python-client/pyproject.toml benches/compare/tests
step .venv/bin/pytest --quiet --config-file python-client/pyproject.toml benches/codecs/tests

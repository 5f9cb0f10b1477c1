#!/usr/bin/env bash
# Puts a built program and the Python client into one wheel: scripts/wheel.sh [PROGRAM [FOLDER]]
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:-bin/sira} out=${2:-python-client/dist}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy, so that what is true of this wheel only, above all the licences of the program, is never left in the client's folder.
mkdir "$work/client"
cp -rL python-client/{LICENSE,README.md,hatch_build.py,pyproject.toml,sira_store} "$work/client"
python3 scripts/licenses.py > "$work/client/THIRD-PARTY-LICENSES.txt"
strip -o "$work/sira" "$program"
SIRA_PROGRAM=$work/sira .venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$work" "$work/client"

# The tag says on which systems it runs. auditwheel finds the oldest from the symbols that the program needs, and refuses a program that
# needs libraries beyond those of every Linux with glibc.
mkdir -p "$out"
rm -f "$out"/sira_store-*.whl
.venv/bin/auditwheel repair --only-plat --patcher none --wheel-dir "$out" "$work"/sira_store-*.whl
ls "$out"/sira_store-*.whl

#!/usr/bin/env bash
# Puts the built extension of the Python client into a wheel: scripts/native.sh LIBRARY [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
library=$1 out=${2:-python-client/dist}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy, so that what is true of this wheel only is never left in the checkout.
cp -L python-client/LICENSE python-client/native/{hatch_build.py,pyproject.toml,sira_native.pyi} "$work"
python3 scripts/licenses.py sira-native > "$work/THIRD-PARTY-LICENSES.txt"
strip -o "$work/sira_native.abi3.so" "$library"
.venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$work" "$work"

# As for the wheel of the program: the tag says on which systems it runs.
mkdir -p "$out"
rm -f "$out"/sira_native-*.whl
.venv/bin/auditwheel repair --only-plat --patcher none --wheel-dir "$out" "$work"/sira_native-*.whl
ls "$out"/sira_native-*.whl

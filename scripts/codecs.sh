#!/usr/bin/env bash
# Codecs side by side: makes a Python environment for it where there is none, builds, measures. Arguments go to the measurement
# (`scripts/codecs.sh --help` lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sira: the pinned packages want Python 3.11 or newer" >&2; exit 1; }
wanted=$(sha256sum benches/codecs/requirements.txt scripts/codecs.sh | sha256sum)
if [ "$(cat .venv-codecs/.sira 2>/dev/null)" != "$wanted" ]; then
  echo "sira: making a Python environment in .venv-codecs" >&2
  rm -rf .venv-codecs
  python3 -m venv .venv-codecs
  .venv-codecs/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benches/codecs/requirements.txt
  echo "$wanted" > .venv-codecs/.sira
fi

make --no-print-directory build

PYTHONPATH=benches/codecs:benches exec .venv-codecs/bin/python -m codecbench "$@"

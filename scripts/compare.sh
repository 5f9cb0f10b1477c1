#!/usr/bin/env bash
# Sira beside its peers: installs what the peers need and what is missing of it, builds, measures. Arguments go to the
# measurement (`scripts/compare.sh --help` lists them). What cannot be installed is named there, and the rest is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

as=()
[ "$(id -u)" = 0 ] || as=(sudo -n)
# Redis's server, and the libraries that Mooncake links.
packages=(redis-server libcurl4 libibverbs1 rdma-core librdmacm1 libnuma1 liburing2)
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "sira: installing ${missing[*]}" >&2
  install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
  { "${as[@]}" apt-get update -qq && "${as[@]}" "${install[@]}" >/dev/null; } ||
    echo "sira: these packages are missing, and peers with them: ${missing[*]}" >&2
fi

wanted=$(sha256sum benches/compare/requirements.txt scripts/compare.sh | sha256sum)
if [ "$(cat .venv-compare/.sira 2>/dev/null)" != "$wanted" ]; then
  echo "sira: making a Python environment in .venv-compare" >&2
  rm -rf .venv-compare
  python3 -m venv .venv-compare
  # One by one: where a peer's client cannot be had, only that peer is missing.
  grep -v '^#' benches/compare/requirements.txt | while read -r requirement; do
    .venv-compare/bin/pip install --quiet --disable-pip-version-check "$requirement" ||
      echo "sira: $requirement cannot be installed" >&2
  done
  echo "$wanted" > .venv-compare/.sira
fi

make --no-print-directory build
cargo build --release --locked --quiet --package sira-benches --bin wirebench
install "$CARGO_TARGET_DIR/release/wirebench" bin/wirebench

# The extension of the Python client.
make --no-print-directory native
.venv-compare/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall python-client/dist/sira_native-*.whl

PYTHONPATH=benches:python-client exec .venv-compare/bin/python -m compare "$@"

#!/usr/bin/env bash
# Installs what is missing: Debian packages (as root, or with sudo that asks no password; else it says which), and a Python
# environment in .venv. With `packages`, only the former. Does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || { echo "sira: no cargo; install Rust with rustup (https://rustup.rs), then run this again" >&2; exit 1; }

missing=()
command -v g++ >/dev/null || missing+=(g++)
# bindgen reads RocksDB's C header with libclang. (libclang-cpp, which other packages bring, is another library.)
[ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang.so' >/dev/null || missing+=(libclang-dev)
# The FlatBuffers compiler, which checks the generated code, is built with it.
command -v cmake >/dev/null || missing+=(cmake)
[ "${1:-}" = packages ] || python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# The tests of TLS make their certificates with it.
[ "${1:-}" = packages ] || command -v openssl >/dev/null || missing+=(openssl)
if [ ${#missing[@]} -gt 0 ]; then
  as=()
  [ "$(id -u)" = 0 ] || as=(sudo -n)
  install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
  if { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; } && command -v apt-get >/dev/null; then
    echo "sira: installing ${missing[*]}" >&2
    "${as[@]}" apt-get update -qq
    "${as[@]}" "${install[@]}" >/dev/null
  else
    echo "sira: these packages are missing: ${missing[*]}. Install them, then run this again:" >&2
    echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi
[ "${1:-}" != packages ] || exit 0

# Made anew when what it should hold changes.
wanted=$(sha256sum python-client/pyproject.toml scripts/setup.sh | sha256sum)
if [ "$(cat .venv/.sira 2>/dev/null)" != "$wanted" ]; then
  echo "sira: making a Python environment in .venv" >&2
  rm -rf .venv
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check -e './python-client[test]'
  echo "$wanted" > .venv/.sira
fi

# Source this before cargo: it puts the target folder and the RocksDB archive outside the checkout, where every clone
# shares them. `make` does so by itself.
# shellcheck shell=bash
_sira_scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SIRA_CACHE=${SIRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sira}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$SIRA_CACHE/target}
ROCKSDB_LIB_DIR=$("$_sira_scripts/rocksdb.sh") || return 1
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
unset _sira_scripts

#!/usr/bin/env bash
# Long runs of what `make test` runs shortly: simulated histories, power cuts, random operations against backends. In slices, for
# SIRA_SOAK_SECONDS (600); the next call goes on where this one ended, until each is at its goal. docs/reliability.md has the figures.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

state=${SIRA_SOAK_STATE:-$SIRA_CACHE/soak-state}
end=$((SECONDS + ${SIRA_SOAK_SECONDS:-600}))
mkdir -p "$(dirname "$state")"
touch "$state"

# How far KIND has come, and that it has come to N.
done_of() { awk -v kind="$1" '$1 == kind { n = $2 } END { print n + 0 }' "$state"; }
reached() { printf '%s %s\n' "$1" "$2" >> "$state"; }

# KIND GOAL SLICE COMMAND...: the command gets the first number of the slice and how many as its last two arguments.
slice() {
  local kind=$1 goal=$2 many=$3 from
  shift 3
  from=$(done_of "$kind")
  [ "$from" -lt "$goal" ] && [ $SECONDS -lt $end ] || return 0
  [ $((from + many)) -le "$goal" ] || many=$((goal - from))
  printf '== %s: %s to %s of %s\n' "$kind" "$from" "$((from + many - 1))" "$goal"
  "$@" "$from" "$many"
  reached "$kind" $((from + many))
}

simulate() { SIRA_SIM_FROM=$1 SIRA_SIM_SEEDS=$2 cargo test --quiet --locked --workspace --test simulation; }
cut() { SIRA_POWER_FROM=$1 SIRA_POWER_CUTS=$2 cargo test --quiet --locked --workspace --test power; }
# A slice is one seed.
conform() { SIRA_CONFORMANCE_SEED=$1 SIRA_CONFORMANCE_OPERATIONS=100000 cargo test --quiet --locked --workspace --test conformance; }

while [ $SECONDS -lt $end ]; do
  before=$(cksum "$state")
  slice simulation 10000 250 simulate
  slice power 200 10 cut
  slice conformance 1 1 conform
  [ "$(cksum "$state")" != "$before" ] || break
done
for kind in simulation:10000 power:200 conformance:1; do
  printf 'soak: %s: %s of %s done\n' "${kind%:*}" "$(done_of "${kind%:*}")" "${kind#*:}"
done

#!/usr/bin/env bash
# A private throwaway server for tests and benches, on a free port of loopback, with a password of its own, its data in a
# temporary folder ($TMPDIR):
#   scripts/servers.sh KIND [SETTING...]  starts one and prints a line of JSON: kind, url, pid, folder
#   scripts/servers.sh --hold KIND [SETTING...]  the same, and removes it when its own standard input ends
#   scripts/servers.sh again FOLDER   starts one that was killed: same folder, same port, a new line of JSON
#   scripts/servers.sh stop FOLDER    kills it and removes its folder
#   scripts/servers.sh install [KIND...]  installs what is missing for these kinds (for postgres, mariadb, redis), and starts nothing
# A KIND is postgres, mariadb, redis, cluster (Redis, three primaries and three replicas), moto (S3 in memory, out of .venv) or ceph
# (S3: Ceph's gateway on a store of one disk). The S3 ones have a bucket `sira`; user and password of their URL are the keys.
# A SETTING is a flag of the server itself, such as `--max-allowed-packet=16M` for MariaDB. Works as root and as a normal user;
# what is missing is installed where that is possible.
set -euo pipefail

# Marks a folder as one that this script made, and says what runs in it: kind, port, password, then the settings.
MARK=sira-server
KINDS=(postgres mariadb redis)
# A port that is free may be taken a moment later.
TRIES=5

fail() { echo "servers.sh: $*" >&2; exit 1; }

# Nothing below may find a program of another kind in a folder that the user did not choose.
export PATH=$PATH:/usr/sbin:/usr/local/sbin

postgres_bin() {
  local found
  found=$(compgen -G '/usr/lib/postgresql/*/bin/postgres' | sort -V | tail -1) || true
  [ -n "$found" ] || found=$(command -v postgres) || return 1
  dirname "$found"
}

# The Python that has moto.
moto_python() {
  local python
  for python in "$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python" python3; do
    if "$python" -c 'import moto.server' 2> /dev/null; then echo "$python"; return; fi
  done
  return 1
}

have() {
  case $1 in
    postgres) postgres_bin >/dev/null ;;
    mariadb) command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null && command -v mariadb >/dev/null ;;
    redis | cluster) command -v redis-server >/dev/null && command -v redis-cli >/dev/null ;;
    moto) moto_python > /dev/null ;;
    ceph)
      local program
      for program in ceph ceph-mon ceph-osd radosgw radosgw-admin monmaptool; do command -v $program >/dev/null || return 1; done
      ;;
    *) fail "unknown kind $1; there are ${KINDS[*]} cluster moto ceph" ;;
  esac
}

packages() {
  case $1 in
    postgres) echo postgresql ;;
    mariadb) echo mariadb-server-core mariadb-client-core ;;
    redis | cluster) echo redis-server ;;
    moto) fail "no moto: scripts/setup.sh makes the Python environment that has it" ;;
    ceph) echo ceph-mon ceph-osd ceph-common radosgw ;;
  esac
}

install_missing() {
  local missing=() kind
  for kind in "$@"; do
    # shellcheck disable=SC2207
    have "$kind" || missing+=($(packages "$kind"))
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local as=()
  [ "$(id -u)" = 0 ] || as=(sudo -n)
  if ! { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; } || ! command -v apt-get >/dev/null; then
    echo "sira: these packages are missing: ${missing[*]}. Install them, then run this again:" >&2
    echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  echo "sira: installing ${missing[*]}" >&2
  # Only the programs are wanted: while they are installed, Debian is told to start no service (unless somebody told it already).
  # shellcheck disable=SC2016
  "${as[@]}" env DEBIAN_FRONTEND=noninteractive sh -ec '
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
      trap "rm -f $policy" EXIT
      printf "#!/bin/sh\nexit 101\n" > "$policy"
      chmod 755 "$policy"
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null' sh "${missing[@]}"
  for kind in "$@"; do
    have "$kind" || fail "$kind is still missing after its packages were installed: $(packages "$kind")"
  done
}

# So many that are free (one), a line each.
free_port() {
  python3 -c '
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[s.getsockname()[1] for s in held], sep="\n")' "${1:-1}"
}

# Whether a process lives; one that ended and that nobody asked about does not.
runs() { kill -0 "$1" 2> /dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2> /dev/null; }

# PostgreSQL refuses to run as root.
as_owner() {
  # Where the caller stands, another user may not.
  if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

# Each kind: `make_KIND FOLDER PASSWORD` once, `start_KIND FOLDER PORT PASSWORD SETTING...` (fails where the port is taken),
# `url_KIND PORT PASSWORD`. A server is known by its socket in the folder, so that nobody takes another one for it.

make_postgres() {
  local folder=$1 bin
  bin=$(postgres_bin)
  printf %s "$2" > "$folder/password"
  touch "$folder/log"
  [ "$(id -u)" != 0 ] || chown -R postgres: "$folder"
  as_owner "$bin/initdb" --pgdata="$folder/data" --username=sira --pwfile="$folder/password" --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C --no-sync > "$folder/log" 2>&1
}

start_postgres() {
  local folder=$1 port=$2 bin setting settings
  bin=$(postgres_bin)
  settings="-p $port -h 127.0.0.1 -k '$folder'"
  for setting in "${@:4}"; do settings+=" $setting"; done
  as_owner "$bin/pg_ctl" --pgdata="$folder/data" --wait --timeout=60 --log="$folder/log" --options="$settings" start > /dev/null 2>&1 || return 1
  head -1 "$folder/data/postmaster.pid" > "$folder/pid"
}

url_postgres() { echo "postgres://sira:$2@127.0.0.1:$1/postgres"; }

make_mariadb() {
  mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$1/data" --auth-root-authentication-method=normal \
    --skip-test-db > "$1/log" 2>&1
}

start_mariadb() {
  local folder=$1 port=$2 password=$3 pid
  setsid mariadbd --no-defaults --user="$(id -un)" --datadir="$folder/data" --bind-address=127.0.0.1 --port="$port" \
    --socket="$folder/socket" --pid-file="$folder/pid.own" --log-error="$folder/log" "${@:4}" < /dev/null > /dev/null 2>&1 &
  pid=$!
  # Or the shell tells of its end.
  disown $pid
  local client=(mariadb --no-defaults --user=root --socket="$folder/socket")
  for _ in $(seq 600); do
    runs $pid || return 1
    if "${client[@]}" --execute="create database if not exists sira; create user if not exists sira@'127.0.0.1' identified by '$password';
      grant all on *.* to sira@'127.0.0.1'" 2> /dev/null; then
      echo $pid > "$folder/pid"
      return 0
    fi
    sleep 0.1
  done
  kill -9 $pid
  return 1
}

url_mariadb() { echo "mysql://sira:$2@127.0.0.1:$1/sira"; }

make_redis() { mkdir "$1/data"; }

start_redis() {
  local folder=$1 port=$2 password=$3
  redis-server --bind 127.0.0.1 --port "$port" --unixsocket "$folder/socket" --dir "$folder/data" --save "" --appendonly yes \
    --requirepass "$password" --logfile "$folder/log" --pidfile "$folder/pid" --daemonize yes "${@:4}" > /dev/null || return 1
  for _ in $(seq 600); do
    if REDISCLI_AUTH=$password redis-cli -s "$folder/socket" ping 2> /dev/null | grep -q PONG; then return 0; fi
    # A port that is taken ends the daemon after its parent said that all is well.
    if [ -s "$folder/pid" ] && ! runs "$(cat "$folder/pid")"; then return 1; fi
    if grep -q 'Failed listening' "$folder/log" 2> /dev/null; then return 1; fi
    sleep 0.05
  done
  return 1
}

url_redis() { echo "redis://:$2@127.0.0.1:$1/"; }

make_cluster() { mkdir "$1/data"; }

start_cluster() {
  local folder=$1 port=$2 password=$3 ports node nodes=()
  # The first is the one that is asked for; then those of the other nodes, then those on which the nodes talk to each other.
  if [ "$(head -1 "$folder/ports" 2> /dev/null)" != "$port" ]; then
    rm -rf "$folder"/data/* "$folder/formed"
    { echo "$port"; free_port 11; } > "$folder/ports"
  fi
  mapfile -t ports < "$folder/ports"
  export REDISCLI_AUTH=$password
  : > "$folder/log"
  for node in 0 1 2 3 4 5; do
    mkdir -p "$folder/data/$node"
    redis-server --bind 127.0.0.1 --port "${ports[node]}" --cluster-enabled yes --cluster-port "${ports[node + 6]}" --cluster-node-timeout 2000 \
      --dir "$folder/data/$node" --save "" --appendonly yes --requirepass "$password" --masterauth "$password" \
      --unixsocket "$folder/socket.$node" --logfile "$folder/log.$node" --pidfile "$folder/pid.$node" --daemonize yes "${@:4}" > /dev/null || return 1
    nodes+=("127.0.0.1:${ports[node]}")
  done
  for node in 0 1 2 3 4 5; do
    cluster_node_answers "$folder" $node || { cat "$folder"/pid.? > "$folder/pid" 2> /dev/null; kill_all "$folder"; return 1; }
  done
  cat "$folder"/pid.? > "$folder/pid"
  if [ ! -e "$folder/formed" ]; then
    redis-cli --cluster create "${nodes[@]}" --cluster-replicas 1 --cluster-yes >> "$folder/log" 2>&1 || return 1
    touch "$folder/formed"
  fi
  for node in 0 1 2 3 4 5; do
    # All slots have their node, and each replica follows its primary.
    for _ in $(seq 600); do
      if redis-cli -s "$folder/socket.$node" cluster info | grep -q '^cluster_state:ok' &&
        redis-cli -s "$folder/socket.$node" info replication | grep -qE '^(master_link_status:up|connected_slaves:[1-9])'; then continue 2; fi
      sleep 0.1
    done
    tail -5 "$folder/log.$node" >> "$folder/log"
    return 1
  done
}

cluster_node_answers() {
  for _ in $(seq 600); do
    if redis-cli -s "$1/socket.$2" ping 2> /dev/null | grep -q PONG; then return 0; fi
    if grep -q 'Failed listening' "$1/log.$2" 2> /dev/null; then return 1; fi
    sleep 0.05
  done
  return 1
}

url_cluster() { url_redis "$@"; }

make_moto() { :; }

start_moto() {
  local folder=$1 port=$2 pid
  setsid "$(moto_python)" "$(dirname "${BASH_SOURCE[0]}")/moto_server.py" "$port" < /dev/null > "$folder/log" 2>&1 &
  pid=$!
  disown $pid
  echo $pid > "$folder/pid"
  for _ in $(seq 600); do
    runs $pid || return 1
    # It keeps no passwords: whoever asks may make a bucket.
    if python3 -c 'import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method="PUT"), timeout=5)' \
      "http://127.0.0.1:$port/sira" 2> /dev/null; then return 0; fi
    sleep 0.1
  done
  kill -9 $pid
  return 1
}

url_moto() { echo "http://sira:$2@127.0.0.1:$1"; }

make_ceph() {
  local folder=$1 id mon
  id=$(cat /proc/sys/kernel/random/uuid)
  mon=$(free_port)
  mkdir "$folder"/mon "$folder"/osd "$folder"/rgw
  # One monitor, one disk of 4 GiB (a file with holes), no passwords between them: all on loopback.
  cat > "$folder/ceph.conf" << CONF
[global]
fsid = $id
mon host = [v1:127.0.0.1:$mon]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
mon data avail crit = 1
mon max pg per osd = 1000
run dir = $folder
log file = $folder/\$name.log
admin socket = $folder/\$name.socket
pid file = $folder/\$name.pid
crash dir = $folder
ms bind ipv6 = false
[mon.a]
mon data = $folder/mon
mon cluster log file = $folder/cluster.log
[osd.0]
osd data = $folder/osd
osd objectstore = bluestore
bluestore block size = 4294967296
bluestore fsck on mount = false
[client.rgw]
rgw data = $folder/rgw
rgw run sync thread = false
rgw enable quota threads = false
CONF
  { monmaptool --create --clobber --fsid "$id" --addv a "[v1:127.0.0.1:$mon]" "$folder/monmap" &&
    ceph-mon -c "$folder/ceph.conf" -i a --mkfs --monmap "$folder/monmap"; } > "$folder/log" 2>&1
}

start_ceph() {
  local folder=$1 port=$2 password=$3 id conf=(-c "$1/ceph.conf")
  {
    [ -e "$folder/mon.a.pid" ] || ceph-mon "${conf[@]}" -i a
    if [ ! -e "$folder/formed" ]; then
      id=$(cat /proc/sys/kernel/random/uuid)
      timeout 60 ceph "${conf[@]}" osd new "$id" 0
      ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$id"
      touch "$folder/formed"
    fi
    ceph_disk "$folder" || return 1
    radosgw "${conf[@]}" -n client.rgw --rgw-frontends="beast endpoint=127.0.0.1:$port"
    cat "$folder"/*.pid > "$folder/pid"
  } >> "$folder/log" 2>&1
  radosgw-admin "${conf[@]}" -n client.rgw user create --uid=sira --display-name=sira --access-key=sira --secret-key="$password" \
    >> "$folder/log" 2>&1 || return 1
  for _ in $(seq 600); do
    runs "$(cat "$folder/client.rgw.pid")" && runs "$(cat "$folder/osd.0.pid")" || return 1
    if ceph_bucket "$port" "$password" >> "$folder/log" 2>&1; then return 0; fi
    sleep 0.2
  done
  kill -9 "$(cat "$folder/client.rgw.pid")"
  return 1
}

# Starts the disk until it is up: now and then it speaks to the monitor before it knows whose that is, is refused, and ends.
ceph_disk() {
  local conf=(-c "$1/ceph.conf")
  for _ in 1 2 3 4 5; do
    if [ ! -e "$1/osd.0.pid" ] || ! runs "$(cat "$1/osd.0.pid")"; then ceph-osd "${conf[@]}" -i 0; fi
    for _ in $(seq 60); do
      if timeout 20 ceph "${conf[@]}" osd stat | grep -q '1 up'; then return 0; fi
      if [ ! -e "$1/osd.0.pid" ] || ! runs "$(cat "$1/osd.0.pid")"; then continue 2; fi
      sleep 0.2
    done
  done
  return 1
}

# Makes the bucket, with a signature of the older kind, which needs no more than a line.
ceph_bucket() {
  python3 -c '
import base64, email.utils, hmac, sys, urllib.request as u
port, secret = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
signature = base64.b64encode(hmac.digest(secret.encode(), f"PUT\n\n\n{date}\n/sira".encode(), "sha1")).decode()
headers = {"Date": date, "Authorization": f"AWS sira:{signature}"}
u.urlopen(u.Request(f"http://127.0.0.1:{port}/sira", method="PUT", headers=headers), timeout=5)' "$1" "$2"
}

url_ceph() { url_moto "$@"; }

report() {
  local folder=$1 kind port password
  { read -r kind; read -r port; read -r password; } < "$folder/$MARK"
  printf '{"kind": "%s", "url": "%s", "pid": %s, "folder": "%s"}\n' \
    "$kind" "$("url_$kind" "$port" "$password")" "$(head -1 "$folder/pid")" "$folder"
}

start() {
  local kind=$1 folder=$2 password port
  shift 2
  password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
  "make_$kind" "$folder" "$password" || fail "$kind cannot be set up: $(tail -3 "$folder/log")"
  for _ in $(seq $TRIES); do
    port=$(free_port)
    printf '%s\n' "$kind" "$port" "$password" "$@" > "$folder/$MARK"
    if "start_$kind" "$folder" "$port" "$password" "$@"; then
      report "$folder"
      return 0
    fi
  done
  local why
  why=$(tail -5 "$folder/log" 2>/dev/null || true)
  fail "$kind does not start: $why"
}

again() {
  local folder=$1 lines
  [ -f "$folder/$MARK" ] || fail "$folder holds no server of this script"
  mapfile -t lines < "$folder/$MARK"
  if runs "$(head -1 "$folder/pid")"; then fail "the server in $folder still runs"; fi
  # One that was killed leaves these; they would be taken for signs of life.
  rm -f "$folder/pid" "$folder/pid.own" "$folder/socket" "$folder/data/postmaster.pid" "$folder"/.s.PGSQL.*
  : > "$folder/log"
  "start_${lines[0]}" "$folder" "${lines[@]:1}" || fail "${lines[0]} does not start again: $(tail -5 "$folder/log")"
  report "$folder"
}

stop() {
  local folder=$1
  [ -f "$folder/$MARK" ] || fail "$folder holds no server of this script"
  kill_all "$folder"
  # A process on its way out may still make a file.
  rm -rf "$folder" 2> /dev/null || { sleep 0.5; rm -rf "$folder"; }
}

# Kills what runs in a folder: one process, or several of one system.
kill_all() {
  local folder=$1 pid
  for pid in $(cat "$folder"/pid "$folder"/*.pid "$folder"/pid.? 2> /dev/null | sort -u); do
    # PostgreSQL's processes share memory and wait for their parent: it is told to end them at once. Nothing here needs a clean end.
    if [ "$(head -1 "$folder/$MARK")" = postgres ]; then kill -QUIT "$pid" 2> /dev/null || true; else kill -9 "$pid" 2> /dev/null || true; fi
    for _ in $(seq 100); do
      runs "$pid" || break
      sleep 0.05
    done
    kill -9 "$pid" 2> /dev/null || true
  done
}

hold=
if [ "${1:-}" = --hold ]; then hold=yes; shift; fi
case ${1:-} in
  postgres | mariadb | redis | cluster | moto | ceph)
    kind=$1
    shift
    install_missing "$kind"
    folder=$(realpath "$(mktemp -d "${TMPDIR:-/tmp}/sira-$kind.XXXXXX")")
    # A unix socket's path has 107 bytes at most.
    [ ${#folder} -le 80 ] || fail "the path of TMPDIR is too long for a socket: $folder"
    # The server may be another user than the one who started it.
    chmod 755 "$folder"
    echo "$kind" > "$folder/$MARK"
    # Whatever goes wrong from here on, nothing stays.
    trap 'stop "$folder"' EXIT
    trap 'exit 1' INT TERM HUP
    start "$kind" "$folder" "$@"
    if [ -n "$hold" ]; then cat > /dev/null || true; else trap - EXIT; fi
    ;;
  again) again "${2:?folder}" ;;
  stop) stop "${2:?folder}" ;;
  install)
    shift
    [ $# -gt 0 ] || set -- "${KINDS[@]}"
    install_missing "$@"
    ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac

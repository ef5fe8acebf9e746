#!/usr/bin/env bash
# A Docker Engine, and the images that the suite runs, on a machine that has no image registry.
#
#   engine.sh run COMMAND...   engine and images for as long as COMMAND runs; its exit code is COMMAND's
#   engine.sh up               engine and images; prints what to export
#   engine.sh down             stops the engine that `up` started
#
# An engine that already answers is used and left running. Else one comes up from Debian's packages, on a socket and a
# data folder of its own; that takes Debian 12 and root. Everything that can be kept lies under .cache/engine. To
# COMMAND, SERVEWRIGHT_ENGINE_PID_FILE names an engine that came up for it alone, and that it may stop.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${SERVEWRIGHT_ENGINE_CACHE:-$root/.cache/engine}
python=${PYTHON:-$root/.venv/bin/python}
suite=bookworm
base=servewright-base:$suite
torchserve_image=servewright-torchserve:test
tfserving_image=servewright-tfserving:test
# Sockets lie here: a path below a deep checkout could be longer than AF_UNIX takes.
run=/run/servewright-engine
pid_file=$run/docker.pid
started=0
# Nothing here may hang: what takes longer than this, in seconds, has failed.
longest=600

say() { echo "engine: $*" >&2; }
fail() { say "$*"; exit 3; }

answers() { timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

install_packages() {
  local missing=()
  command -v dockerd >/dev/null || missing+=(docker.io)
  command -v iptables >/dev/null || missing+=(iptables)
  command -v debootstrap >/dev/null || missing+=(debootstrap)
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || fail "no Docker Engine answers, and only Debian's packages can be installed from here"
  ((EUID == 0)) || fail "no Docker Engine answers, and installing one takes root"
  say "install ${missing[*]}"
  timeout $longest apt-get update -qq
  # The package would start a service of its own; Debian's way to forbid that is a policy that answers 101.
  local policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap "rm -f $policy" RETURN
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  DEBIAN_FRONTEND=noninteractive timeout $longest \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

start_engine() {
  mkdir -p "$run" "$cache/data"
  export DOCKER_HOST=unix://$run/docker.sock
  if answers; then
    say "the engine of an earlier run answers"
    return
  fi
  say "start dockerd, log in $cache/dockerd.log"
  # A killed engine's number may be another program's by now, and dockerd would take that for itself.
  rm -f "$pid_file"
  setsid dockerd --host "$DOCKER_HOST" --pidfile "$pid_file" --exec-root "$run/exec" --data-root "$cache/data" \
    >"$cache/dockerd.log" 2>&1 </dev/null &
  local pid=$!
  started=1
  for _ in $(seq 300); do
    answers && return
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  tail -n 20 "$cache/dockerd.log" >&2
  fail "dockerd did not come up; its last lines are above"
}

stop_engine() {
  [[ -s $pid_file ]] || return 0
  local pid
  pid=$(<"$pid_file")
  say "stop dockerd ($pid)"
  kill -TERM "$pid" 2>/dev/null || true
  for _ in $(seq 150); do
    kill -0 "$pid" 2>/dev/null || { rm -rf "$run"; return 0; }
    sleep 0.2
  done
  kill -KILL "$pid" 2>/dev/null || true
  rm -rf "$run"
}

make_base() {
  if docker image inspect "$base" >/dev/null 2>&1; then return; fi
  if [[ ! -s $cache/base.tar ]]; then
    command -v debootstrap >/dev/null || fail "the base image takes debootstrap: apt-get install debootstrap"
    ((EUID == 0)) || fail "the base image takes root, for debootstrap"
    local folder=$cache/base mirror
    # Wherever this machine's own packages come from.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" 'Created-By: Packages' | head -n 1)
    say "make the base image"
    rm -rf "$folder"
    timeout $longest debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$folder" \
      ${mirror:+"$mirror"} >"$cache/debootstrap.log" 2>&1 ||
      { tail -n 20 "$cache/debootstrap.log" >&2; fail "debootstrap failed"; }
    rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/var/log/* "$folder"/usr/share/{doc,man,locale}/*
    tar -C "$folder" --sort=name --mtime=@0 --numeric-owner -cf "$cache/base.tar.part" .
    mv "$cache/base.tar.part" "$cache/base.tar"
    rm -rf "$folder"
  fi
  docker import "$cache/base.tar" "$base" >/dev/null
}

# wheelhouse NAME: wheels of all that the image of backend NAME installs.
wheelhouse() {
  local folder=$cache/wheelhouse/$1 wanted=$cache/$1.txt
  "$python" -P -m servewright image --backend "$1" --requirements >"$wanted"
  if cmp -s "$wanted" "$folder/requirements.txt"; then return; fi
  say "fill the wheelhouse of $1"
  rm -rf "$folder"
  timeout $longest "$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$folder" \
    --constraint "$root/constraints.txt" --requirement "$wanted"
  cp "$wanted" "$folder/requirements.txt"
}

# build NAME TAG: the image of backend NAME.
build() {
  local log=$cache/build-$1.log
  say "build $2"
  timeout $longest "$python" -P -m servewright image --backend "$1" --tag "$2" --base "$base" \
    --wheelhouse "$cache/wheelhouse/$1" >"$log" 2>&1 || { tail -n 40 "$log" >&2; fail "building $2 failed"; }
}

# both FUNCTION: FUNCTION for each image that is not given, at the same time; a failure of one is ours.
both() {
  local pids=() pid failed=0
  if [[ -z ${SERVEWRIGHT_TORCHSERVE_IMAGE:-} ]]; then "$1" torchserve "$torchserve_image" & pids+=($!); fi
  if [[ -z ${SERVEWRIGHT_TFSERVING_IMAGE:-} ]]; then "$1" tfserving "$tfserving_image" & pids+=($!); fi
  for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
  ((failed == 0)) || exit "$failed"
}

bring_up() {
  mkdir -p "$cache"
  if answers; then
    say "use the engine that answers already"
  else
    install_packages
    start_engine
  fi
  # One waits for the network, the other for the disk.
  both wheelhouse &
  local filling=$!
  make_base
  wait "$filling"
  both build
  export SERVEWRIGHT_TORCHSERVE_IMAGE=${SERVEWRIGHT_TORCHSERVE_IMAGE:-$torchserve_image}
  export SERVEWRIGHT_TFSERVING_IMAGE=${SERVEWRIGHT_TFSERVING_IMAGE:-$tfserving_image}
  export SERVEWRIGHT_IMAGE_BASE=$base SERVEWRIGHT_IMAGE_WHEELHOUSE=$cache/wheelhouse
  ((started == 0)) || export SERVEWRIGHT_ENGINE_PID_FILE=$pid_file
}

finish() {
  local pids
  pids=$(jobs -pr)
  [[ -z $pids ]] || kill $pids 2>/dev/null || true
  ((started == 0)) || stop_engine
}

case ${1:-} in
  run)
    shift
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    bring_up
    "$@"
    ;;
  up)
    bring_up
    for name in DOCKER_HOST SERVEWRIGHT_{TORCHSERVE_IMAGE,TFSERVING_IMAGE,IMAGE_BASE,IMAGE_WHEELHOUSE}; do
      [[ -z ${!name:-} ]] || echo "export $name=${!name}"
    done
    ;;
  down) stop_engine ;;
  *)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

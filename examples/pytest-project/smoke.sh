#!/bin/sh
# Starts a server, asks it over HTTP, and ends it: what tests in any other language do.
#   smoke.sh [RUNTIME]
set -eu
cd "$(dirname "$0")"
name=digits-smoke-$$

up=$(servewright up digits.yaml --backend torchserve --runtime "${1:-auto}" --name "$name" --wait --json)
trap 'servewright down "$name"' EXIT

# A word of what `up` printed; with jq: echo "$up" | jq -r .endpoints.http
word() { echo "$up" | python3 -c 'import functools, json, sys
print(functools.reduce(lambda found, key: found[key], sys.argv[1].split("."), json.load(sys.stdin)))' "$1"; }

zeros=$(python3 -c 'print([[0.0] * 64])')
curl --silent --show-error --fail --max-time 30 "http://$(word endpoints.http)/predictions/digits" \
  --header "authorization: $(word headers.authorization)" --header 'content-type: application/json' \
  --data "{\"inputs\": {\"image\": $zeros}}"
echo

#!/usr/bin/env bash
# fresh.sh: what a new user does first, in a fresh clone with an empty build cache: the quickstart, then the tests.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
git clone -q "$repo" "$dir/clone"
cd "$dir/clone"
export GOCACHE=$dir/cache
start=$(date +%s)
go run ./examples/quickstart -out "$dir/run"
echo "quickstart: $(($(date +%s) - start)) s with an empty build cache"
python3 - "$dir/run/summary.json" <<'P'
import json, sys
late = json.load(open(sys.argv[1]))["client"]["lateness"]
print("client's lateness: p50 %.3f ms," % late["median_ms"], ", ".join("p%g %.3f ms" % (p["p"], p["value_ms"]) for p in late["percentiles"]))
P
start=$(date +%s)
go test ./...
echo "go test ./...: $(($(date +%s) - start)) s"

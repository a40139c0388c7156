#!/usr/bin/env bash
# peers.sh SHARED VENVS TOKENIZER [peer…]: our client beside others, in the same run against the same reference server, closed
# loop, client on core 1, server on core 0. SHARED is the folder with peers/ (its README installs them); VENVS and TOKENIZER
# are what that made. Default peer: sglang-rust. One line for each run.
set -euo pipefail
shared=$(cd "${1:?usage: peers.sh SHARED VENVS TOKENIZER [peer…]}" && pwd); venvs=$2; tok=$3; shift 3
peers=("$@"); [ ${#peers[@]} -gt 0 ] || peers=(sglang-rust)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
go build -o "$out/client" ./bench/client
export PORT=${PORT:-31100}
for api in completions generate; do
  for load in "10000 64 16" "2000 128 512"; do
    read -r requests flight tokens <<<"$load"
    echo "== $api, $tokens tokens, $flight in flight, $requests requests; load average $(cut -d' ' -f1-3 /proc/loadavg)"
    LOAD="--requests $requests --concurrency $flight --out-len $tokens --api $api" \
      OURS="$out/client -greedy -url {url} -api $api -requests $requests -concurrency $flight -out $tokens" \
      "$shared/peers/compare.sh" "$venvs" "$tok" "$out/$api-$tokens" "${peers[@]}" >"$out/lines" 2>&1 || { cat "$out/lines" >&2; exit 1; }
    python3 - "$out/$api-$tokens/results.jsonl" "$out/lines" "$tokens" "$requests" <<'P'
import json, statistics as st, sys
tokens, n = int(sys.argv[3]), int(sys.argv[4])
rows = {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    rows.setdefault(r["peer"], []).append((r["reported"]["req_s"], r["cpu_s"] / n * 1e6, r["peak_pss_mb"], r["start_to_first_request_s"]))
for line in open(sys.argv[2]):
    if line.startswith("ours: "):
        r = json.loads(line[6:])
        assert r["failed"] == 0, r
        rows.setdefault("ours", []).append((r["req_per_s"], r["cpu_us_per_req"], r["peak_memory_mb"], r["start_to_first_request_s"]))
ours = st.median(v[0] for v in rows["ours"])
for name, v in rows.items():
    m = [st.median(x) for x in zip(*v)]
    print(f"{name:14} req/s {'/'.join(f'{x[0]:.0f}' for x in v):>20}  median {m[0]:8.0f}  events/s {m[0]*tokens:10.0f}  "
          f"CPU {m[1]:6.0f} us/request  peak {m[2]:.0f} MB  first request after {m[3]:.2f} s  ours is {ours/m[0]:.2f}x")
P
  done
done

#!/usr/bin/env bash
# run.sh SHARED VENVS TOKENIZER: real clients, unchanged, against cmd/sglang-sim: sglang.bench_serving on three backends, SGLang's Rust
# client, the OpenAI package, aiperf, and the real sglang-router with the simulated server as its worker. Each line has what the
# client says beside what the engine counted in the same time. SHARED is the folder with peers/; VENVS holds the environments
# sglang, aiperf, openai and router (the latter two: pip install openai, pip install sglang-router); TOKENIZER any tokenizer on disk.
set -euo pipefail
shared=$(cd "${1:?usage: run.sh SHARED VENVS TOKENIZER}" && pwd); venvs=$2; tok=$3
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=$PWD/bench/clients; out=$(mktemp -d)
port=${PORT:-31300}; url=http://127.0.0.1:$port; n=${REQUESTS:-80} flight=${FLIGHT:-4}
go build -o "$out/sglang-sim" ./cmd/sglang-sim
"$out/sglang-sim" --model-path meta-llama/Llama-3.1-8B-Instruct --port "$port" --enable-metrics --enable-cache-report --weight-version worker-0 >"$out/stdout" 2>"$out/stderr" & server=$!
trap 'kill -TERM $server ${router:-} 2>/dev/null || true; wait $server ${router:-} 2>/dev/null || true; rm -rf "$out"' EXIT
until curl -fs "$url/ready" >/dev/null; do kill -0 $server; sleep 0.1; done
echo "$n requests, $flight in flight; load average $(cut -d' ' -f1-3 /proc/loadavg)"

# compare NAME COMMAND...: runs the command, whose last line of standard output is JSON, between two readings of /metrics.
compare() {
  local name=$1; shift
  curl -fs "$url/metrics" >"$out/before"
  "$@" >"$out/said" 2>"$out/log" || { echo "$name FAILED"; tail -n 20 "$out/log"; tail -n 20 "$out/said"; exit 1; }
  curl -fs "$url/metrics" >"$out/after"
  printf '%-16s client %s\n' "$name" "$(tail -1 "$out/said")"
  printf '%-16s engine %s\n' "" "$(python3 "$here/engine.py" "$out/before" "$out/after")"
}
peer() { compare "$1 $2" bash -c "'$shared/peers/peer.py' $1 --venv '$3' --url $url --tokenizer '$tok' --requests $n --concurrency $flight \
  --in-len 256 --out-len 128 --api $2 --out '$out/$1-$2' | python3 '$here/said.py'"; }
for api in generate completions chat; do peer sglang-python $api "$venvs/sglang/venv"; done
peer sglang-rust generate "$venvs/sglang/venv"
peer aiperf completions "$venvs/aiperf"
compare "openai package" "$venvs/openai/bin/python" "$here/openai_check.py" "$url" 10

rport=$((port + 1)) mport=$((port + 2))
"$venvs/router/bin/sglang-router" launch --host 127.0.0.1 --port $rport --prometheus-port $mport --worker-urls "$url" --policy round_robin >"$out/router" 2>&1 & router=$!
until curl -fs "http://127.0.0.1:$rport/readiness" >/dev/null; do kill -0 $router || { cat "$out/router"; exit 1; }; sleep 0.2; done
compare "sglang-router" python3 "$here/routed.py" "http://127.0.0.1:$rport" 20
kill -INT $router; wait $router || true; router=
kill -TERM $server; wait $server; echo "sglang-sim ended with status $?"
grep -c 'POST /generate HTTP/1.1" 200 OK' "$out/stdout" | sed 's/^/access log lines of \/generate with 200: /'

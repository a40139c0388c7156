#!/usr/bin/env bash
# agree.sh VENV TOKENIZER: the real sglang.bench_serving and our client, one after the other, against the simulated engine with the
# same closed loop of fixed lengths; then both tables side by side. VENV holds sglang's client, TOKENIZER any tokenizer on disk.
set -euo pipefail
venv=${1:?usage: agree.sh VENV TOKENIZER}; tok=${2:?usage: agree.sh VENV TOKENIZER}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mktemp -d)
go build -o "$out/sglang-sim" ./cmd/sglang-sim; go build -o "$out/client" ./bench/client
port=${PORT:-31200}; url=http://127.0.0.1:$port
"$out/sglang-sim" --model-path meta-llama/Llama-3.1-8B-Instruct --port "$port" --sim-files false >"$out/server.txt" 2>&1 & server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$out"' EXIT
until curl -fs "$url/model_info" >/dev/null; do sleep 0.1; done
n=${REQUESTS:-80} flight=${FLIGHT:-4} in=256 tokens=128
# One workload for both: texts of 1,024 bytes, which the simulated engine counts as 256 tokens, each with a beginning of its own.
python3 - "$out" $n $tokens <<'P'
import json, random, sys
out, n, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(1)
with open(out + "/theirs.jsonl", "w") as theirs, open(out + "/ours.jsonl", "w") as ours:
    for i in range(n):
        text = ("%04d " % i + " ".join(rng.choice(["the", "of", "and", "time", "people", "water", "first"]) for _ in range(400)))[:1024]
        theirs.write(json.dumps({"conversations": [{"role": "user", "content": text}, {"role": "assistant", "content": "an answer of some words"}]}) + "\n")
        ours.write(json.dumps({"prompt": text, "output_len": tokens}) + "\n")
P
echo "closed loop of $n requests, $flight in flight, $in tokens in, $tokens out; load average $(cut -d' ' -f1-3 /proc/loadavg)"
for round in 1 2 3; do
  for api in generate completions chat; do
    backend=sglang; [ $api = completions ] && backend=sglang-oai; [ $api = chat ] && backend=sglang-oai-chat
    HF_HUB_OFFLINE=1 "$venv/bin/python" -W ignore -m sglang.bench_serving --backend $backend --base-url "$url" --model m --tokenizer "$tok" \
      --dataset-name custom --dataset-path "$out/theirs.jsonl" --sharegpt-output-len $tokens --num-prompts $n \
      --max-concurrency $flight --output-file "$out/theirs-$api-$round" --disable-tqdm >"$out/log" 2>&1 || { tail -20 "$out/log" >&2; exit 1; }
    ours=$api; [ $api = chat ] && ours=chat_completions
    "$out/client" -greedy -url "$url" -api $ours -requests $n -concurrency $flight -jsonl "$out/ours.jsonl" >"$out/ours-$api-$round"
  done
done
python3 - "$out" <<'P'
import json, statistics as st, sys
out = sys.argv[1]
names = [("request_throughput", "%"), ("output_throughput", "%"), ("mean_tpot_ms", "%"), ("median_tpot_ms", "%"), ("mean_e2e_latency_ms", "%"),
         ("median_e2e_latency_ms", "%"), ("p99_e2e_latency_ms", "%"), ("mean_ttft_ms", "ms"), ("median_ttft_ms", "ms"), ("mean_itl_ms", "%")]
def pick(d, name):
    if name.endswith("throughput"):
        return d[name + ("_per_s" if name.startswith("request") else "_tokens_per_s")]
    kind, _, rest = name.partition("_")
    group = {"tpot_ms": "tpot", "e2e_latency_ms": "e2e_latency", "ttft_ms": "ttft", "itl_ms": "itl"}[rest]
    g = d[group]
    for k in (kind, kind + "_ms"):
        if k in g: return g[k]
    raise KeyError(name + str(d))
for api in ("generate", "completions", "chat"):
    print(f"{api:12} {'theirs':>12} {'ours':>12} {'difference':>12}   (medians of three)")
    for name, unit in names:
        t = st.median(json.loads(open(f"{out}/theirs-{api}-{r}").readlines()[-1])[name] for r in (1, 2, 3))
        o = st.median(pick(json.load(open(f"{out}/ours-{api}-{r}"))["bench_serving"], name) for r in (1, 2, 3))
        diff = f"{100 * (o / t - 1):+.2f} %" if unit == "%" else f"{o - t:+.2f} ms"
        print(f"  {name:24} {t:10.2f} {o:12.2f} {diff:>12}")
P

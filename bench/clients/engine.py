"""What the engine itself counted: the difference of two readings of /metrics, as one JSON line.

usage: engine.py BEFORE AFTER
"""
import json
import sys


def read(path):
    out = {}
    for line in open(path):
        if line.startswith("sglang:"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            if not name.endswith("_bucket"):
                out[name] = out.get(name, 0) + float(value)
    return out


before, after = read(sys.argv[1]), read(sys.argv[2])
grown = {k: v - before.get(k, 0) for k, v in after.items()}


def mean(name):
    count = grown.get(f"sglang:{name}_count", 0)
    return round(1e3 * grown[f"sglang:{name}_sum"] / count, 3) if count else None


print(json.dumps({"requests": int(grown["sglang:num_requests_total"]), "prompt_tokens": int(grown["sglang:prompt_tokens_total"]),
                  "output_tokens": int(grown["sglang:generation_tokens_total"]), "aborted": int(grown.get("sglang:num_aborted_requests_total", 0)),
                  "mean_ttft_ms": mean("time_to_first_token_seconds"), "mean_itl_ms": mean("inter_token_latency_seconds"),
                  "mean_e2e_ms": mean("e2e_request_latency_seconds")}))

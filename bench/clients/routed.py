"""Requests through a router: each must be answered by the worker that named itself. Prints one JSON line.

usage: routed.py ROUTER_URL REQUESTS
"""
import json
import sys
import time
import urllib.request


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1] + path, data, {"Content-Type": "application/json"})) as r:
        return r.read()


n, e2e = int(sys.argv[2]), []
workers = json.loads(call("/workers"))["workers"]
assert len(workers) == 1 and workers[0]["is_healthy"], workers
for i in range(n):
    begin = time.perf_counter()
    r = json.loads(call("/generate", {"text": "A lake %d" % i, "sampling_params": {"max_new_tokens": 16, "ignore_eos": True}}))
    e2e.append(time.perf_counter() - begin)
    assert r["meta_info"]["weight_version"] == "worker-0" and r["meta_info"]["completion_tokens"] == 16, r
stream = call("/generate", {"text": "A lake", "stream": True, "sampling_params": {"max_new_tokens": 16, "ignore_eos": True}})
assert stream.endswith(b"data: [DONE]\n\n"), stream[-100:]
print(json.dumps({"requests": n + 1, "output_tokens": 16 * (n + 1), "mean_e2e_ms": round(1e3 * sum(e2e) / n, 3), "model": workers[0].get("model_id")}))

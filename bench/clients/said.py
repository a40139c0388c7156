"""What a peer reported, cut down to what the engine counts too: reads peer.py's JSON, prints one line."""
import json
import sys

r = json.load(sys.stdin)
print(json.dumps({k: v for k, v in r["reported"].items() if k in ("requests", "failed", "errors", "output_tokens", "req_s", "ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")}))

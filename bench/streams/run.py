#!/usr/bin/env python3
"""How many streams of 20 ms steps the simulated server holds on this machine before its own steps run late by more than 1 ms at p99,
beside the reference server under the same load; and how many events a second it writes with steps of 1 ms.

usage: run.py REFSERVER [STREAMS ...]      (run it from the root of the repository; REFSERVER: the binary of shared/peers/refserver)

Client and server share the machine's cores. Each stream has 300 tokens. All streams are sent at once.
"""
import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

port = int(os.environ.get("PORT", "31500"))
url = f"http://127.0.0.1:{port}"
here = os.path.dirname(os.path.abspath(__file__))


def get(path):
    with urllib.request.urlopen(url + path, timeout=10) as r:
        return json.load(r)


running = []


def serve(command):
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    running.append(p)
    while True:
        try:
            get("/model_info")
            return p
        except OSError:
            assert p.poll() is None, "the server ended"
            time.sleep(0.05)


def stop(p):
    p.terminate()
    p.wait()
    running.remove(p)


atexit.register(lambda: [p.kill() for p in running])


def client(requests, concurrency, tokens):
    r = subprocess.run([client_bin, "-url", url, "-requests", str(requests), "-concurrency", str(concurrency), "-in", "8", "-out", str(tokens)],
                       check=True, capture_output=True, text=True)
    return json.loads(r.stdout)


def cpu(p):
    fields = open(f"/proc/{p.pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sim(profile):
    return [sim_bin, "--model-path", "paced", "--port", str(port), "--sim-profile", os.path.join(here, profile), "--max-running-requests", "8192", "--sim-files", "false",
            "--log-level", "warning"]


with tempfile.TemporaryDirectory() as tmp:
    sim_bin, client_bin = tmp + "/sglang-sim", tmp + "/client"
    subprocess.run(["go", "build", "-o", sim_bin, "./cmd/sglang-sim"], check=True)
    subprocess.run(["go", "build", "-o", client_bin, "./bench/client"], check=True)
    print("load average", open("/proc/loadavg").read().split()[:3], "cores", os.cpu_count())
    print(f"{'streams':>8} {'server':>10} {'events/s':>9} {'own steps late p50/p99 ms':>26} {'client gap p50/p99 ms':>22} {'server CPU':>10}")
    for streams in [int(a) for a in sys.argv[2:]] or [64, 256, 512, 1024, 1536, 2048]:
        for name, command in ("simulated", sim("paced.json")), ("reference", [sys.argv[1], "-addr", f"127.0.0.1:{port}", "-itl", "20ms", "-ttft", "20ms", "-stamps", "-procs", "2"]):
            p = serve(command)
            began = time.time()
            r = client(streams, streams, 300)
            used = cpu(p) / (time.time() - began)
            assert r["failed"] == 0, r
            if name == "simulated":
                late = get("/server_info")["simulated"]["step_lateness_ms"]
                own = f"{late['p50']:.2f} / {late['p99']:.2f}"
            else:
                gap = get("/stats")["true_mean_gap_ms"]
                own = f"mean gap {gap['p50'] - 20:+.2f} / {gap['p99'] - 20:+.2f}"
            print(f"{streams:8} {name:>10} {r['events_per_s']:9.0f} {own:>26} {r['itl_ms']['p50']:12.2f} / {r['itl_ms']['p99']:7.2f} {used:9.2f}", flush=True)
            stop(p)
    for flight in (64, 128):
        for name, command in ("simulated", sim("fast.json")), ("reference", [sys.argv[1], "-addr", f"127.0.0.1:{port}", "-itl", "1ms", "-ttft", "1ms", "-procs", "2"]):
            p = serve(command)
            rates = sorted(client(2000, flight, 300)["events_per_s"] for _ in range(3))
            print(f"steps of 1 ms, {flight} in flight: {name} {rates[1]:.0f} events/s (median of {[round(x) for x in rates]})", flush=True)
            stop(p)

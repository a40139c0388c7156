#!/usr/bin/env python3
"""Draw random scenarios for a recorder of SGLang's schedules.

usage: generate.py [--seed 1] [--each 7] [--only NAME,...] > scenarios.json

A scenario is a server's flags and what its scheduler is sent, step for step (the keys `flags` and `actions` of
the files in sglangtest/sim/testdata/schedules). All scenarios of a kind share their flags, so that one server can be
used for all of them. The kinds are those in which schedulers go wrong: pools so small that requests are retracted,
preemption, pages of several tokens, no prefix cache, decodes that ride in prefills, limits that change.
The same seed gives the same scenarios.
"""
import argparse
import json
import random
import sys

SMALL = ["--chunked-prefill-size", "128", "--max-running-requests", "10", "--schedule-conservativeness", "0.3"]
KINDS = {
    # name: (flags, traits, only)
    "retract": (["--max-total-tokens", "600", *SMALL], {"long"}, None),
    "retract_page16": (["--max-total-tokens", "700", "--page-size", "16", *SMALL], {"long", "shared"}, None),
    "retract_sync_mixed": (["--max-total-tokens", "640", "--disable-overlap-schedule", "--enable-mixed-chunk", *SMALL], {"long"}, None),
    "retract_noradix": (["--max-total-tokens", "600", "--disable-radix-cache", *SMALL], {"long"}, None),
    "retract_mixed_page4": (["--max-total-tokens", "600", "--page-size", "4", "--enable-mixed-chunk", *SMALL], {"long", "shared"}, None),
    "preempt": (["--max-total-tokens", "700", "--max-running-requests", "4", "--chunked-prefill-size", "64", "--schedule-conservativeness", "0.5",
                 "--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "2"], {"long", "priority", "shared"}, None),
    "preempt_noradix_page16": (["--max-total-tokens", "800", "--max-running-requests", "4", "--chunked-prefill-size", "128", "--page-size", "16",
                                "--disable-radix-cache", "--disable-overlap-schedule", "--enable-priority-scheduling",
                                "--schedule-low-priority-values-first"], {"priority"}, None),
    "preempt_lof_mixed": (["--max-total-tokens", "700", "--max-running-requests", "5", "--chunked-prefill-size", "128", "--schedule-policy", "lof",
                           "--enable-mixed-chunk", "--schedule-conservativeness", "0.3", "--enable-priority-scheduling",
                           "--max-queued-requests", "9"], {"long", "priority"}, None),
    "noradix_page16_mixed": (["--max-total-tokens", "900", "--page-size", "16", "--disable-radix-cache", "--enable-mixed-chunk",
                              "--chunked-prefill-size", "192", "--max-running-requests", "12"], set(), None),
    "lpm_page16": (["--max-total-tokens", "700", "--page-size", "16", "--schedule-policy", "lpm", "--disable-overlap-schedule", *SMALL],
                   {"long", "shared"}, None),
    "nochunk_noradix": (["--max-total-tokens", "800", "--chunked-prefill-size", "-1", "--max-prefill-tokens", "250", "--disable-radix-cache",
                         "--schedule-conservativeness", "0.3", "--max-running-requests", "9", "--prefill-max-requests", "3"], {"long"}, None),
    "dfs_mixed": (["--max-total-tokens", "640", "--schedule-policy", "dfs-weight", "--enable-mixed-chunk", *SMALL], {"shared"}, None),
    "slru_page4": (["--max-total-tokens", "700", "--page-size", "4", "--radix-eviction-policy", "slru", "--chunked-prefill-size", "128",
                    "--max-running-requests", "8"], {"shared"}, None),
    "lfu_sync": (["--max-total-tokens", "700", "--radix-eviction-policy", "lfu", "--disable-overlap-schedule", *SMALL], {"long", "shared"}, None),
    "evict_by_priority": (["--max-total-tokens", "800", "--page-size", "16", "--radix-eviction-policy", "priority", "--enable-priority-scheduling",
                           *SMALL], {"long", "shared", "priority"}, None),
    "lof_page64_mixed": (["--max-total-tokens", "1300", "--page-size", "64", "--schedule-policy", "lof", "--enable-mixed-chunk",
                          "--schedule-conservativeness", "0.3", "--chunked-prefill-size", "128", "--max-running-requests", "7"],
                         {"long", "shared"}, None),
    "interval": (["--max-total-tokens", "700", "--prefill-decode-interval", "3", "--disable-overlap-schedule", *SMALL], {"long"}, "0.5.23"),
    "interval_page16_mixed": (["--max-total-tokens", "800", "--page-size", "16", "--prefill-decode-interval", "4",
                               "--prefill-decode-interval-min-bs", "2", "--enable-mixed-chunk", *SMALL], {"shared"}, "0.5.23"),
    "hrrn_retract": (["--max-total-tokens", "600", "--schedule-policy", "hrrn", *SMALL], {"long", "shared"}, "0.5.23"),
    "spf_page16": (["--max-total-tokens", "800", "--page-size", "16", "--schedule-policy", "shortest-prefill-first", *SMALL],
                   {"long", "shared"}, "0.5.23"),
    "priority_retraction": (["--max-total-tokens", "600", "--enable-priority-scheduling", "--disable-priority-preemption", "--retraction-policy",
                             "priority", *SMALL], {"long", "priority"}, "0.5.23"),
}


def value(flags, name, default=None):
    return flags[flags.index(name) + 1] if name in flags else default


def scenario(kind, i, rng):
    flags, traits, only = KINDS[kind]
    pool, most = int(value(flags, "--max-total-tokens")), int(value(flags, "--max-running-requests"))
    page = int(value(flags, "--page-size", "1"))
    limits, aborts, pauses = rng.random() < 0.5, rng.random() < 0.6, rng.random() < 0.15
    exact = rng.choice([0, 0, 0.2, 0.5] if "long" in traits else [0, 0.5, 0.5, 1])  # share of ignore_eos
    actions, at, n = [], 0, 0
    aborted, quoted = set(), set()
    if limits:
        actions.append({"at": 0, "do": "set_limit", "value": most})
    want = rng.randint(12, 26)
    while n < want:
        for _ in range(rng.choice([1, 2, 3, 6, 8] if "long" in traits else [1, 1, 2, 3, 6])):
            if n == want:
                break
            rid = f"r{n:02d}"
            a = {"at": at, "do": "submit", "rid": rid, "segments": []}
            sizes = [(1, 30), (20, 80), (20, 80), (30, 100), (80, 260)] if "long" in traits else [(1, 30), (20, 120), (80, 260)]
            size = rng.randint(*rng.choice(sizes))
            if "shared" in traits and rng.random() < 0.6:
                shared = rng.choice([64, 100, 128, 37])
                a["segments"].append({"seed": 100 + rng.randint(0, 2), "len": shared})
            told = [b for b in actions if b["do"] == "submit" and len(b["segments"]) == 1 and "stop_after" not in b and b["max_new_tokens"] < 40
                    and b["rid"] not in aborted]
            if "shared" in traits and told and rng.random() < 0.2:
                of = rng.choice(told)
                quoted.add(of["rid"])
                a["segments"] = list(of["segments"]) + [{"output_of": of["rid"], "len": max(1, of["max_new_tokens"] // 2)}]
            if rng.random() < 0.05 and a["segments"] and "output_of" not in a["segments"][-1]:
                pass  # exactly the shared prompt
            else:
                a["segments"].append({"seed": 200 + n, "len": size})
            news = [(1, 3), (10, 60), (80, 220), (80, 220), (100, 240)] if "long" in traits else [(1, 3), (4, 40), (40, 70)]
            a["max_new_tokens"] = rng.randint(*rng.choice(news))
            a["ignore_eos"] = rng.random() < exact
            # Nothing behind a prompt that is never admitted would end.
            total = sum(s["len"] for s in a["segments"])
            if total + a["max_new_tokens"] + 3 * page + 8 > pool * 0.9:
                a["segments"] = [{"seed": 200 + n, "len": 1 + size // 3}]
            if "priority" in traits:
                a["priority"] = rng.choice([0, 0, 5, 20, rng.randint(0, 30)])
            if rng.random() < 0.15 and a["max_new_tokens"] >= 2:
                # A stop token counts only if ignore_eos is not set; often it is the last one allowed.
                a["ignore_eos"] = False
                a["stop_after"] = a["max_new_tokens"] if rng.random() < 0.4 else rng.randint(1, a["max_new_tokens"])
            actions.append(a)
            n += 1
        if limits and rng.random() < 0.3 and not any(b["do"] == "set_limit" and b["at"] == at for b in actions):
            # Two in one step would wait for each other: a client sends the second when the first is answered.
            actions.append({"at": at, "do": "set_limit", "value": rng.randint(1, most)})
        if aborts and rng.random() < 0.25:
            rid = f"r{rng.randint(max(0, n - 6), n - 1):02d}"
            if rid not in aborted | quoted:
                aborted.add(rid)
                at += rng.choice([0, 1, 1, 2])
                actions.append({"at": at, "do": "abort", "rid": rid})
        if pauses and rng.random() < 0.12:
            at += 1
            actions += [{"at": at, "do": "pause", "mode": "retract"}, {"at": at, "do": "continue"}]
        at += rng.choice([0, 1, 1, 2, 5, 12, 30])
    if limits and rng.random() < 0.5:
        actions.append({"at": at + 5, "do": "set_limit", "value": most})
    s = {"name": f"{kind}_{i}", "about": "random: bench/schedule/generate.py", "flags": flags, "actions": actions}
    if only:
        s["only"] = only
    return s


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--each", type=int, default=7, help="scenarios of each kind")
    ap.add_argument("--only", help="kinds, separated by commas; default: all")
    args = ap.parse_args()
    kinds = args.only.split(",") if args.only else list(KINDS)
    if unknown := [k for k in kinds if k not in KINDS]:
        sys.exit(f"unknown kinds {unknown}: want some of {', '.join(KINDS)}")
    out = []
    for kind in kinds:
        for i in range(args.each):
            n = args.seed * 1000 + i
            out.append(scenario(kind, n, random.Random(f"{kind} {n}")))
    json.dump(out, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

"""Records what the real parser of one SGLang version makes of the command lines in cases.json.

Run it with a Python that has that SGLang: python record.py. It adds to answers.json, for each case
and for a number of random command lines, the values that differ from the parser's defaults, or the
last line of the refusal. An answer that several versions give is stored once.
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import pathlib
import random
import tempfile

import sglang.version
from sglang.srt.server_args import ServerArgs

HERE = pathlib.Path(__file__).parent

try:
    merger = importlib.import_module("sglang.srt.utils.server_args_config_parser")
except ImportError:
    merger = importlib.import_module("sglang.srt.server_args_config_parser")

VALUES = {
    int: ["0", "1", "-1", "17", " 8 ", "1_000", "x", "1.5", ""],
    float: ["0.5", "1", "-2e-3", "inf", "nan", ".5", "1_0.5", "half"],
    None: ["a", "a b", "-", "--", "-x", "é"],
    str: ["a", "a b", "-1", "", "it's", "-5.5", "-1e5", "--port"],
}


def random_case(parser, rng):
    argv = ["--model-path", "m"]
    for action in rng.sample(parser._actions[1:], rng.randint(1, 5)):
        flag = rng.choice(action.option_strings)
        if rng.random() < 0.3:
            flag = flag[: rng.randint(3, len(flag))]
        pool = list(map(str, action.choices)) if action.choices else VALUES.get(action.type, VALUES[str])
        if isinstance(action.choices, (set, frozenset)):
            pool.sort()
        if rng.random() < 0.1:
            pool = ["nonsense"]
        count = 1 if action.nargs is None else rng.randint(0, 1 if action.nargs in (0, "?") else 3)
        if action.nargs == 0 and rng.random() < 0.8:
            count = 0
        values = [rng.choice(pool) for _ in range(count)]
        if values and rng.random() < 0.3:
            argv += [flag + "=" + values[0]] + values[1:]
        else:
            argv += [flag] + values
    return {"argv": argv}


def answer(parser, case):
    argv = list(case["argv"])
    with tempfile.TemporaryDirectory() as folder:
        if "config" in case:
            path = os.path.join(folder, "c.yaml")
            pathlib.Path(path).write_text(case["config"])
            argv = ["--config" if a == "CONFIG" else a for a in argv]
            argv = [path if a == "FILE" else a for a in argv]
        stderr = io.StringIO()
        try:
            with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
                if "--config" in argv:
                    argv = merger.ConfigArgumentMerger(parser).merge_config_with_args(argv)
                values = vars(parser.parse_args(argv))
        except SystemExit as e:
            if e.code == 0:
                return {"help": True}
            return {"error": stderr.getvalue().rstrip("\n").split("\n")[-1]}
        except Exception as e:
            text = "json" if isinstance(e, json.JSONDecodeError) or type(e).__module__.startswith("yaml") else str(e)
            return {"exception": type(e).__name__, "text": text.replace(folder, "FOLDER")}
    changed = {}
    for action in parser._actions:
        name = action.dest
        if name in ("help", "config"):
            continue
        default = parser.get_default(name)
        if isinstance(default, str) and action.type:
            default = action.type(default)
        if values[name] != default:
            changed[name] = finite(values[name])
    return {"values": changed}


def finite(value):
    """JSON has no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value


def main():
    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    version = sglang.version.__version__
    rng = random.Random(version)
    cases = json.loads((HERE / "cases.json").read_text())
    cases += [random_case(parser, rng) for _ in range(100)]
    file = HERE / "answers.json"
    stored = json.loads(file.read_text()) if file.exists() else []
    for known in stored:
        if version in known["versions"]:
            known["versions"].remove(version)
    for case in cases:
        entry = {**case, **answer(parser, case)}
        same = [k for k in stored if {**k, "versions": None} == {**entry, "versions": None}]
        if same:
            same[0]["versions"].append(version)
        else:
            stored.append({"versions": [version], **entry})
    stored = [k for k in stored if k["versions"]]
    lines = ",\n".join(json.dumps(k, ensure_ascii=False, separators=(",", ":")) for k in stored)
    file.write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()

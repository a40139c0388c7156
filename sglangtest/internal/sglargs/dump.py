"""Records the command line of one SGLang version in args.json, next to this file.

Run it with a Python that has that SGLang, once per version, oldest first:

    python dump.py

A version that the file already has is replaced. What is stored comes from the real parser's
own actions (ServerArgs.add_cli_args); nothing is guessed from the help text but whether a plain
flag calls itself deprecated. Choices that SGLang keeps in a set are sorted.
"""

import argparse
import json
import pathlib
import re

import sglang.version
from sglang.srt.model_executor import cuda_graph_config
from sglang.srt.server_args import ServerArgs

FILE = pathlib.Path(__file__).with_name("args.json")

KINDS = {
    None: "str",
    "str": "str",
    "int": "int",
    "float": "float",
    "loads": "json",
    "json_list_type": "json_list",
    "human_readable_int": "human_int",
    "nullable_str": "nullable_str",
    "parse_cuda_graph_backend_arg": "graph_backend",
    "parse_cuda_graph_config_arg": "graph_config",
}

ACTIONS = {
    "_HelpAction": "help",
    "_StoreAction": "store",
    "_StoreTrueAction": "store_true",
    "BooleanOptionalAction": "boolean_optional",
    "LoRAPathAction": "lora_paths",
    "DeprecatedStoreTrueAction": "store_true",
    "DeprecatedStoreConstAction": "store_const",
    "DeprecatedAliasStoreAction": "store",
    "DeprecatedAction": "none",
}


def entry(action):
    name = type(action).__name__
    out = {
        "flags": action.option_strings,
        "field": action.dest,
        "action": ACTIONS[name],
        "kind": KINDS[getattr(action.type, "__name__", None)],
    }
    if out["action"] in ("store_true", "boolean_optional"):
        out["kind"] = "bool"
    if action.nargs not in (None, 0):
        out["nargs"] = action.nargs
    if action.nargs == 0 and out["action"] == "store_const":
        out["no_value"] = True
    const = getattr(action, "const_value", action.const)
    if const is not None and out["action"] not in ("store_true", "boolean_optional"):
        out["const"] = const
    if action.default is not None and action.default != argparse.SUPPRESS:
        out["default"] = action.default
    if action.required:
        out["required"] = True
    if action.help is argparse.SUPPRESS:
        out["hidden"] = True
    if action.choices is not None:
        ordered = not isinstance(action.choices, (set, frozenset))
        out["choices"] = list(action.choices) if ordered else sorted(action.choices)
    if name.startswith("Deprecated"):
        out["warns"] = True
        out["deprecated"] = True
        if getattr(action, "new_flag", None):
            out["new_flag"] = action.new_flag
        if getattr(action, "error_message", None):
            out["error"] = action.error_message
    elif action.help and re.match(r"\W*deprecated", action.help, re.IGNORECASE):
        out["deprecated"] = True
        new = re.search(r"use (--[\w=-]+)", action.help, re.IGNORECASE)
        if new:
            out["new_flag"] = new.group(1)
    if out["kind"] == "graph_config":
        out["keys"] = {p: list(k) for p, k in cuda_graph_config.ALLOWED_KEYS_PER_PHASE.items()}
    return out


def main():
    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    tables = {}  # version -> entries, in the parser's order
    if FILE.exists():
        stored = json.loads(FILE.read_text())
        choices, args = stored["choices"], stored["args"]
        for table in stored["versions"]:
            entries = [dict(args[i]) for i in table["args"]]
            for e in entries:
                if "choices" in e:
                    e["choices"] = choices[e["choices"]]
            tables[table["version"]] = entries
    tables[sglang.version.__version__] = [entry(a) for a in parser._actions]

    choices, args, versions = [], [], []

    def place(pool, value):
        if value not in pool:
            pool.append(value)
        return pool.index(value)

    for version, entries in tables.items():
        for e in entries:
            if "choices" in e:
                e["choices"] = place(choices, e["choices"])
        versions.append({"version": version, "args": [place(args, e) for e in entries]})

    def lines(items):
        return "[\n" + ",\n".join(json.dumps(i, separators=(",", ":")) for i in items) + "\n]"

    FILE.write_text(
        '{"versions":%s,\n"choices":%s,\n"args":%s}\n' % (lines(versions), lines(choices), lines(args))
    )


if __name__ == "__main__":
    main()

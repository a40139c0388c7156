// Package sglargs knows the command line of the SGLang server: every argument with its type, choices and default, by
// version, and how SGLang parses a command line, with its own words for what is wrong.
//
// The table is args.json, written by dump.py from the real parsers of the versions that Versions lists. To add a
// version, run dump.py with a Python that has it. Parsing follows Python's argparse (3.10 to 3.12), on which
// SGLang's parser is built.
package sglargs

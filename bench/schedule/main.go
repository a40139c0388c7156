// Command schedule replays recorded schedules of real SGLang schedulers in the simulated engine, alone and through its loop,
// and prints, for each, "equal" or the first difference.
//
//	go run ./bench/schedule FILE|FOLDER...
//
// A folder is searched for .json and .json.gz files. The exit status is 1 if anything differs.
package main

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/sim"
)

func main() {
	segments := flag.Bool("segments", false, "give the engine named segments instead of token ids")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: schedule [-segments] FILE|FOLDER...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	files, err := find(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "schedule:", err)
		os.Exit(2)
	}
	var opts []sim.ReplayOption
	if *segments {
		opts = append(opts, sim.ReplaySegments)
	}
	equal, rows := 0, 0
	for _, f := range files {
		g, err := sim.ReadRecording(f)
		if err == nil {
			if err = g.Replay(opts...); err == nil {
				if err = g.Replay(append(opts, sim.ReplayLoop)...); err != nil {
					err = fmt.Errorf("through the loop: %w", err)
				}
			}
		}
		if err != nil {
			fmt.Printf("%s: %v\n", f, err)
			continue
		}
		equal++
		rows += len(g.Trace)
		fmt.Printf("%s: equal (%d rows)\n", f, len(g.Trace))
	}
	fmt.Printf("%d of %d equal, %d rows\n", equal, len(files), rows)
	if equal < len(files) {
		os.Exit(1)
	}
}

func find(args []string) (files []string, err error) {
	for _, a := range args {
		err := filepath.WalkDir(a, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (path == a || strings.HasSuffix(path, ".json") || strings.HasSuffix(path, ".json.gz")) {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(files)
	return files, nil
}

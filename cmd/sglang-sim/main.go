//go:build unix

package main

import (
	"os"

	"github.com/sglangtest/harness/sglangtest/sim/process"
)

func main() { os.Exit(process.Main(os.Args[1:])) }

// Package cli holds what the example programs share: a progress line, signals, exit.
package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// Context returns a context that ends with the first interrupt; the second one kills the program.
func Context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals)
		cancel(fmt.Errorf("stopped by %v", s))
	}()
	return ctx, func() { cancel(nil) }
}

// RunDir returns dir, or if that is empty runs/NAME-TIME.
func RunDir(dir, name string) string {
	if dir != "" {
		return dir
	}
	return filepath.Join("runs", name+"-"+time.Now().Format("20060102-150405"))
}

// Progress returns a function that shows progress on f: as a line that rewrites itself if f is a terminal, or
// else as a line every ten seconds.
func Progress(f *os.File) func(metrics.Progress) {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	var last time.Duration
	return func(p metrics.Progress) {
		done := p.Arrived == p.Planned && p.InFlight == 0
		line := fmt.Sprintf("%5.1f s  %d of %d arrived  %d in flight  %d done  %d failed  %d output tokens",
			p.Elapsed.Seconds(), p.Arrived, p.Planned, p.InFlight, p.Completed, p.Failed, p.OutputTokens)
		switch {
		case terminal && done:
			fmt.Fprintf(f, "\r\x1b[K%s\n", line)
		case terminal:
			fmt.Fprintf(f, "\r\x1b[K%s", line)
		case done || p.Elapsed-last >= 10*time.Second:
			last = p.Elapsed
			fmt.Fprintln(f, line)
		}
	}
}

// Exit prints err and ends the program with status 1, unless err is nil.
func Exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

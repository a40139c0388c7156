// Package cli holds what the example programs share: signals, exit.
package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
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

// Exit prints err, on a line of its own below the line of progress, and ends the program with status 1, unless err is nil.
func Exit(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "\n%v\n", err)
		os.Exit(1)
	}
}

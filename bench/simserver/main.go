// Command simserver serves the simulated engine over HTTP until it is interrupted, so that other clients can be
// run against it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func main() {
	port := flag.Int("port", 30000, "port to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *port); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, port int) error {
	s, err := sim.NewServer(sim.H100Llama8B(), server.Config{Port: port})
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	fmt.Println("simulated SGLang at", s.URL())
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s.Close(stopping)
	fmt.Printf("engine steps late by %+v\n", s.StepLateness())
	return nil
}

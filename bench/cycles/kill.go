//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
)

// states are what a harness says that it is doing.
var states = [...]string{"beginning", "launching", "serving", "stopping"}

// killWithin is the time within which a harness is killed: about as long as it takes to go through its states.
const killWithin = 3 * time.Second

// harness launches two servers, uses them and stops them, until it is killed. The arguments are its version of SGLang, the
// folder of the logs, and its ports.
func harness(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := launcher(args[0], time.Second)
	if err != nil {
		return fail(err)
	}
	m, err := server.NewServerManager(l, server.WithLogFolder(args[1]))
	if err != nil {
		return fail(err)
	}
	var configs []server.Config
	for _, text := range args[2:] {
		port, err := strconv.Atoi(text)
		if err != nil {
			return fail(err)
		}
		configs = append(configs, config(port))
	}
	ctx := context.Background()
	for {
		fmt.Println("launching")
		servers, err := m.LaunchAll(ctx, configs)
		if err != nil {
			return fail(err)
		}
		fmt.Println("serving")
		var wg sync.WaitGroup
		for _, s := range servers {
			wg.Go(func() { _ = ask(s.URL(), 100) }) // the kill can come at any time
		}
		wg.Wait()
		fmt.Println("stopping")
		if err := m.StopAll(ctx); err != nil {
			return fail(err)
		}
	}
}

// kill kills a harness at some moment.
func (b *bench) kill(ctx context.Context, i int) error {
	version := versions[i%len(versions)]
	one, err := b.freePort()
	if err != nil {
		return err
	}
	two, err := b.freePort()
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, exe, "harness", version, b.logs, strconv.Itoa(one), strconv.Itoa(two)) // which kills it when ctx ends
	cmd.Env = append(os.Environ(), asVariable+"="+asHarness)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	after := time.Duration(b.rng.Int64N(int64(killWithin)))
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // it has ended if this fails, which is told below
	defer timer.Stop()
	state := states[0]
	for lines := bufio.NewScanner(out); lines.Scan(); {
		state = lines.Text()
	}
	killed := time.Now()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		return fmt.Errorf("the harness ended by itself while %s: %v", state, err)
	}
	if err := b.check(fmt.Sprintf("kill %d (%s, after %v, while %s)", i, version, after, state), goneLimit, one, two); err != nil {
		return err
	}
	b.rows[state] = append(b.rows[state], row{after, time.Since(killed)})
	return ctx.Err()
}

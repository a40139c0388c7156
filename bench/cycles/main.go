//go:build linux

// Command cycles starts and stops simulated servers as processes, over and over, and kills the program that launched
// them at random moments. Then nothing may be left: no process, no port, no file in /dev/shm, no temporary file. What is left
// is looked for from outside, without the launcher.
//
//	cycles [-cycles 200] [-kills 50] [-seed 1]
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sglangtest/harness/internal/leftover"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim/process"
)

// asVariable makes this program another one: a simulated server, or the harness that is to be killed.
const (
	asVariable  = "SGLANGTEST_CYCLES_AS"
	asSimulated = "simulated"
	asHarness   = "harness"
)

// versions are those whose ends differ, with their neighbours.
var versions = []string{"0.5.15.post1", "0.5.18", "0.5.21", "0.5.23"}

// goneLimit is how long the watchdog of a killed harness may take: it gives each process 30 s to die.
const goneLimit = 45 * time.Second

func main() {
	if status, other := asOther(); other {
		os.Exit(status)
	}
	cycles := flag.Int("cycles", 200, "number of starts and stops")
	kills := flag.Int("kills", 50, "number of harnesses to kill")
	seed := flag.Uint64("seed", 1, "of the moments")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	left, err := run(ctx, os.Stdout, *cycles, *kills, *seed)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || left > 0 {
		os.Exit(1)
	}
}

// asOther runs the other program that the environment asks for.
func asOther() (status int, other bool) {
	switch os.Getenv(asVariable) {
	case asSimulated:
		return process.Main(os.Args[1:]), true
	case asHarness:
		return harness(os.Args[2:]), true
	}
	return 0, false
}

// launcher launches simulated servers whose own waiting times are a twentieth of SGLang's.
func launcher(version string, startup time.Duration) (server.Launcher, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return server.LocalProcess(
		server.WithCommand(exe, "--sim-version", version, "--sim-waits", "0.05", "--sim-startup", startup.String(), "-m", "sglang.launch_server"),
		server.WithEnvironment(map[string]string{asVariable: asSimulated})), nil
}

func config(port int) server.Config {
	return server.Config{ModelPath: "llama", Port: port, EnableMetrics: true}
}

// A bench is one run of this program.
type bench struct {
	watch      *leftover.Watch
	temp, logs string
	rng        *rand.Rand
	left       []string // what was left, each time
	foreign    []*foreigner
	rows       map[string][]row // by kind
}

// A row is what one cycle or kill took.
type row struct{ start, end time.Duration }

// run returns the number of things that were left behind.
func run(ctx context.Context, out io.Writer, cycles, kills int, seed uint64) (left int, err error) {
	folder, err := os.MkdirTemp("", "cycles-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	b := &bench{temp: filepath.Join(folder, "tmp"), logs: filepath.Join(folder, "logs"), rng: rand.New(rand.NewPCG(seed, 0)), rows: map[string][]row{}}
	for _, dir := range []string{b.temp, b.logs} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return 0, err
		}
	}
	b.foreign, err = startForeigners(b.logs)
	defer func() {
		for _, f := range b.foreign {
			f.end()
		}
	}()
	if err != nil {
		return 0, err
	}
	instance := fmt.Sprintf("%08x", b.rng.Uint32()^uint32(os.Getpid()))
	b.watch = leftover.Begin(folder, instance)
	for name, value := range map[string]string{
		"TMPDIR":              b.temp,   // where the launcher makes the folders of servers
		"SGLANG_SIM_INSTANCE": instance, // in the names of their files in /dev/shm
	} {
		before, was := os.LookupEnv(name)
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
		defer func() {
			if was {
				os.Setenv(name, before)
			} else {
				os.Unsetenv(name)
			}
		}()
	}
	began := time.Now()
	for i := range cycles {
		if err := b.cycle(ctx, i); err != nil {
			return len(b.left), fmt.Errorf("cycle %d: %w", i, err)
		}
	}
	fmt.Fprintf(out, "%d starts and stops in %v\n", cycles, time.Since(began).Round(time.Second))
	b.print(out, endings[:], "end", "start p50", "p99", "end p50", "p99")
	began = time.Now()
	for i := range kills {
		if err := b.kill(ctx, i); err != nil {
			return len(b.left), fmt.Errorf("kill %d: %w", i, err)
		}
	}
	fmt.Fprintf(out, "%d harnesses with two servers each killed in %v\n", kills, time.Since(began).Round(time.Second))
	b.print(out, states[:], "killed while", "after p50", "p99", "all gone p50", "p99")
	for _, f := range b.foreign {
		fmt.Fprintf(out, "foreign process %s: alive\n", f.what) // looked at after each
	}
	fmt.Fprintf(out, "left behind: %d\n", len(b.left))
	for _, text := range b.left {
		fmt.Fprintln(out, " ", text)
	}
	return len(b.left), nil
}

// print prints the rows of the given kinds.
func (b *bench) print(out io.Writer, kinds []string, heads ...any) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s\tcount\t%s\t%s\t%s\t%s\t\n", heads...)
	for _, kind := range kinds {
		var starts, ends []time.Duration
		for _, r := range b.rows[kind] {
			starts, ends = append(starts, r.start), append(ends, r.end)
		}
		if len(starts) > 0 {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t\n", kind, len(starts), quantile(starts, 0.5), quantile(starts, 0.99), quantile(ends, 0.5), quantile(ends, 0.99))
		}
	}
	w.Flush()
}

// quantile is the smallest value that is not below the fraction q of all.
func quantile(values []time.Duration, q float64) string {
	slices.Sort(values)
	return fmt.Sprintf("%d ms", values[max(0, int(q*float64(len(values))+0.999999)-1)].Milliseconds())
}

// check notes what is left, once the limit has passed, and ends it so that it counts once. The ports are those that were used.
func (b *bench) check(what string, limit time.Duration, ports ...int) error {
	if err := b.watch.Gone(limit); err != nil {
		left, is := err.(*leftover.Error)
		if !is {
			return err
		}
		for _, p := range left.Processes {
			b.left = append(b.left, fmt.Sprintf("%s: process %d %s", what, p.ID, p.Command))
			_ = b.watch.Kill(p) // it may have ended meanwhile
		}
		for _, path := range left.Shared {
			b.left = append(b.left, what+": "+path)
			_ = os.Remove(path) // as above
		}
	}
	for _, f := range b.foreign {
		if err := f.alive(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	for _, port := range ports {
		l, err := listen(port)
		if err != nil {
			b.left = append(b.left, fmt.Sprintf("%s: port %d: %v", what, port, err))
			continue
		}
		l.Close()
	}
	files, err := os.ReadDir(b.temp)
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(b.temp, f.Name())
		b.left = append(b.left, what+": "+path)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// freePort returns a port below those that Linux gives to outgoing connections.
func (b *bench) freePort() (int, error) {
	for range 1000 {
		port := 20000 + b.rng.IntN(12000)
		if l, err := listen(port); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port")
}

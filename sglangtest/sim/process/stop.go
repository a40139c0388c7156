//go:build unix

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/sim"
)

// The waiting times of SGLang.
const (
	drainPoll     = 5 * time.Second  // sigterm_watchdog
	childPoll     = time.Second      // SubprocessWatchdog
	crashPause    = 5 * time.Second  // before crash diagnostics
	watchdogPause = 5 * time.Second  // from the watchdog's report to SIGQUIT
	releaseLimit  = 15 * time.Second // for schedulers to end
	warmUpPoll    = time.Second
	warmUpTries   = 120
	warmUpLimit   = 600 * time.Second
)

// lateLimit is the lateness of the simulation's answers, at p99, from which the log tells of it.
const lateLimit = 5 * time.Millisecond

// serve is the life of the server from the open socket on.
func (p *mainProc) serve() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	term, interrupt := make(chan os.Signal, 4), make(chan os.Signal, 4)
	signal.Notify(term, syscall.SIGTERM)
	signal.Notify(interrupt, syscall.SIGINT)
	warm := make(chan error, 1)
	if err := p.listen(ctx, warm); err != nil {
		return err
	}
	poll, watch := time.NewTicker(p.scaled(drainPoll)), time.NewTicker(p.scaled(childPoll))
	defer poll.Stop()
	defer watch.Stop()
	draining := false
	w := watcher{since: time.Now()}
	exited := p.sim.Exited()
	for {
		select {
		case err := <-warm:
			if err != nil {
				p.log.logf(failure, "Initialization failed. warmup error: Traceback (most recent call last):\nrequests.exceptions.RequestException: %v", err)
				p.killTree()
			}
			for _, f := range p.faults {
				if f.when == running && !p.early(f) {
					p.plan(f)
				}
			}
		case <-p.quit:
			p.sigquit()
		case <-interrupt:
			p.stopWeb(interrupt)
			p.killChildren()
			return ending(0)
		case <-term:
			if !p.handling.Load() { // uvicorn's own handler is still in place; it raises the signal anew when it has stopped
				p.stopWeb(interrupt)
				p.log.flush()
				p.access.flush()
				signal.Reset(syscall.SIGTERM)
				_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
				select {}
			}
			p.log.logf(warning, "SIGTERM received. signum=None frame=None. Draining requests and shutting down...")
			p.sim.Drain()
			draining = true
		case <-poll.C:
			if !draining {
				continue
			}
			forced := strings.EqualFold(os.Getenv("SGL_FORCE_SHUTDOWN"), "true") || os.Getenv("SGL_FORCE_SHUTDOWN") == "1"
			if forced {
				p.log.logf(failure, "Signal SIGTERM received while force shutdown flag set. Force exiting.")
			} else if rids := p.inFlight(); len(rids) > 0 {
				continue
			}
			p.kids.release(p.scaled(releaseLimit))
			if p.release < v21 {
				p.killTree()
			}
			p.killChildren()
			p.stopWeb(interrupt)
			p.killChildren()
			return ending(0)
		case k := <-p.kids.exits:
			if k.status != 0 && w.crashed == nil {
				w.crashed = k
			}
		case <-watch.C:
			p.look(&w)
		case f := <-p.strikes:
			if err := p.strikeNow(f); err != nil {
				return err
			}
		case <-exited: // a request was one that kills the scheduler, or the HTTP server failed
			exited = nil
			if err := p.sim.Err(); !errors.Is(err, sim.ErrSchedulerDied) {
				return err
			}
			f := fault{frames: "frames-loop", err: "TypeError: '>' not supported between instances of 'str' and 'int'"} // recorded on 0.5.15.post1
			before := ""
			if oom := (*sim.OutOfMemoryError)(nil); errors.As(p.sim.Err(), &oom) {
				// mem_cache/common.py logs it before it raises
				before = fmt.Sprintf("%s\nTry to allocate %d tokens.\nAvailable tokens: %d (available_size=%[3]d + evictable_size=0)\n", oom.Text(), oom.Want, oom.Free)
				f.err = "RuntimeError: " + before
			}
			p.log.flush()
			if err := p.kids.fail(order{Text: f.text(f.frames, p.fill), Before: before}); err != nil {
				return err
			}
		}
	}
}

// inFlight returns the requests that a draining server waits for, and logs them as SGLang does.
func (p *mainProc) inFlight() []string {
	rids := p.sim.InFlight()
	slices.Sort(rids)
	list := make([]any, len(rids))
	for i, r := range rids {
		list[i] = r
	}
	p.log.logf(info, "Gracefully exiting... Remaining number of requests %d. Remaining requests remaining_rids=%s.", len(rids), repr(list))
	return rids
}

// A watcher keeps what the periodic looks compare with.
type watcher struct {
	crashed *proc
	steps   int64
	since   time.Time // of the last step, or of the last time without work
	told    time.Duration
}

// look does what SGLang's watchdogs do, and tells when the simulation itself is late.
func (p *mainProc) look(w *watcher) {
	if k := w.crashed; k != nil {
		p.log.logf(failure, "Subprocess %s (pid=%d) crashed with exit code %d. Triggering SIGQUIT for cleanup...", k.Name, k.cmd.Process.Pid, k.status)
		p.sigquit()
	}
	if n := p.steps.steps.Load(); n != w.steps || !p.engine.hang.Load() || len(p.sim.InFlight()) == 0 {
		w.steps, w.since = n, time.Now()
	} else if limit := time.Duration(p.float("watchdog_timeout") * float64(time.Second)); limit > 0 && time.Since(w.since) > limit {
		w.since = time.Now().Add(time.Hour) // once
		p.strikes <- planned{fault: faultNamed("watchdog")}
	}
	if late := p.sim.StepLateness(); late.P99 > lateLimit && late.P99 > w.told {
		w.told = late.P99
		p.log.logf(warning, "sglang-sim: this host is behind its own simulation: events were late by %v at p50, %v at p99, %v at most, of %d so far", late.P50, late.P99, late.Max, late.Pieces)
	}
}

// sigquit is what the main process does when a child has failed.
func (p *mainProc) sigquit() {
	p.die()
	p.http.frozen.Store(true) // the handler blocks the event loop
	if !p.handling.Load() {
		p.log.logf(failure, "Received sigquit from a child process. It usually means the child failed.")
		p.killTree()
	}
	p.log.logf(failure, "SIGQUIT received. signum=None, frame=None. It usually means one child failed.")
	p.log.logf(info, "Sleeping 5 seconds before crash diagnostics to let GPU activity settle.")
	<-time.After(p.scaled(crashPause))
	if p.kids.doomed {
		<-p.kids.procs[0].done // it ends after its SIGQUIT, in far less time than the pause of SGLang
	}
	alive := slices.ContainsFunc(p.kids.procs, func(k *proc) bool {
		select {
		case <-k.done:
			return false
		default:
			return k.Name != "detokenizer"
		}
	})
	if !alive {
		p.log.logf(failure, "No live scheduler processes found; skipping py-spy and CUDA coredump.")
	}
	p.killTree()
}

// stopWeb is uvicorn's graceful stop: it takes no connections and waits for those that are open, until a (further) SIGINT.
func (p *mainProc) stopWeb(interrupt <-chan os.Signal) {
	p.web.uvicorn(info, "Shutting down")
	if p.http.open.Load() > 0 {
		p.web.uvicorn(info, "Waiting for connections to close. (CTRL+C to force quit)")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() {
		p.sim.Close(ctx)
		close(done)
	}()
	forced := false
	for closed := false; !closed; {
		select {
		case <-done:
			closed = true
		case <-interrupt:
			forced = true
			cancel()
		case <-p.quit:
			p.sigquit()
		case f := <-p.strikes: // whoever asked for it is one of the connections
			if err := p.strikeNow(f); err != nil { // as when its process has ended
				p.log.logf(failure, "%v", err)
			}
		}
	}
	if !forced {
		p.web.uvicorn(info, "Waiting for application shutdown.")
		p.web.uvicorn(info, "Application shutdown complete.")
	}
	p.web.uvicorn(info, "Finished server process [%d]", os.Getpid())
}

// plan lets a fault strike when its time has come. It may be called by any goroutine.
func (p *mainProc) plan(f planned) {
	switch {
	case f.Requests > 0:
		p.http.mu.Lock()
		f.Requests += p.http.requests.Load()
		p.http.counted = append(p.http.counted, f)
		p.http.mu.Unlock()
	case f.After > 0:
		time.AfterFunc(f.After, func() { p.strikes <- f })
	default:
		p.strikes <- f
	}
}

// early reports whether a fault is in place before the readiness line, so that who waits for that finds it: one that goes on
// from readiness, or that counts requests.
func (p *mainProc) early(f planned) bool {
	return f.when == running && (f.Requests > 0 || f.exit == "" && f.After == 0)
}

// planEarly puts those faults in place.
func (p *mainProc) planEarly() error {
	for _, f := range p.faults {
		switch {
		case !p.early(f):
		case f.Requests > 0:
			p.plan(f)
		default:
			if err := p.strike(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// due lets the faults strike that wait for the n-th request.
func (p *mainProc) due(n int64) {
	var now []planned
	p.http.mu.Lock()
	p.http.counted = slices.DeleteFunc(p.http.counted, func(f planned) bool {
		if f.Requests <= n {
			now = append(now, f)
		}
		return f.Requests <= n
	})
	p.http.mu.Unlock()
	for _, f := range now {
		if f.exit != "" && stepFaults[f.name] == nil {
			p.die() // this request is not answered
		}
		p.strikes <- f
	}
}

// clear ends a fault that goes on.
func (p *mainProc) clear(name string) {
	p.http.clear(name)
	switch name {
	case "slow-step":
		p.engine.factor.Store(nil)
		p.engine.more.Store(0)
	case "refuse":
		p.reopen()
	}
}

func (p *mainProc) reopen() {
	if err := p.socket.open(); err != nil {
		p.log.logf(failure, "%v", err)
	}
}

// die makes the engine that of a dead scheduler: it takes no further step.
func (p *mainProc) die() {
	p.engine.hang.Store(true)
	p.steps.dead.Store(true)
}

// stepFaults strike with the result of a step of their kind.
var stepFaults = map[string]func(sim.StepKind) bool{
	"oom-prefill":     func(k sim.StepKind) bool { return k != sim.DecodeStep },
	"no-request-slot": func(k sim.StepKind) bool { return k != sim.DecodeStep },
	"oom-decode":      func(k sim.StepKind) bool { return k == sim.DecodeStep },
	"oom-running":     func(sim.StepKind) bool { return true },
}

// step is called with each step, while the engine waits.
func (p *mainProc) step(kind sim.StepKind) {
	if f := p.armed.Load(); f != nil && stepFaults[f.name](kind) && p.armed.CompareAndSwap(f, nil) {
		p.die()
		f.sprung, f.done = true, nil
		p.strikes <- *f
	}
}

// strikeNow lets a fault happen and lets those go on who wait for it.
func (p *mainProc) strikeNow(f planned) error {
	err := p.strike(f)
	if f.done != nil {
		close(f.done)
	}
	return err
}

// strike lets a fault happen.
func (p *mainProc) strike(f planned) error {
	if stepFaults[f.name] != nil && !f.sprung {
		armed := f
		p.armed.Store(&armed)
		return nil
	}
	switch f.name {
	case "watchdog":
		p.engine.hang.Store(true)
		p.log.flush()
		return p.kids.fail(order{Wait: p.scaled(watchdogPause),
			Report: fmt.Sprintf("Scheduler watchdog timeout (self.watchdog_timeout=%s, self.soft=False)", repr(p.args.Value("watchdog_timeout")))})
	case "scheduler-killed":
		p.die()
		p.kids.signal("scheduler_0", syscall.SIGKILL)
	case "detokenizer-killed":
		p.kids.signal("detokenizer", syscall.SIGKILL)
	case "killed":
		p.log.flush()
		p.access.flush()
		killSelf()
	case "hang":
		p.http.set(f)
		p.engine.hang.Store(true)
	case "slow-step":
		p.http.set(f)
		factor, more, _ := f.slow() // checked when it was planned
		p.engine.factor.Store(&factor)
		p.engine.more.Store(int64(more))
	case "error-rate", "broken-stream":
		p.http.set(f)
	case "refuse":
		p.http.set(f)
		p.socket.refuse()
		if d, err := time.ParseDuration(f.Value); err == nil {
			time.AfterFunc(d, func() { p.clear("refuse") })
		}
	default:
		p.die()
		p.log.flush()
		o := order{Text: f.text(f.frames, p.fill)}
		if name, ok := strings.CutPrefix(p.fill.Replace(f.err), "RuntimeError: "); ok && (f.name == "oom-prefill" || f.name == "oom-decode") {
			o.Before = name // mem_cache/allocation.py logs it before it raises
		}
		return p.kids.fail(o)
	}
	return nil
}

// warmUp sends what SGLang's warm-up thread sends, to whoever has the port, and then says that the server is ready.
func (p *mainProc) warmUp(ctx context.Context, warm chan<- error) {
	warm <- func() error {
		host := p.config.Host
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		base := "http://" + net.JoinHostPort(host, strconv.Itoa(p.socket.port()))
		client := &http.Client{Timeout: warmUpLimit, Transport: &http.Transport{DisableKeepAlives: true}}
		if !p.set("skip_server_warmup") {
			var err error
			for range warmUpTries {
				if err = p.call(ctx, client, http.MethodGet, base+"/model_info", ""); err == nil {
					break
				}
				select {
				case <-time.After(p.scaled(warmUpPoll)):
				case <-ctx.Done():
					return nil
				}
			}
			if err != nil {
				return err
			}
			text := `"The capital city of France is"`
			if n := p.dp(); n > 1 { // one for each data-parallel rank
				text = "[" + strings.Repeat(text+",", n-1) + text + "]"
			}
			if err := p.call(ctx, client, http.MethodPost, base+"/generate", `{"sampling_params":{"temperature":0,"max_new_tokens":8},"text":`+text+`}`); err != nil {
				return err
			}
			select {
			case <-time.After(p.took(warmUp)):
			case <-ctx.Done():
				return nil
			}
		}
		p.sim.Up()
		_ = p.call(ctx, client, http.MethodPost, base+"/freeze_gc", "") // SGLang only warns
		if err := p.planEarly(); err != nil {
			return err
		}
		p.log.logf(info, "The server is fired up and ready to roll!")
		return nil
	}()
}

func (p *mainProc) call(ctx context.Context, client *http.Client, method, url, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	key := p.str("api_key")
	if admin := p.str("admin_api_key"); admin != "" && strings.HasSuffix(url, "/freeze_gc") {
		key = admin
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: status %d", method, url, res.StatusCode)
	}
	return nil
}

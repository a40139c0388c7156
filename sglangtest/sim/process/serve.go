//go:build unix

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// A mainProc is the main process of a simulated server.
type mainProc struct {
	*command
	log    logger   // SGLang's lines, on stderr
	ranks  []logger // those of each data-parallel rank's first scheduler
	web    logger   // uvicorn's, on stderr
	access logger   // uvicorn's access log, on stdout

	kids    children
	files   files
	sim     *sim.Server
	steps   *batches
	engine  *faultyModel
	http    httpFaults
	socket  *listener
	fill    *strings.Replacer // of texts
	quit    chan os.Signal    // SIGQUIT
	strikes chan planned      // faults whose time has come

	handling atomic.Bool             // the handlers of SIGTERM and SIGQUIT are in place: a generation was asked for
	armed    atomic.Pointer[planned] // fault that strikes with the next step of its kind
}

// An ending is a status of the process that was reached on the way.
type ending int

func (e ending) Error() string { return "ends with " + strconv.Itoa(int(e)) }

func newServer(c *command) *mainProc {
	ms := os.Getenv("SGLANG_LOG_MS")
	millis := ms == "1" || strings.EqualFold(ms, "true")
	least := levelOf[c.str("log_level")]
	web := least
	if s := c.str("log_level_http"); s != "" {
		web = levelOf[s]
	}
	stderr := newSink(os.Stderr)
	p := &mainProc{command: c, quit: make(chan os.Signal, 1), strikes: make(chan planned, 64),
		log: logger{stderr, least, millis, ""}, web: logger{stderr, web, false, ""}, access: logger{newSink(os.Stdout), web, false, ""}}
	for d := range p.dp() {
		rank := p.log
		rank.prefix = p.rankPrefix(d, 0)
		p.ranks = append(p.ranks, rank)
	}
	p.kids.exits = make(chan *proc, 16)
	p.files.tmp, p.files.shmDir, p.files.instance = os.TempDir(), c.shm, c.id
	p.fill = strings.NewReplacer("{site}", sitePackages, "{lib}", "/usr/lib/python3.12", "{model}", c.model, "{mem_fraction}", repr(c.resolved("mem_fraction_static")),
		"{free}", "Available tokens: 0 (available_size=0 + evictable_size=0)\n")
	return p
}

// run is the life of the server. It returns the exit status, unless the process kills itself.
func (p *mainProc) run() int {
	err := p.start()
	if err == nil {
		err = p.serve()
	}
	var e ending
	if !errors.As(err, &e) {
		e = 1
		p.log.raw("sglang-sim: " + err.Error() + "\n")
	}
	p.leave()
	return int(e)
}

// leave is what a process that ends by returning does. Real files of SGLang stay, but for one folder.
func (p *mainProc) leave() {
	p.kids.kill()
	if err := p.files.end(); err != nil {
		p.log.raw("sglang-sim: " + err.Error() + "\n")
	}
	p.log.close()
	p.access.close()
}

// killTree is kill_process_tree(os.getpid()): everything dies of SIGKILL, this process last.
func (p *mainProc) killTree() {
	p.log.logf(info, "kill_process_tree called: parent_pid=%d, include_parent=True, pid=%[1]d", os.Getpid())
	p.kids.kill()
	p.log.flush()
	p.access.flush()
	killSelf()
}

// killChildren is kill_process_tree(os.getpid(), include_parent=False), with which the launcher's finally ends.
func (p *mainProc) killChildren() {
	p.log.logf(info, "kill_process_tree called: parent_pid=%d, include_parent=False, pid=%[1]d", os.Getpid())
	p.kids.kill()
}

// start goes through everything up to the open socket.
func (p *mainProc) start() error {
	signal.Notify(p.quit, syscall.SIGQUIT)
	if err := p.wait(p.took(resolve)); err != nil {
		return err
	}
	if f := p.missing(); f != nil {
		return p.raise(f)
	}
	if err := p.build(); err != nil {
		return err
	}
	for _, f := range p.faults { // what they do to the times was not measured
		p.sim.NoteFault(f.String())
	}
	p.log.logf(info, "%s", p.serverArgs(p.sim.EngineConfig()))
	label := p.sim.Simulation()
	p.log.logf(info, "sglang-sim: simulated by profile %s, %s; known error: %s; memory sizes in these lines are those of a recorded start on an H100",
		label.Profile, label.Calibrated, label.KnownError)
	if flags := p.ineffective(p.sim.Unsimulated()); len(flags) > 0 {
		p.log.logf(warning, "sglang-sim: accepted but not simulated: %s", strings.Join(flags, " "))
	}
	for _, w := range p.args.Warnings {
		p.log.logf(warning, "%s", w)
	}
	if err := p.spawn(); err != nil {
		return err
	}
	if err := p.wait(p.took(spawn)); err != nil {
		return err
	}
	if err := p.until(p.kids.ready, nil); err != nil {
		return err
	}
	if p.kids.failed != nil {
		return p.kids.failed
	}
	return p.load()
}

// missing returns the fault of the model's configuration, if it cannot be read.
func (p *mainProc) missing() *fault {
	if f := p.asks(resolving); f != nil {
		return f.fault
	}
	path := p.model
	if strings.HasPrefix(path, "/") || strings.HasPrefix(path, "./") || strings.HasPrefix(path, "../") {
		if _, err := os.Stat(path); err != nil {
			return &faults[0]
		}
	}
	return nil
}

// raise prints a traceback of the main process. It ends with status 1.
func (p *mainProc) raise(f *fault) error {
	frames := f.frames
	if frames == "missing" {
		switch {
		case strings.HasPrefix(p.model, "/"):
			frames = "missing-path"
		case p.release >= v23:
			frames = "missing-hub-0.5.23"
		default:
			frames = "missing-hub-0.5.15"
		}
	}
	text := f.text(frames, p.fill)
	if f.err != "" && f.frames == "missing" { // the recorded last line gives way
		i := strings.LastIndex(text[:len(text)-len(p.fill.Replace(f.err))], "\nOSError: ")
		text = text[:i+1] + p.fill.Replace(f.err)
	}
	// From 0.5.21 on the configuration is read within the try whose finally kills the children.
	if p.release >= v21 || f.frames == "frames-main" {
		p.killChildren()
	}
	p.log.raw(strings.TrimRight(text, "\n") + "\n")
	return ending(1)
}

// build makes the simulated server. It does not listen yet.
func (p *mainProc) build() error {
	p.engine = &faultyModel{StepModel: p.profile.Model}
	p.profile.Model = p.engine
	graph := "cuda"
	if p.device() != "cuda" {
		graph = p.device()
	}
	p.steps = &batches{graphs: fmt.Sprintf("%s graph: %s", graph, repr(p.graphsOf("decode"))), interval: max(1, p.num("decode_log_interval")), strike: p.step}
	for _, log := range p.ranks {
		p.steps.ranks = append(p.steps.ranks, rankBatches{log: log, prefill: time.Now(), decode: time.Now()})
	}
	p.http.start(p)
	opts := []sim.Option{sim.WithVersion(p.version), sim.WithStarting(), sim.WithObserver(p.steps), sim.WithMiddleware(p.http.wrap)}
	opts = append(opts, sim.WithServerArgs(p.reported()))
	p.socket = newListener(net.JoinHostPort(p.config.Host, strconv.Itoa(p.config.Port)))
	opts = append(opts, sim.WithListener(p.socket))
	folder := p.config.TokenizerPath
	if _, err := os.Stat(filepath.Join(folder, "tokenizer.json")); err == nil {
		if p.sim, err = sim.NewServer(p.profile, p.config, append(opts, sim.WithTokenizer(folder))...); err == nil {
			return nil
		}
		p.log.logf(warning, "sglang-sim: texts are counted by a rule, not by the tokenizer in %s: %v", folder, err)
	}
	var err error
	p.sim, err = sim.NewServer(p.profile, p.config, opts...)
	return err
}

// spawn starts the processes of the tree and makes the files, unless there shall be none.
func (p *mainProc) spawn() error {
	socket := ""
	if p.command.files {
		errs := []error{p.files.ipcFiles()}
		if p.set("enable_metrics") {
			errs = append(errs, p.files.metricsDir())
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		socket = p.files.ipc[2]
	}
	var ranks []job
	for d := range p.dp() {
		for t := range p.tp() {
			prefix := p.rankPrefix(d, t)
			ranks = append(ranks, job{Title: "sglang::scheduler" + strings.ReplaceAll(prefix, " ", "_"), Name: fmt.Sprintf("scheduler_%d", t),
				Prefix: prefix, Millis: p.log.millis})
		}
	}
	if p.dp() > 1 {
		ranks = []job{{Title: "sglang::data_parallel_controller", Name: "scheduler_0", Ranks: ranks}}
	}
	orphan := false
	if f := p.asks(setting); f != nil {
		orphan = f.name == "orphan-detokenizer"
	}
	ranks = append(ranks, job{Title: "sglang::detokenizer", Name: "detokenizer", Socket: socket, Orphan: orphan})
	return p.kids.spawn(ranks)
}

// dp and tp are the numbers of data-parallel and tensor-parallel ranks.
func (p *mainProc) dp() int { return max(1, p.num("dp_size")) }
func (p *mainProc) tp() int { return max(1, p.num("tp_size")) }

// rankPrefix is what the log lines of a scheduler begin with (scheduler.py, configure_scheduler_process).
func (p *mainProc) rankPrefix(d, t int) string {
	prefix := ""
	if p.dp() > 1 {
		prefix += fmt.Sprintf(" DP%d", d)
	}
	if p.tp() > 1 {
		prefix += fmt.Sprintf(" TP%d", t)
	}
	return prefix
}

// say logs what each data-parallel rank logs.
func (p *mainProc) say(format string, args ...any) {
	for i := range p.ranks {
		p.ranks[i].logf(info, format, args...)
	}
}

// fail makes the scheduler fail if a fault of that moment was asked for, and waits for the end.
func (p *mainProc) fail(m moment) error {
	f := p.asks(m)
	if f == nil {
		return nil
	}
	p.log.flush()
	if err := p.kids.fail(order{Text: f.text(f.frames, p.fill)}); err != nil {
		return err
	}
	return p.wait(time.Hour)
}

// wait lets a part of the start pass.
func (p *mainProc) wait(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	return p.until(nil, t.C)
}

// until waits for either. SIGQUIT and the death of a scheduler end it.
func (p *mainProc) until(done <-chan struct{}, passed <-chan time.Time) error {
	for {
		select {
		case <-done:
			return nil
		case <-passed:
			return nil
		case <-p.quit:
			p.log.logf(failure, "Received sigquit from a child process. It usually means the child failed.")
			p.killTree()
		case k := <-p.kids.exits:
			if k.Name == "detokenizer" || p.kids.doomed {
				continue // SGLang looks at the schedulers only; one that was ordered to fail has sent SIGQUIT before it ended
			}
			f := *faultNamed("killed-at-load")
			f.err = strings.Replace(f.err, "(exit code: -9)", fmt.Sprintf("(exit code: %d)", k.status), 1)
			f.err = strings.Replace(f.err, "Rank 0", "Rank "+strings.TrimPrefix(k.Name, "scheduler_"), 1)
			return p.raise(&f)
		}
	}
}

func faultNamed(name string) *fault {
	for i := range faults {
		if faults[i].name == name {
			return &faults[i]
		}
	}
	panic("sglang-sim: no fault " + name)
}

// listen opens the socket and warms the server up, as uvicorn and its lifespan do.
func (p *mainProc) listen(ctx context.Context, warm chan error) error {
	if p.asks(binding) != nil {
		other, err := sim.NewServer(sim.H100Llama8B(), server.Config{Host: p.config.Host, Port: p.config.Port})
		if err == nil {
			err = other.Start(ctx)
		}
		if err != nil {
			return err
		}
		done, cancel := context.WithCancel(ctx)
		cancel()
		defer other.Close(done)
	}
	err := p.socket.open()
	if err != nil {
		go p.warmUp(ctx, warm)
		if !errors.Is(err, syscall.EADDRINUSE) {
			p.web.uvicorn(failure, "%v", err)
		} else {
			p.web.uvicorn(failure, "[Errno 98] error while attempting to bind on address ('%s', %d): address already in use", p.config.Host, p.config.Port)
		}
		p.web.uvicorn(info, "Waiting for application shutdown.")
		if err := <-warm; err != nil { // the lifespan joins the warm-up thread, which talks to the other server
			p.killTree()
		}
		p.web.uvicorn(info, "Application shutdown complete.")
		p.web.flush()
		p.killChildren()
		return ending(3)
	}
	if err := p.sim.Start(ctx); err != nil {
		return err
	}
	p.web.uvicorn(info, "Uvicorn running on %s (Press CTRL+C to quit)", "http://"+net.JoinHostPort(p.config.Host, strconv.Itoa(p.socket.port())))
	go p.warmUp(ctx, warm)
	return nil
}

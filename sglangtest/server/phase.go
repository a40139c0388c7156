package server

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A PhaseName names a part of a server's start-up.
type PhaseName string

// The phases in order. Each ends where the next one begins, so their durations add up to the whole start-up; one that
// a server does not have, or does not log, is left out. With several ranks the first one to begin counts.
const (
	PhaseImport  PhaseName = "import"          // Python imports and reads the arguments, until it logs them
	PhaseSpawn   PhaseName = "spawn"           // the child processes start and import in turn
	PhaseWeights PhaseName = "load weights"    // progress in checkpoint shards
	PhaseKV      PhaseName = "allocate KV"     // the KV cache and the other memory pools
	PhaseGraphs  PhaseName = "capture graphs"  // CUDA graphs; progress in graphs of one kind
	PhaseHTTP    PhaseName = "open HTTP"       // caches and the HTTP server, until its socket is open
	PhaseWarmup  PhaseName = "warm up"         // SGLang's own first request
	PhaseCheck   PhaseName = "check readiness" // this package's: HTTP answers, facts, a generation of one token
)

// A Phase is one part of a start-up.
type Phase struct {
	Name     PhaseName
	Start    time.Time
	Duration time.Duration // 0 while it lasts
	Done, Of int           // progress, such as shards; Of is 0 if there is none
}

// String describes it, such as "load weights: 12.3s" or "load weights: 3 of 8".
func (p Phase) String() string {
	switch {
	case p.Duration > 0:
		return fmt.Sprintf("%s: %v", p.Name, p.Duration.Round(time.Millisecond))
	case p.Of > 0:
		return fmt.Sprintf("%s: %d of %d", p.Name, p.Done, p.Of)
	}
	return string(p.Name)
}

// phaseBegins says which text in the log begins which phase: lines of SGLang 0.5.15 to 0.5.23 (model_runner.py,
// bootstrap.py, cuda_graph_setup.py, scheduler.py, http_server.py) and of uvicorn.
var phaseBegins = []struct {
	name PhaseName
	text string
}{
	{PhaseImport, ""},
	{PhaseSpawn, "server_args="},
	{PhaseWeights, "Load weight begin"},
	{PhaseKV, "Load weight end"},
	{PhaseGraphs, "CUDA graph begin"},
	{PhaseHTTP, "max_total_num_tokens="},
	{PhaseWarmup, "Uvicorn running on"},
	{PhaseCheck, "The server is fired up and ready to roll"},
}

// progress is how tqdm shows it: "1/4 [00:00<00:02, 1.1it/s]".
var progress = regexp.MustCompile(`\b(\d+)/(\d+) \[`)

// A startup follows a server's log from its launch to its readiness.
type startup struct {
	phases    []Phase
	at        int // index in phaseBegins of the last phase
	capturing bool
	bound     bool // the socket is open
	settings  settings
}

func newStartup(begin time.Time) *startup {
	return &startup{phases: []Phase{{Name: PhaseImport, Start: begin}}}
}

// read takes a line and returns the phase that it ends, or whose progress it shows; nil if it does neither.
func (s *startup) read(at time.Time, text string) *Phase {
	s.settings.read(text)
	switch {
	case strings.Contains(text, "CUDA graph begin"):
		s.capturing = true
	case strings.Contains(text, "CUDA graph end"):
		s.capturing = false
	case strings.Contains(text, "Uvicorn running on"):
		s.bound = true
	}
	for i := len(phaseBegins) - 1; i > s.at; i-- {
		if strings.Contains(text, phaseBegins[i].text) {
			return s.enter(i, at)
		}
	}
	last := &s.phases[len(s.phases)-1]
	if last.Name != PhaseWeights && last.Name != PhaseGraphs {
		return nil
	}
	m := progress.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	done, _ := strconv.Atoi(m[1]) // an overlong number reads as a large one
	of, _ := strconv.Atoi(m[2])
	if done == last.Done && of == last.Of {
		return nil
	}
	last.Done, last.Of = done, of
	p := *last
	return &p
}

func (s *startup) enter(i int, at time.Time) *Phase {
	ended := s.end(at)
	s.at = i
	s.phases = append(s.phases, Phase{Name: phaseBegins[i].name, Start: at})
	return ended
}

// end ends the last phase.
func (s *startup) end(at time.Time) *Phase {
	last := &s.phases[len(s.phases)-1]
	last.Duration = max(at.Sub(last.Start), 1) // 0 would say that it lasts
	p := *last
	return &p
}

// last returns the phase that the server is in.
func (s *startup) last() Phase { return s.phases[len(s.phases)-1] }

// settings are values in force that decide what fits into memory, and which ports are used; 0 if not known.
type settings struct {
	maxRunning, chunk float64
	fraction          float64

	port, ncclPort, bootstrapPort int
	distInit                      int // port of dist_init_addr
	dpSize                        int
	dpAttention                   bool
}

var (
	fractionSetting = regexp.MustCompile(`\bmem_fraction_static'?[=:] ?([0-9.]+)`)
	chunkSetting    = regexp.MustCompile(`\bchunked_prefill_size'?[=:] ?(-?[0-9]+)`)
	runningSetting  = regexp.MustCompile(`\bmax_running_requests'?[=:] ?([0-9]+)`)

	portSetting        = regexp.MustCompile(`\bport'?[=:] ?([0-9]+)`)
	ncclPortSetting    = regexp.MustCompile(`\bnccl_port'?[=:] ?([0-9]+)`)
	bootstrapSetting   = regexp.MustCompile(`\bdisaggregation_bootstrap_port'?[=:] ?([0-9]+)`)
	distInitSetting    = regexp.MustCompile(`\bdist_init_addr'?[=:] ?'[^']*:([0-9]+)'`)
	dpSizeSetting      = regexp.MustCompile(`\bdp_size'?[=:] ?([0-9]+)`)
	dpAttentionSetting = regexp.MustCompile(`\benable_dp_attention'?[=:] ?True`)
)

// read takes the values from the lines that tell them: "server_args=…" and "max_total_num_tokens=…".
func (s *settings) read(text string) {
	if !strings.Contains(text, "server_args=") && !strings.Contains(text, "max_total_num_tokens=") {
		return
	}
	take := func(into *float64, r *regexp.Regexp) {
		if m := r.FindStringSubmatch(text); m != nil {
			if v, err := strconv.ParseFloat(m[1], 64); err == nil {
				*into = v
			}
		}
	}
	take(&s.fraction, fractionSetting)
	take(&s.chunk, chunkSetting)
	take(&s.maxRunning, runningSetting)
	for into, r := range map[*int]*regexp.Regexp{&s.port: portSetting, &s.ncclPort: ncclPortSetting, &s.bootstrapPort: bootstrapSetting,
		&s.distInit: distInitSetting, &s.dpSize: dpSizeSetting} {
		if m := r.FindStringSubmatch(text); m != nil {
			*into, _ = strconv.Atoi(m[1]) // an overlong number reads as a large one
		}
	}
	s.dpAttention = s.dpAttention || dpAttentionSetting.MatchString(text)
}

// fill takes from cfg what the log did not tell.
func (s *settings) fill(cfg Config) {
	if s.fraction == 0 {
		s.fraction = cfg.MemFractionStatic
	}
	if s.chunk == 0 {
		s.chunk = float64(cfg.ChunkedPrefillSize)
	}
	if s.maxRunning == 0 {
		s.maxRunning = float64(cfg.MaxRunningRequests)
	}
	if s.port == 0 {
		s.port = cfg.Port
	}
}

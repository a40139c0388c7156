package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A hostLauncher starts processes on this host. They need a port beforehand, and have GPUs of their own.
type hostLauncher interface{ onThisHost() }

// Ports for servers are chosen below those that Linux gives to outgoing connections (32768 and up), which could take
// them while the model loads, and apart from each other: with data-parallel attention a server uses those from
// port+233 on as well.
const (
	firstPort   = 20000
	lastPort    = 32000
	portsApart  = 300
	portTries   = 1000
	gpuTimeout  = 10 * time.Second // for the inventory to answer
	memoryShare = 0.9              // of a GPU that must be free if the config does not fix its fraction
)

// A reservation is what a server has of its manager: its name, its port and its GPUs.
type reservation struct {
	name   string
	config Config // with port and GPUs
	stops  int    // calls of StopAll before it
	used   map[int]int64
	gpus   []GPU // of the host, as they were; nil without an inventory
	m      *ServerManager
}

// reserve names a server and gives it its port and its GPUs, or says why it cannot have them. A port is given once,
// whatever the host: "localhost", "127.0.0.1" and "0.0.0.0" may be one.
func (m *ServerManager) reserve(ctx context.Context, cfg Config) (*reservation, error) {
	_, onHost := m.launcher.(hostLauncher)
	_, running := m.launcher.(*attached)
	var gpus []GPU
	if onHost && m.gpus != nil {
		ctx, cancel := context.WithTimeout(ctx, gpuTimeout)
		defer cancel()
		var err error
		if gpus, err = m.gpus.GPUs(ctx); err != nil {
			return nil, fmt.Errorf("server: list GPUs: %w", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &reservation{name: "server-" + strconv.Itoa(m.named), config: cfg.clone(), stops: m.stops, used: map[int]int64{}, gpus: gpus, m: m}
	if onHost {
		if err := r.takeGPUs(gpus); err != nil {
			return nil, err
		}
	}
	if !running && (cfg.Port != 0 || onHost) {
		if err := r.takePort(); err != nil {
			r.forget()
			return nil, err
		}
	}
	m.named++
	return r, nil
}

// release gives port and GPUs back.
func (r *reservation) release() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.forget()
}

func (r *reservation) forget() {
	if r.m.portOf[r.config.Port] == r.name {
		delete(r.m.portOf, r.config.Port)
	}
	for _, id := range r.config.GPUs {
		if r.m.gpuOf[id] == r.name {
			delete(r.m.gpuOf, id)
		}
	}
}

// again takes the same port and GPUs for a restart, which may have been given back meanwhile.
func (r *reservation) again() error {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	var faults []error
	for _, id := range r.config.GPUs {
		if other, taken := r.m.gpuOf[id]; taken && other != r.name {
			faults = append(faults, &GPUError{Index: id, By: other})
		}
	}
	err := errors.Join(faults...)
	if err == nil {
		err = r.takePort()
	}
	if err != nil {
		r.forget()
		return err
	}
	if _, onHost := r.m.launcher.(hostLauncher); onHost {
		for _, id := range r.config.GPUs {
			r.m.gpuOf[id] = r.name
		}
	}
	return nil
}

// portOf returns the port of a base URL.
func portOf(base string) (int, error) {
	u, err := url.Parse(base)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(u.Port())
}

func (r *reservation) takePort() error {
	if r.config.Port != 0 {
		addr := r.config.address()
		if other, taken := r.m.portOf[r.config.Port]; taken && other != r.name {
			return &PortInUseError{Address: addr, By: other}
		}
		if err := listens(addr); err != nil {
			return &PortInUseError{Address: addr, Err: err}
		}
		r.m.portOf[r.config.Port] = r.name
		return nil
	}
	var last error
	for range portTries {
		cfg := r.config
		cfg.Port = firstPort + rand.IntN(lastPort-firstPort)
		near := false
		for other := range r.m.portOf {
			near = near || max(other-cfg.Port, cfg.Port-other) < portsApart
		}
		if near {
			continue
		}
		if last = listens(cfg.address()); last == nil {
			r.config = cfg
			r.m.portOf[cfg.Port] = r.name
			return nil
		}
	}
	return fmt.Errorf("server: no free port among %d to %d: %w", firstPort, lastPort, errors.Join(last, errors.New("choose one in the config")))
}

// listens reports why nothing can listen on addr.
func listens(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		err = l.Close()
	}
	return err
}

// takeGPUs gives the server the GPUs of its config or, with an inventory, free ones. All faults are reported together.
func (r *reservation) takeGPUs(gpus []GPU) error {
	need := memoryShare
	why := "and a server without mem_fraction_static wants 90 % of them"
	if f := r.config.MemFractionStatic; f > 0 {
		need, why = f, fmt.Sprintf("and mem_fraction_static %.3g needs more", f)
	}
	check := func(id int) error {
		if other, taken := r.m.gpuOf[id]; taken && other != r.name {
			return &GPUError{Index: id, By: other}
		}
		if r.m.gpus == nil {
			return nil
		}
		i := slices.IndexFunc(gpus, func(g GPU) bool { return g.Index == id })
		if i < 0 {
			ids := make([]int, len(gpus))
			for i, g := range gpus {
				ids[i] = g.Index
			}
			return &GPUError{Index: id, Reason: fmt.Sprintf("does not exist: this host has %v", ids)}
		}
		g := gpus[i]
		if free := g.MemoryTotal - g.MemoryUsed; float64(free) < need*float64(g.MemoryTotal) {
			return &GPUError{Index: id, Reason: fmt.Sprintf("has only %s of its %s free, %s: end what else uses it, or choose another", gib(free), gib(g.MemoryTotal), why)}
		}
		r.used[id] = g.MemoryUsed
		return nil
	}
	if len(r.config.GPUs) == 0 && r.m.gpus != nil {
		var faults []error
		var ids []int
		ours, err := visible(gpus)
		if err != nil {
			return err
		}
		for _, g := range ours {
			if err := check(g.Index); err != nil {
				faults = append(faults, err)
			} else if ids = append(ids, g.Index); len(ids) == r.config.gpuCount() {
				break
			}
		}
		if len(ids) < r.config.gpuCount() {
			few := fmt.Errorf("server: %d GPUs are needed and %d of %d are free", r.config.gpuCount(), len(ids), len(ours))
			return errors.Join(append([]error{few}, faults...)...)
		}
		r.config.GPUs = ids
	}
	var faults []error
	for i, id := range r.config.GPUs {
		if slices.Contains(r.config.GPUs[:i], id) {
			faults = append(faults, &GPUError{Index: id, Reason: "is named twice"})
		} else if err := check(id); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	for _, id := range r.config.GPUs {
		r.m.gpuOf[id] = r.name
	}
	return nil
}

// visible returns those of the GPUs that this program may use: by CUDA_VISIBLE_DEVICES a batch system gives a job its GPUs.
func visible(gpus []GPU) ([]GPU, error) {
	const variable = "CUDA_VISIBLE_DEVICES"
	list, set := os.LookupEnv(variable)
	if !set {
		return gpus, nil
	}
	var ours []GPU
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "" || name == "-1" { // CUDA looks no further
			break
		}
		i := slices.IndexFunc(gpus, func(g GPU) bool {
			return strconv.Itoa(g.Index) == name || strings.HasPrefix(name, "GPU-") && strings.HasPrefix(g.UUID, name)
		})
		if i < 0 {
			return nil, fmt.Errorf("server: %s is %q, and %q is no GPU of this host: name the GPUs in the config", variable, list, name)
		}
		ours = append(ours, gpus[i])
	}
	return ours, nil
}

func gib(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }

const (
	memoryTimeout  = 30 * time.Second // for the memory of a GPU to be free again after its processes have gone
	memoryInterval = 200 * time.Millisecond
	memorySlack    = 512 << 20 // bytes by which the use of others may have grown meanwhile
)

// memoryBack waits until the GPUs use no more memory than before the server, and returns what is still in use
// otherwise, or "".
func (r *reservation) memoryBack(ctx context.Context) (string, error) {
	if len(r.used) == 0 {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, memoryTimeout)
	defer cancel()
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		gpus, err := r.m.gpus.GPUs(ctx)
		if err != nil {
			return "", err
		}
		held := ""
		for _, g := range gpus {
			if before, ours := r.used[g.Index]; ours && g.MemoryUsed > before+memorySlack {
				held = fmt.Sprintf("GPU %d: %s in use, %s before the server was launched", g.Index, gib(g.MemoryUsed), gib(before))
			}
		}
		if held == "" {
			return "", nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return held, nil
		}
	}
}

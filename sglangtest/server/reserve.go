package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ports for servers are chosen below those that Linux gives to outgoing connections (32768 and up), which
// could take them while the model loads, and apart from each other: with data-parallel attention a server
// uses those from port+233 on as well.
const (
	firstPort   = 20000
	lastPort    = 32000
	portsApart  = 300
	portTries   = 1000
	memoryShare = 0.9 // of a GPU that must be free if the config does not fix its fraction
)

// reserveTimeout bounds what a launcher and an inventory are asked before a launch.
const reserveTimeout = 10 * time.Second

// A place is a port or a GPU of a host.
type place struct {
	host string
	n    int
}

// A reservation is what a server has of its manager: its name, its port and its GPUs.
type reservation struct {
	name   string
	config Config // with port and GPUs
	host   *Host  // nil: the launcher does not tell, and nothing is reserved
	stops  int    // calls of StopAll before it
	used   map[int]int64
	gpus   []GPU // of the host, as they were; nil without an inventory
	m      *ServerManager
}

// reserve names a server and gives it its port and its GPUs, or says why it cannot have them.
func (m *ServerManager) reserve(ctx context.Context, cfg Config) (*reservation, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, reserveTimeout, fmt.Errorf("not within %v: %w", reserveTimeout, context.DeadlineExceeded))
	defer cancel()
	hosts := []*Host{nil}
	if reserver, ok := m.launcher.(Reserver); ok {
		list, err := ask(ctx, "the launcher's Hosts", func(ctx context.Context) ([]Host, error) { return reserver.Hosts(ctx, cfg.clone()) }, nil)
		if err == nil && len(list) == 0 {
			err = errors.New("the launcher names none for this config")
		}
		if err != nil {
			return nil, fmt.Errorf("server: list hosts: %w", err)
		}
		hosts = hosts[:0]
		for i := range list {
			hosts = append(hosts, &list[i])
		}
	}
	m.reserving.Lock()
	defer m.reserving.Unlock()
	var faults []error
	for _, host := range hosts {
		m.mu.Lock()
		r := &reservation{name: "server-" + strconv.Itoa(m.named), config: cfg.clone(), host: host, stops: m.stops, used: map[int]int64{}, m: m}
		m.mu.Unlock()
		err := r.take(ctx)
		if err == nil {
			m.mu.Lock()
			m.named++
			m.mu.Unlock()
			return r, nil
		}
		faults = append(faults, err)
	}
	return nil, errors.Join(faults...)
}

// take takes what the server needs of its host: all, or nothing.
func (r *reservation) take(ctx context.Context) error {
	if r.host == nil {
		return nil
	}
	inventory, err := r.m.inventoryFor(*r.host)
	if err != nil {
		return err
	}
	if r.host.GPUs {
		if inventory != nil {
			if r.gpus, err = ask(ctx, "the inventory", inventory.GPUs, nil); err != nil {
				return fmt.Errorf("server: list GPUs%s: %w", on(r.host.Name), err)
			}
		}
		if err := r.takeGPUs(inventory != nil); err != nil {
			return err
		}
	}
	if r.config.Port != 0 || r.host.Port {
		if err := r.takePort(ctx); err != nil {
			r.release()
			return err
		}
	}
	return nil
}

// release gives port and GPUs back.
func (r *reservation) release() {
	if r.host == nil {
		return
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	forget := func(given map[place]string, n int) {
		if at := (place{r.host.Name, n}); given[at] == r.name {
			delete(given, at)
		}
	}
	forget(r.m.portOf, r.config.Port)
	for _, id := range r.config.GPUs {
		forget(r.m.gpuOf, id)
	}
}

// owner returns which server a place was given to; "" if none or this one.
func (r *reservation) owner(given map[place]string, n int) string {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if by := given[place{r.host.Name, n}]; by != r.name {
		return by
	}
	return ""
}

// own gives a place to the server.
func (r *reservation) own(given map[place]string, n int) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	given[place{r.host.Name, n}] = r.name
}

// again takes the same port and GPUs for a restart, which may have been given back meanwhile.
func (r *reservation) again(ctx context.Context) error {
	if r.host == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, reserveTimeout, fmt.Errorf("not within %v: %w", reserveTimeout, context.DeadlineExceeded))
	defer cancel()
	r.m.reserving.Lock()
	defer r.m.reserving.Unlock()
	var faults []error
	if r.host.GPUs {
		for _, id := range r.config.GPUs {
			if other := r.owner(r.m.gpuOf, id); other != "" {
				faults = append(faults, &GPUError{Host: r.host.Name, Index: id, By: other})
			}
		}
	}
	err := errors.Join(faults...)
	if err == nil && (r.config.Port != 0 || r.host.Port) {
		err = r.takePort(ctx)
	}
	if err != nil {
		r.release()
		return err
	}
	if r.host.GPUs {
		for _, id := range r.config.GPUs {
			r.own(r.m.gpuOf, id)
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

// portInUse says that the server cannot have its port.
func (r *reservation) portInUse(by string, err error) *PortInUseError {
	e := &PortInUseError{Address: r.config.address(), By: by, Err: err}
	if r.host != nil {
		e.Host = r.host.Name
	}
	return e
}

// canListen reports why nothing can listen on the server's address, as far as its host tells.
func (r *reservation) canListen(ctx context.Context) error {
	if r.host.CanListen == nil {
		return nil
	}
	return order(ctx, "the host's CanListen", func(ctx context.Context) error { return r.host.CanListen(ctx, r.config.address()) })
}

// takePort takes the port of the config, or a free one. A port of a host is given once, whatever the address:
// "localhost", "127.0.0.1" and "0.0.0.0" may be one.
func (r *reservation) takePort(ctx context.Context) error {
	if r.config.Port != 0 {
		if other := r.owner(r.m.portOf, r.config.Port); other != "" {
			return r.portInUse(other, nil)
		}
		if err := r.canListen(ctx); err != nil {
			return r.portInUse("", err)
		}
		r.own(r.m.portOf, r.config.Port)
		return nil
	}
	var last error
	for range portTries {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if r.near(port) {
			continue
		}
		r.config.Port = port
		if last = r.canListen(ctx); last == nil {
			r.own(r.m.portOf, port)
			return nil
		}
		r.config.Port = 0
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("server: no free port%s among %d to %d: %w", on(r.host.Name), firstPort, lastPort, errors.Join(last, errors.New("choose one in the config")))
}

// near reports whether a port is too close to that of another server.
func (r *reservation) near(port int) bool {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	for other := range r.m.portOf {
		if other.host == r.host.Name && max(other.n-port, port-other.n) < portsApart {
			return true
		}
	}
	return false
}

// takeGPUs gives the server the GPUs of its config or, where they are listed, free ones. All faults are
// reported together.
func (r *reservation) takeGPUs(listed bool) error {
	gpus, host := r.gpus, r.host.Name
	need := memoryShare
	why := "and a server without mem_fraction_static wants 90 % of them"
	if f := r.config.MemFractionStatic; f > 0 {
		need, why = f, fmt.Sprintf("and mem_fraction_static %.3g needs more", f)
	}
	check := func(id int) error {
		if other := r.owner(r.m.gpuOf, id); other != "" {
			return &GPUError{Host: host, Index: id, By: other}
		}
		if !listed {
			return nil
		}
		i := slices.IndexFunc(gpus, func(g GPU) bool { return g.Index == id })
		if i < 0 {
			ids := make([]int, len(gpus))
			for i, g := range gpus {
				ids[i] = g.Index
			}
			return &GPUError{Host: host, Index: id, Reason: fmt.Sprintf("does not exist: %s has %v", hostName(host), ids)}
		}
		g := gpus[i]
		if free := g.MemoryTotal - g.MemoryUsed; float64(free) < need*float64(g.MemoryTotal) {
			return &GPUError{Host: host, Index: id, Reason: fmt.Sprintf("has only %s of its %s free, %s: end what else uses it, or choose another", gib(free), gib(g.MemoryTotal), why)}
		}
		r.used[id] = g.MemoryUsed
		return nil
	}
	if len(r.config.GPUs) == 0 && listed {
		var faults []error
		var ids []int
		ours := gpus
		if host == "" {
			var err error
			if ours, err = visible(gpus); err != nil {
				return err
			}
		}
		for _, g := range ours {
			if err := check(g.Index); err != nil {
				faults = append(faults, err)
			} else if ids = append(ids, g.Index); len(ids) == r.config.gpuCount() {
				break
			}
		}
		if len(ids) < r.config.gpuCount() {
			few := fmt.Errorf("server: %d GPUs%s are needed and %d of %d are free", r.config.gpuCount(), on(host), len(ids), len(ours))
			return errors.Join(append([]error{few}, faults...)...)
		}
		r.config.GPUs = ids
	}
	var faults []error
	for i, id := range r.config.GPUs {
		if slices.Contains(r.config.GPUs[:i], id) {
			faults = append(faults, &GPUError{Host: host, Index: id, Reason: "is named twice"})
		} else if err := check(id); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	for _, id := range r.config.GPUs {
		r.own(r.m.gpuOf, id)
	}
	return nil
}

// visible returns those of the GPUs that this program may use: by CUDA_VISIBLE_DEVICES a batch system gives a
// job its GPUs.
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
func (r *reservation) memoryBack() (string, error) {
	if len(r.used) == 0 {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), memoryTimeout)
	defer cancel()
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		gpus, err := ask(ctx, "the inventory", r.m.gpus[r.host.Name].GPUs, nil)
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

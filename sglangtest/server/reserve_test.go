package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// onHost makes a launcher that the manager gives ports and GPUs.
type onHost struct{ launcherFunc }

func (onHost) Hosts(context.Context, Config) ([]Host, error) {
	here := LocalHost()
	here.Port, here.GPUs = true, true
	return []Host{here}, nil
}

// gpuList is a GPUInventory.
type gpuList struct {
	mu   sync.Mutex
	list []GPU
	err  error
}

func (g *gpuList) GPUs(context.Context) ([]GPU, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.list), g.err
}

func (g *gpuList) use(index int, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list[index].MemoryUsed = bytes
}

const gibibyte = 1 << 30

func fourGPUs() *gpuList {
	g := &gpuList{}
	for i := range 4 {
		g.list = append(g.list, GPU{Index: i, UUID: "GPU-" + string(rune('a'+i)), MemoryTotal: 80 * gibibyte, MemoryUsed: gibibyte})
	}
	return g
}

func newHostManager(tb testing.TB, w *playback, opts ...Option) *ServerManager {
	return newManager(tb, onHost{func(context.Context, Spec) (Instance, error) { return newInstance(), nil }}, w, opts...)
}

func TestGPUsAreExclusive(t *testing.T) {
	m := newHostManager(t, newPlayback(t).tiny())
	first := launch(t, m, Config{GPUs: []int{0, 1}})
	_, err := m.Launch(t.Context(), Config{GPUs: []int{1, 2, 0}})
	require.EqualError(t, err, "server: GPU 1 is taken by server-0: choose others\nserver: GPU 0 is taken by server-0: choose others")
	var taken *GPUError
	require.ErrorAs(t, err, &taken)
	require.Equal(t, "server-0", taken.By)
	launch(t, m, Config{GPUs: []int{2}})
	require.NoError(t, first.Stop(t.Context()))
	again := launch(t, m, Config{GPUs: []int{1}})
	for _, change := range []func(*Config) error{
		func(cfg *Config) error { cfg.GPUs = []int{3}; return nil },
		func(cfg *Config) error { cfg.GPUs[0] = 3; return nil },
		func(cfg *Config) error { cfg.Port++; return nil },
		func(cfg *Config) error { cfg.APIKey = "new"; return nil },
	} {
		require.ErrorContains(t, again.Restart(t.Context(), change), "host, port, GPUs and API keys stay as they are")
		require.Equal(t, StateReady, again.State())
	}
	require.NoError(t, again.Restart(t.Context(), nil))
	require.Equal(t, []int{1}, again.Config().GPUs)
	launch(t, m, Config{GPUs: []int{3}})
}

func TestGPUInventory(t *testing.T) {
	gpus := fourGPUs()
	gpus.use(1, 70*gibibyte)
	m := newHostManager(t, newPlayback(t).tiny(), WithGPUs(gpus))
	_, err := m.Launch(t.Context(), Config{GPUs: []int{7, 1, 0}})
	require.EqualError(t, err, "server: GPU 7 does not exist: this host has [0 1 2 3]\n"+
		"server: GPU 1 has only 10.0 GiB of its 80.0 GiB free, and a server without mem_fraction_static wants 90 % of them: end what else uses it, or choose another")
	launch(t, m, Config{GPUs: []int{1}, MemFractionStatic: 0.1})
	require.Equal(t, []int{0, 2}, launch(t, m, Config{TPSize: 2}).Config().GPUs, "free ones are chosen")
	_, err = m.Launch(t.Context(), Config{DPSize: 2})
	require.EqualError(t, err, "server: 2 GPUs are needed and 1 of 4 are free\nserver: GPU 0 is taken by server-1: choose others\n"+
		"server: GPU 1 is taken by server-0: choose others\nserver: GPU 2 is taken by server-1: choose others")
	require.Equal(t, []int{3}, launch(t, m, Config{}).Config().GPUs)

	gpus.err = errors.New("no driver")
	_, err = m.Launch(t.Context(), Config{})
	require.EqualError(t, err, "server: list GPUs: no driver")
}

// A job of a batch system has some of the GPUs, and leaves those of others alone.
func TestGPUsOfThisJob(t *testing.T) {
	for list, want := range map[string]string{
		"2": "[2]", "3,1": "[3 1]", " 3 , 2": "[3 2]", "1,-1,3": "[1]", "GPU-c": "[2]",
		"":      "server: 1 GPUs are needed and 0 of 0 are free",
		"MIG-7": `server: CUDA_VISIBLE_DEVICES is "MIG-7", and "MIG-7" is no GPU of this host: name the GPUs in the config`,
	} {
		t.Setenv("CUDA_VISIBLE_DEVICES", list)
		cfg := Config{TPSize: max(1, strings.Count(want, " ")+1)}
		if !strings.HasPrefix(want, "[") {
			cfg.TPSize = 1
		}
		s, err := newHostManager(t, newPlayback(t).tiny(), WithGPUs(fourGPUs())).Launch(t.Context(), cfg)
		if err != nil {
			require.EqualError(t, err, want, list)
			continue
		}
		require.Equal(t, want, fmt.Sprint(s.Config().GPUs))
		require.NoError(t, s.Stop(t.Context()))
	}
}

func TestGPUMemoryIsBackBeforeStopReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpus, seen := fourGPUs(), &events{}
		m := newHostManager(t, newPlayback(t).tiny(), WithGPUs(gpus), WithEvents(seen.add))
		s := launch(t, m, Config{GPUs: []int{2}})
		gpus.use(2, 70*gibibyte)
		time.AfterFunc(2900*ms, func() { gpus.use(2, gibibyte) })
		start := time.Now()
		require.NoError(t, s.Stop(context.Background()))
		require.Equal(t, 3*time.Second, time.Since(start))
		require.NotContains(t, seen.all(), "warning")

		s = launch(t, m, Config{GPUs: []int{3}})
		gpus.use(3, 70*gibibyte)
		start = time.Now()
		require.NoError(t, s.Stop(context.Background()))
		require.Equal(t, memoryTimeout, time.Since(start))
		require.Contains(t, seen.all(), "server-1 warning memory is not free again: GPU 3: 70.0 GiB in use, 1.0 GiB before the server was launched")
	})
}

func TestChosenPorts(t *testing.T) {
	m := newHostManager(t, newPlayback(t).tiny())
	var ports []int
	for range 10 {
		ports = append(ports, launch(t, m, Config{}).Config().Port)
	}
	slices.Sort(ports)
	for i, port := range ports {
		require.GreaterOrEqual(t, port, firstPort)
		require.Less(t, port, lastPort)
		if i > 0 {
			require.GreaterOrEqual(t, port-ports[i-1], portsApart)
		}
	}
}

func TestLaunchAll(t *testing.T) {
	t.Run("in parallel, so many at a time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newManager(t, launcherFunc(func(context.Context, Spec) (Instance, error) {
				time.Sleep(time.Second)
				return newInstance(), nil
			}), newPlayback(t).tiny())
			start := time.Now()
			servers, err := m.LaunchAll(t.Context(), make([]Config, 5), WithParallel(2))
			require.NoError(t, err)
			require.Equal(t, 3*time.Second, time.Since(start))
			for i, s := range servers {
				require.Equal(t, "server-"+strconv.Itoa(i), s.Name())
			}
			_, err = m.LaunchAll(t.Context(), make([]Config, 5))
			require.NoError(t, err)
			require.Equal(t, 4*time.Second, time.Since(start))
			require.NoError(t, m.StopAll(context.Background()))
		})
	})
	crash := errors.New("no such model")
	third := launcherFunc(func(_ context.Context, spec Spec) (Instance, error) {
		if spec.Name == "server-2" {
			return nil, crash
		}
		return newInstance(), nil
	})
	t.Run("one fails, and the others are stopped", func(t *testing.T) {
		m := newManager(t, third, newPlayback(t).tiny())
		servers, err := m.LaunchAll(t.Context(), make([]Config, 4), WithParallel(1))
		require.Empty(t, servers)
		require.ErrorIs(t, err, crash)
		require.ErrorIs(t, err, errOtherFailed)
		for _, s := range m.Servers() {
			require.Equal(t, StateStopped, s.State())
		}
	})
	t.Run("one fails, and the others are kept", func(t *testing.T) {
		m := newManager(t, third, newPlayback(t).tiny())
		servers, err := m.LaunchAll(t.Context(), make([]Config, 4), WithOthersKept())
		require.EqualError(t, err, "server: launch server-2: no such model")
		require.Nil(t, servers[2])
		for _, i := range []int{0, 1, 3} {
			require.Equal(t, StateReady, servers[i].State())
		}
		require.NoError(t, m.StopAll(context.Background()))
	})
	t.Run("what is refused is refused before the first launch", func(t *testing.T) {
		m := newManager(t, onHost{func(context.Context, Spec) (Instance, error) {
			t.Error("launched")
			return nil, crash
		}}, newPlayback(t).tiny())
		_, err := m.LaunchAll(t.Context(), []Config{{GPUs: []int{0}}, {GPUs: []int{0}}, {Port: -1}})
		require.ErrorContains(t, err, "GPU 0 is taken by server-0")
		require.ErrorContains(t, err, "server: config 2:\nport: -1")
		require.Empty(t, m.gpuOf)
		require.Empty(t, m.portOf)
		_, err = m.LaunchAll(t.Context(), nil, WithParallel(0))
		require.EqualError(t, err, "server: launch: 0 servers at a time: want at least 1, or leave WithParallel out for all at once")
	})
}

// The states of a server are told in the order in which it had them, whatever goroutine told them.
func TestEventOrder(t *testing.T) {
	for range 200 {
		i := newInstance()
		seen := &events{}
		m := newManager(t, launches(i), newPlayback(t).tiny(), WithEvents(seen.add))
		s, err := m.Launch(t.Context(), Config{})
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() { done <- s.Stop(context.Background()) }()
		i.end(errors.New("crashed"))
		require.NoError(t, <-done)
		states := seen.all()
		require.Equal(t, []string{"server-0 state starting", "server-0 state ready"}, states[:2])
		last := "server-0 state failed"
		if s.Err() == nil { // the stop came first
			last = "server-0 state stopped"
		}
		require.Equal(t, last, states[len(states)-1])
		if len(states) == 4 {
			require.Equal(t, "server-0 state stopping", states[2])
		} else {
			require.Len(t, states, 3)
		}
	}
}

func TestStream(t *testing.T) {
	var got []string
	inside := false
	q := newStream(func(e Event) {
		require.False(t, inside, "one at a time")
		inside = true
		got = append(got, e.Message)
		inside = false
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				q.emit(Event{Message: "x"})
			}
		})
	}
	wg.Wait()
	require.Len(t, got, 800)
}

func TestVersionOfServer(t *testing.T) {
	for version, want := range map[string]string{
		"0.5.15.post1": "", "0.5.23": "",
		"0.5.30":  `server-0 warning SGLang 0.5.30 is newer than the known versions`,
		"0.4.6":   `server-0 warning SGLang 0.4.6 is older than the known versions`,
		"unknown": `server-0 warning the server's version is not known: "unknown" is not a version`,
	} {
		seen := &events{}
		w := newPlayback(t).tiny().on("GET /server_info", answer{status: 200, body: `{"version":"` + version + `"}`})
		launch(t, newManager(t, launches(newInstance()), w, WithEvents(seen.add)), Config{})
		all := seen.all()
		if want == "" {
			require.Len(t, all, 2)
		} else {
			require.Contains(t, all[1], want)
		}
	}
	w := newPlayback(t).tiny().on("GET /server_info", answer{status: 200, body: `{"version":"0.2.9"}`})
	_, err := newManager(t, launches(newInstance()), w).Launch(t.Context(), Config{})
	var old *VersionError
	require.ErrorAs(t, err, &old)
	require.Equal(t, "0.2.9", old.Version)
}

func TestStopDuringRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newHostManager(t, newPlayback(t).tiny())
		s := launch(t, m, Config{GPUs: []int{0}})
		m.launcher = onHost{func(context.Context, Spec) (Instance, error) {
			time.Sleep(time.Second)
			return newInstance(), nil
		}}
		done := make(chan error, 1)
		go func() { done <- s.Restart(context.Background(), nil) }()
		time.Sleep(500 * ms)
		require.EqualError(t, s.Restart(context.Background(), nil), "server: server-0: restart: it is being restarted already")
		require.NoError(t, s.Stop(context.Background()))
		require.EqualError(t, <-done, "server: server-0: restart: the server was stopped")
		require.Equal(t, StateStopped, s.State())
		require.Empty(t, m.gpuOf)
		require.Empty(t, m.portOf)

		m.launcher = onHost{func(context.Context, Spec) (Instance, error) { return nil, errors.New("no such model") }}
		require.EqualError(t, s.Restart(context.Background(), nil), "server: server-0: restart: no such model")
		require.Empty(t, m.gpuOf)
		require.EqualError(t, s.Restart(context.Background(), func(cfg *Config) error { cfg.ContextLength = -1; return nil }),
			"server: server-0: restart: config:\ncontext_length: -1; want ≥ 1")
	})
	s := launch(t, newManager(t, Attach("http://recorded"), newPlayback(t).tiny()), Config{})
	for _, err := range []error{s.Kill(t.Context()), s.Suspend(t.Context()), s.Resume(t.Context())} {
		require.ErrorIs(t, err, errNotOffered)
	}
	require.ErrorIs(t, s.Restart(t.Context(), nil), errRanBefore)
}

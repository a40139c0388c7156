package server

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestManagerFaultsTogether(t *testing.T) {
	_, err := NewServerManager(nil, WithReadyTimeout(0), WithEvents(nil))
	require.EqualError(t, err, "server: manager: launcher is nil\nready timeout 0s: want > 0\nevents: the function is nil")
}

func TestConfigFaultsTogether(t *testing.T) {
	m := newManager(t, launcherFunc(func(context.Context, Spec) (Instance, error) {
		t.Error("launched")
		return nil, errors.New("launched")
	}), nil)
	_, err := m.Launch(context.Background(), Config{Port: 70000, MaxRunningRequests: -1, MaxTotalTokens: -1, MaxQueuedRequests: -1, ContextLength: -1,
		MemFractionStatic: 1.5, ChunkedPrefillSize: -2, MaxPrefillTokens: -1, ScheduleConservativeness: -0.5, GPUs: []int{0, -1}})
	require.EqualError(t, err, `server: config:
port: 70000; want 1 to 65535, or 0 for a free one
max_running_requests: -1; want ≥ 1
max_total_tokens: -1; want ≥ 1
max_queued_requests: -1; want ≥ 1
context_length: -1; want ≥ 1
mem_fraction_static: 1.5; want between 0 and 1
chunked_prefill_size: -2; want ≥ 1, or -1 for no chunking
max_prefill_tokens: -1; want ≥ 1
schedule_conservativeness: -0.5; want > 0
gpus[1]: -1; want ≥ 0`)
	require.NoError(t, Config{}.Validate())
	require.NoError(t, Config{Port: 1, ChunkedPrefillSize: -1, MemFractionStatic: 0.9, ScheduleConservativeness: 1}.Validate())
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestPortInUse(t *testing.T) {
	t.Run("by another process", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		_, err = newManager(t, onHost{launches(newInstance()).(launcherFunc)}, newPlayback(t).tiny()).Launch(context.Background(), Config{Port: l.Addr().(*net.TCPAddr).Port})
		var in *PortInUseError
		require.ErrorAs(t, err, &in)
		require.Empty(t, in.By)
		require.Equal(t, l.Addr().String(), in.Address)
		require.ErrorContains(t, err, "choose another port, or 0 for a free one")
	})
	t.Run("by a server of the manager", func(t *testing.T) {
		m := newManager(t, onHost{func(context.Context, Spec) (Instance, error) { return newInstance(), nil }}, newPlayback(t).tiny())
		port := freePort(t)
		first := launch(t, m, Config{Port: port})
		_, err := m.Launch(context.Background(), Config{Port: port, Host: "localhost"})
		var in *PortInUseError
		require.ErrorAs(t, err, &in)
		require.Equal(t, "server-0", in.By)
		require.NoError(t, first.Stop(context.Background()))
		second := launch(t, m, Config{Port: port})
		require.Equal(t, "server-1", second.Name(), "a refused launch uses up no name")
	})
	t.Run("given back when a launch fails or the server ends by itself", func(t *testing.T) {
		port, fail := freePort(t), errors.New("no such model")
		i := newInstance()
		results := []func() (Instance, error){
			func() (Instance, error) { return nil, fail },
			func() (Instance, error) { return i, nil },
			func() (Instance, error) { return newInstance(), nil },
		}
		m := newManager(t, onHost{func(context.Context, Spec) (Instance, error) {
			next := results[0]
			results = results[1:]
			return next()
		}}, newPlayback(t).tiny())
		_, err := m.Launch(context.Background(), Config{Port: port})
		require.ErrorIs(t, err, fail)
		require.EqualError(t, err, "server: launch server-0: no such model")
		s := launch(t, m, Config{Port: port})
		i.end(errors.New("crashed"))
		<-s.Exited()
		launch(t, m, Config{Port: port})
	})
}

func TestLife(t *testing.T) {
	var m *ServerManager
	seen := &events{}
	w := newPlayback(t).tiny()
	m = newManager(t, launcherFunc(func(_ context.Context, spec Spec) (Instance, error) { return newInstance(), nil }), w, WithEvents(func(e Event) {
		for _, s := range m.Servers() { // an event may look at the servers
			s.State()
		}
		seen.add(e)
	}))
	s := launch(t, m, Config{})
	require.Equal(t, StateReady, s.State())
	require.Equal(t, "http://instance", s.URL())
	require.Equal(t, []*Server{s}, m.Servers())
	select {
	case <-s.Exited():
		t.Fatal("it has not ended")
	default:
	}
	require.NoError(t, s.Stop(context.Background()))
	<-s.Exited()
	require.Equal(t, StateStopped, s.State())
	require.NoError(t, s.Err())
	require.NoError(t, s.Stop(context.Background()), "again")
	require.Equal(t, []string{"server-0 state starting", "server-0 state ready", "server-0 state stopping", "server-0 state stopped"}, seen.all())
	require.Equal(t, []*Server{s}, m.Servers(), "stopped ones included")
}

func TestCrash(t *testing.T) {
	i := newInstance()
	s := launch(t, newManager(t, launches(i), newPlayback(t).tiny()), Config{})
	crash := errors.New("signal 9")
	i.end(crash)
	<-s.Exited()
	require.Equal(t, StateFailed, s.State())
	require.Equal(t, crash, s.Err())
	require.NoError(t, s.Stop(context.Background()))
	require.Equal(t, StateFailed, s.State(), "a stop does not hide it")
}

// A slow instance needs a second to stop.
type slow struct{ *instance }

func (s slow) Stop(context.Context) error {
	time.Sleep(time.Second)
	s.end(nil)
	return nil
}

type stubborn struct{ *instance }

func (s stubborn) Stop(context.Context) error { return errors.New("no permission") }

func TestStopAll(t *testing.T) {
	t.Run("in parallel, and again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newManager(t, launcherFunc(func(context.Context, Spec) (Instance, error) { return slow{newInstance()}, nil }), newPlayback(t).tiny())
			for range 5 {
				_, err := m.Launch(context.Background(), Config{})
				require.NoError(t, err)
			}
			start := time.Now()
			require.NoError(t, m.StopAll(context.Background()))
			require.Equal(t, time.Second, time.Since(start))
			for _, s := range m.Servers() {
				require.Equal(t, StateStopped, s.State())
			}
			require.NoError(t, m.StopAll(context.Background()))
		})
	})
	t.Run("one fails", func(t *testing.T) {
		bad := stubborn{newInstance()}
		list := []Instance{newInstance(), bad, newInstance()}
		m := newManager(t, launcherFunc(func(context.Context, Spec) (Instance, error) {
			i := list[0]
			list = list[1:]
			return i, nil
		}), newPlayback(t).tiny())
		for range 3 {
			_, err := m.Launch(context.Background(), Config{})
			require.NoError(t, err)
		}
		require.EqualError(t, m.StopAll(context.Background()), "server: stop server-1: no permission")
		states := []State{}
		for _, s := range m.Servers() {
			states = append(states, s.State())
		}
		require.Equal(t, []State{StateStopped, StateStopping, StateStopped}, states)
		bad.end(nil)
		<-m.Servers()[1].Exited()
	})
	t.Run("while one gets ready", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := newInstance()
			m := newManager(t, launches(i), newPlayback(t).tiny().on("GET /ready", answer{status: 503}))
			time.AfterFunc(time.Second, func() { m.StopAll(context.Background()) })
			_, err := m.Launch(context.Background(), Config{})
			require.EqualError(t, err, "server: launch server-0: the server was stopped")
			require.Empty(t, m.Servers())
		})
	})
	t.Run("while the launcher works", func(t *testing.T) {
		i := newInstance()
		var m *ServerManager
		m = newManager(t, launcherFunc(func(context.Context, Spec) (Instance, error) { return i, m.StopAll(context.Background()) }), newPlayback(t).tiny())
		_, err := m.Launch(context.Background(), Config{})
		require.EqualError(t, err, "server: launch server-0: the server was stopped")
		require.Len(t, i.stops, 1)
	})
}

func TestFailedLaunchThatCannotBeStopped(t *testing.T) {
	i := stubborn{newInstance()}
	m := newManager(t, launches(i), newPlayback(t).on("GET /ready", answer{status: 403}))
	_, err := m.Launch(context.Background(), Config{})
	require.EqualError(t, err, "server: launch server-0: GET /ready: HTTP status 403: set the server's key with WithAPIKey\nserver: stop server-0: no permission")
	require.Len(t, m.Servers(), 1, "it may still run")
	require.ErrorContains(t, m.StopAll(context.Background()), "no permission")
	i.end(nil)
	<-m.Servers()[0].Exited()
}

func TestConcurrentUse(t *testing.T) {
	m := newManager(t, launcherFunc(func(context.Context, Spec) (Instance, error) { return newInstance(), nil }), newPlayback(t).tiny().on("GET /v1/loads", answer{status: 200, body: `{"loads":[{}]}`}))
	done := make(chan string)
	for range 8 {
		go func() {
			s, err := m.Launch(context.Background(), Config{})
			if err != nil {
				done <- err.Error()
				return
			}
			go s.Stop(context.Background())
			_, _ = s.Loads(context.Background())
			s.Info()
			<-s.Exited()
			done <- s.Name()
		}()
	}
	var names []string
	for range 8 {
		names = append(names, <-done)
	}
	slices.Sort(names)
	require.Equal(t, []string{"server-0", "server-1", "server-2", "server-3", "server-4", "server-5", "server-6", "server-7"}, names)
	require.NoError(t, m.StopAll(context.Background()))
}

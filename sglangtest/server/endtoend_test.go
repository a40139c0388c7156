package server_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func TestSimulatedServer(t *testing.T) {
	ctx := context.Background()
	profile := sim.H100Llama8B()
	m, err := server.NewServerManager(sim.Launcher(profile))
	require.NoError(t, err)
	s, err := m.Launch(ctx, server.Config{ServedModelName: "llama", MaxRunningRequests: 64, MaxTotalTokens: 20000, ContextLength: 4096})
	require.NoError(t, err)
	defer m.StopAll(ctx)

	info := s.Info()
	require.Equal(t, sim.Version, info.Version)
	require.Equal(t, []any{"llama", "llama", 4096, 20000, 64, 1}, []any{info.ServedModelName, info.ServedModelName, info.ContextLength, info.MaxTotalTokens, info.MaxRunningRequests, info.DPSize})
	require.Equal(t, profile.Name+" with max_total_tokens 20000 (profile: 410620), context_length 4096 (profile: 131072), max_running_requests 64 (profile: 256)",
		info.Simulation.Profile)
	require.Contains(t, info.Simulation.KnownError, "not measured with ")
	require.Contains(t, info.Simulation.KnownError, profile.KnownError)

	for i, limit := range []int{64, 8, 64} {
		u, err := s.UpdateParam(ctx, server.ParamMaxRunningRequests, limit)
		require.NoError(t, err)
		require.Equal(t, limit, u.ReadBack)
		require.Equal(t, []int{64, 64, 8}[i], u.Previous)
		require.False(t, u.Accepted.Before(u.Asked) || u.Verified.Before(u.Accepted))
	}

	loads, err := s.Loads(ctx)
	require.NoError(t, err)
	require.NotNil(t, loads[0].Simulated)
	require.Less(t, loads[0].Age, time.Second)
	require.EqualValues(t, 1, *loads[0].PrefilledTokens, "of the request that showed its readiness")
	loads[0].Simulated, loads[0].Age, loads[0].PrefilledTokens = nil, 0, nil
	require.Equal(t, []server.Load{{MaxTotalTokens: 20000}}, loads)

	// A request that runs until it is aborted is seen in the load and makes a flush wait.
	answered := make(chan error, 1)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(s.URL()+"/generate", "application/json", strings.NewReader(
		`{"rid": "long", "input_ids": [1, 2, 3], "stream": true, "sampling_params": {"max_new_tokens": 4000}}`))
	require.NoError(t, err)
	first := make([]byte, 1)
	_, err = io.ReadFull(resp.Body, first) // so the request has been admitted
	require.NoError(t, err)
	go func() {
		defer resp.Body.Close()
		_, err := io.Copy(io.Discard, resp.Body)
		answered <- err
	}()
	sample, err := s.Sampler().Sample(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1, sample[metrics.NumRunning])
	require.Contains(t, sample, metrics.GenThroughput)
	busy, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, s.FlushCache(busy), "the server did not become idle")
	require.NoError(t, s.Abort(ctx, "long"))
	require.NoError(t, <-answered)
	require.NoError(t, s.FlushCache(ctx))

	require.NoError(t, s.Stop(ctx))
	_, err = s.Loads(ctx)
	require.Error(t, err)
	l, err := net.Listen("tcp", strings.TrimPrefix(s.URL(), "http://"))
	require.NoError(t, err, "its port is free")
	l.Close()
}

func TestSimulatedPort(t *testing.T) {
	ctx := context.Background()
	m, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()))
	require.NoError(t, err)
	defer m.StopAll(ctx)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	_, err = m.Launch(ctx, server.Config{Port: port})
	require.ErrorAs(t, err, new(*server.PortInUseError))
	l.Close()
	for range 2 { // the port of a stopped server can be had again
		s, err := m.Launch(ctx, server.Config{Port: port})
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("http://127.0.0.1:%d", port), s.URL())
		_, err = m.Launch(ctx, server.Config{Port: port})
		require.ErrorContains(t, err, "is the port of "+s.Name())
		require.NoError(t, s.Stop(ctx))
	}
}

// A simulation says so also to a client that knows nothing but its URL.
func TestAttachToSimulation(t *testing.T) {
	ctx := context.Background()
	profile := sim.H100Llama8B()
	host, err := sim.NewServer(profile, server.Config{ServedModelName: "llama", MaxRunningRequests: 32})
	require.NoError(t, err)
	require.NoError(t, host.Start(ctx))
	defer host.Close(ctx)

	m, err := server.NewServerManager(server.Attach(host.URL()))
	require.NoError(t, err)
	s, err := m.Launch(ctx, server.Config{ServedModelName: "llama", MaxRunningRequests: 32})
	require.NoError(t, err)
	label := host.Simulation()
	require.Equal(t, &label, s.Info().Simulation)
	require.NoError(t, s.Stop(ctx))
	require.Equal(t, server.StateStopped, s.State())

	again, err := m.Launch(ctx, server.Config{})
	require.NoError(t, err, "a server that was only attached to goes on")
	require.NoError(t, again.Stop(ctx))

	_, err = m.Launch(ctx, server.Config{MaxRunningRequests: 64})
	require.ErrorContains(t, err, "max_running_requests: the running server has 32, not 64")
}

package server_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// attachReal attaches to the real server, which other tests use as well.
func attachReal(t *testing.T) (*server.ServerManager, *server.Server) {
	m, err := server.NewServerManager(server.Attach(refdata.SGLang(t)), server.WithReadyTimeout(time.Minute))
	require.NoError(t, err)
	s, err := m.Launch(t.Context(), server.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.StopAll(context.Background())) })
	return m, s
}

func TestRealSGLangInfo(t *testing.T) {
	_, s := attachReal(t)
	info := s.Info()
	t.Logf("%+v", info)
	require.NotEmpty(t, info.Version)
	require.NotEmpty(t, info.ModelPath)
	require.NotEmpty(t, info.ServedModelName)
	require.Positive(t, info.MaxRunningRequests)
	require.Positive(t, info.MaxTotalTokens)
	require.Positive(t, info.DPSize)
	require.Greater(t, info.ContextLength, info.MaxInputLen)
	require.Positive(t, info.MaxInputLen)
	require.Nil(t, info.Simulation)
}

func TestRealSGLangConfig(t *testing.T) {
	m, s := attachReal(t)
	info := s.Info()
	right := server.Config{ModelPath: info.ModelPath, ServedModelName: info.ServedModelName, ContextLength: info.ContextLength, MaxRunningRequests: info.MaxRunningRequests}
	_, err := m.Launch(t.Context(), right)
	require.NoError(t, err)
	wrong := right
	wrong.ModelPath, wrong.MaxRunningRequests = "another-model", info.MaxRunningRequests+1
	_, err = m.Launch(t.Context(), wrong)
	require.ErrorContains(t, err, "model_path: the running server has "+info.ModelPath+", not another-model")
	require.ErrorContains(t, err, "max_running_requests: the running server has")
}

func TestRealSGLangLimit(t *testing.T) {
	_, s := attachReal(t)
	most := s.Info().MaxRunningRequests
	t.Cleanup(func() {
		_, err := s.UpdateParam(context.Background(), server.ParamMaxRunningRequests, most)
		require.NoError(t, err)
	})
	for _, limit := range []int{most, most/8 + 1, most} {
		u, err := s.UpdateParam(t.Context(), server.ParamMaxRunningRequests, limit)
		require.NoError(t, err)
		require.Equal(t, limit, u.ReadBack)
		t.Logf("%d: confirmed after %v, read back after %v", limit, u.Accepted.Sub(u.Asked), u.Verified.Sub(u.Accepted))
	}
	_, err := s.UpdateParam(t.Context(), server.ParamMaxRunningRequests, most+1)
	require.ErrorAs(t, err, new(*server.ParamError))
	require.ErrorContains(t, err, "cannot be exceeded")
}

func TestRealSGLangLoads(t *testing.T) {
	_, s := attachReal(t)
	info := s.Info()
	loads, err := s.Loads(t.Context())
	require.NoError(t, err)
	require.Len(t, loads, info.DPSize)
	require.Equal(t, info.MaxTotalTokens, loads[0].MaxTotalTokens)
	sample, err := s.Sampler().Sample(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, info.MaxTotalTokens*info.DPSize, sample[metrics.MaxTokens])
	for _, key := range []string{metrics.NumRunning, metrics.NumWaiting, metrics.NumUsedTokens, metrics.TokenUsage} {
		require.Contains(t, sample, key)
		require.GreaterOrEqual(t, sample[key], 0.0)
	}
	require.LessOrEqual(t, sample[metrics.TokenUsage], 1.0)
}

func TestRealSGLangFlushCache(t *testing.T) {
	_, s := attachReal(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // others may use the server
	defer cancel()
	require.NoError(t, s.FlushCache(ctx))
	require.NoError(t, s.Abort(ctx, "no-such-request"))
}

package server

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/redact"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A record holds what the server told, by its name, and no secret, wherever in the answer it stands.
func TestRecord(t *testing.T) {
	w := newPlayback(t).tiny()
	s := launch(t, newManager(t, launches(newInstance()), w), Config{ModelPath: "m", GPUs: []int{2}})
	var raw map[string]any
	require.NoError(t, json.Unmarshal([]byte(`{"version": "0.5.23", "api_key": "k", "admin_api_key": null, "launch_command": "--api-key k --port 1", "nested": [{"ssl_keyfile_password": "p", "page_size": 1}]}`), &raw))
	s.mu.Lock()
	s.raw = raw
	s.life.reservation.gpus = []GPU{{Index: 2, Name: "H100", UUID: "GPU-2"}}
	s.mu.Unlock()
	r := s.Record()
	require.Equal(t, "server-0", r.Source)
	require.Equal(t, s.Info().Version, r.Version)
	require.Equal(t, s.Info().ContextLength, r.ContextLength)
	require.Equal(t, []metrics.GPUName{{Index: 2, Name: "H100", UUID: "GPU-2"}}, r.GPUs)
	require.Nil(t, r.Command)
	require.Equal(t, map[string]any{"version": "0.5.23", "api_key": redact.NotStored, "admin_api_key": nil,
		"launch_command": "--api-key (not stored) --port 1",
		"nested":         []any{map[string]any{"ssl_keyfile_password": redact.NotStored, "page_size": 1.0}}}, r.ServerInfo)
	require.Equal(t, "k", raw["api_key"], "what is compared with a config is as it was")
}

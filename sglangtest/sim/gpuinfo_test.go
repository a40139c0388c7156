package sim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"testing"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

// /server_info has the arguments and sizes of the recorded server of the profile's GPU.
func TestServerInfoIsThatOfRecordedH100(t *testing.T) {
	raw, err := os.ReadFile(refdata.Path(t, "sglang-h100/fixtures/server_info.http"))
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	var want map[string]any
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&want))
	const model = "/tmp/site/model/llama31-8b-dummy"
	_, c := start(t, H100Llama8B(), server.Config{EnableMetrics: true, MaxRunningRequests: 256, TokenizerPath: model, ServedModelName: model, Args: server.Args{"decode_log_interval": 20}},
		WithVersion("0.5.15.post1"), WithServerArgs(map[string]any{"model_path": model, "grammar_backend": "none", "random_seed": want["random_seed"],
			"load_snapshot_publish_interval": 1, "port": want["port"]}))
	got := info(t, c)
	state := func(m map[string]any) map[string]any { return m["internal_states"].([]any)[0].(map[string]any) }
	free := map[string]bool{"grpc_port": true, "last_gen_throughput": true, "internal_states": true}
	for _, of := range []func(map[string]any) map[string]any{func(m map[string]any) map[string]any { return m }, state} {
		for key, v := range of(want) {
			if !free[key] {
				require.Equal(t, v, of(got)[key], key)
			}
		}
	}
	simulated := got["simulated"].(map[string]any)
	require.Contains(t, simulated["memory_of"], "H100")
	require.Contains(t, simulated["profile"], "model "+model+" (profile: meta-llama/Llama-3.1-8B-Instruct)")
}

// Versions that were recorded without a GPU alone have the same sizes in their own form, and no graphs where there are none.
func TestServerInfoOfLaterVersions(t *testing.T) {
	for _, version := range []string{"0.5.18", "0.5.21", "0.5.23"} {
		for _, without := range []bool{false, true} {
			_, c := start(t, H100Llama8B(), server.Config{}, WithVersion(version), WithServerArgs(map[string]any{"disable_cuda_graph": without}))
			m := info(t, c)
			require.EqualValues(t, 0.83, m["mem_fraction_static"])
			memory := m["internal_states"].([]any)[0].(map[string]any)["memory_usage"].(map[string]any)
			require.EqualValues(t, 15.02, memory["weight"])
			require.EqualValues(t, 50.125, memory["kvcache"])
			require.EqualValues(t, 410620, memory["token_capacity"])
			decode := m["cuda_graph_config"].(map[string]any)["decode"].(map[string]any)
			if without {
				require.EqualValues(t, 0, memory["graph"].(map[string]any)["decode"])
				require.Equal(t, "disabled", decode["backend"])
			} else {
				require.EqualValues(t, 0.41, memory["graph"].(map[string]any)["decode"])
				require.Equal(t, "full", decode["backend"])
				require.Len(t, decode["bs"], 36)
			}
		}
	}
}

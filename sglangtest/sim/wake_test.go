package sim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

// A server in real time answers whatever SGLang would admit: passes that plan nothing, limits that change, pauses and
// aborts leave no request behind.
func TestServerAnswersAll(t *testing.T) {
	for name, tc := range map[string]struct {
		version string
		args    server.Args
	}{
		"limit 1, overlap":           {"0.5.21", server.Args{"max_running_requests": 1}},
		"limit 1":                    {"0.5.21", server.Args{"max_running_requests": 1, "disable_overlap_schedule": true}},
		"limit 1, new rules":         {"0.5.23", server.Args{"max_running_requests": 1, "disable_overlap_schedule": true}},
		"prefill-decode interval":    {"0.5.23", server.Args{"prefill_decode_interval": 5, "chunked_prefill_size": 16}},
		"the same without overlap":   {"0.5.23", server.Args{"prefill_decode_interval": 5, "chunked_prefill_size": 16, "disable_overlap_schedule": true}},
		"ranks":                      {"0.5.21", server.Args{"dp_size": 2, "max_running_requests": 2, "disable_overlap_schedule": true}},
		"random order in small pool": {"0.5.23", server.Args{"schedule_policy": "random", "max_total_tokens": 100}},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t, quick(), server.Config{Args: tc.args}, WithVersion(tc.version))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var all sync.WaitGroup
			for i := range 12 {
				all.Go(func() {
					status, body := c.post("/generate", fmt.Sprintf(`{"input_ids":[%s1],"sampling_params":{"max_new_tokens":%d,"ignore_eos":true}}`,
						strings.Repeat("7,", 10+5*i), 1+i%3))
					require.Equal(t, 200, status, body)
				})
			}
			most := s.EngineConfig().MaxRunningRequests
			for i := range 6 {
				switch i % 3 {
				case 0:
					c.post("/set_internal_state", fmt.Sprintf(`{"server_args":{"pp_max_micro_batch_size":%d}}`, 1+i%most))
				case 1:
					c.post("/pause_generation", fmt.Sprintf(`{"mode":%q}`, []string{"in_place", "retract"}[i/3]))
					c.post("/continue_generation", `{}`)
				default:
					c.post("/abort_request", `{"rid":"none"}`)
				}
			}
			require.NoError(t, s.WaitIdle(ctx), "requests are left: %v", s.InFlight())
			all.Wait()
		})
	}
}

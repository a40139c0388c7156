package metrics

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// A client that does not run while tokens arrive reads them in heaps. Nothing is late but its reads: all its requests
// were released before.
func TestAClientThatIsStoppedAfterItsLastReleaseIsNotOK(t *testing.T) {
	const streams, tokens, gap = 10, 80, 20 * msec
	if os.Getenv(asChild) != "" {
		gen, err := load.NewRequestGenerator(load.Random(4, tokens, 1), load.WithLimit(streams), load.WithArrivals(load.AllAtOnce()))
		require.NoError(t, err)
		sender, err := load.NewSender(os.Getenv("SGLANGTEST_URL"))
		require.NoError(t, err)
		defer sender.Close()
		col, err := NewCollector()
		require.NoError(t, err)
		require.NoError(t, load.Run(t.Context(), gen, sender, col))
		data, err := json.Marshal(col.Summary())
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(os.Getenv("SGLANGTEST_OUT"), data, 0o600))
		return
	}
	var under atomic.Int32
	all := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		if under.Add(1) == streams {
			close(all)
		}
		<-all
		tick := time.NewTicker(gap)
		defer tick.Stop()
		for i := range tokens {
			<-tick.C
			finish := "null"
			if i == tokens-1 {
				finish = `{"type":"length"}`
			}
			fmt.Fprintf(w, `data: {"text":"%0*d","meta_info":{"completion_tokens":%d,"finish_reason":%s}}`+"\n\n", i+1, 0, i+1, finish)
			http.NewResponseController(w).Flush()
		}
		io.WriteString(w, "data: [DONE]\n\n")
	}))
	defer srv.Close()
	out := t.TempDir() + "/summary.json"
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), asChild+"=streams", "SGLANGTEST_URL="+srv.URL, "SGLANGTEST_OUT="+out)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	<-all
	pulse := time.NewTicker(gap / 2)
	defer pulse.Stop()
	for i := 0; ; i++ { // it runs for 10 ms of each 70
		select {
		case err := <-ended:
			require.NoError(t, err)
			var s Summary
			data, err := os.ReadFile(out)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(data, &s))
			require.Equal(t, streams, s.Requests.OK)
			require.False(t, s.Client.OK, "ITL p50 %v, %+v", s.ITL.Median, s.Client.ReadDelay)
			require.Contains(t, fmt.Sprint(s.Client.Reasons), "client noticed what came up to ")
			require.Contains(t, fmt.Sprint(s.Client.Reasons), "the system did not run it")
			return
		case <-pulse.C:
			switch i % 7 {
			case 0:
				cmd.Process.Signal(syscall.SIGSTOP)
			case 6:
				cmd.Process.Signal(syscall.SIGCONT)
			}
		}
	}
}

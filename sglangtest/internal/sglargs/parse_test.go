package sglargs_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// Real servers of 0.5.15.post1, stopped by their command lines: usage and error are the same to the byte.
func TestRefusalsOfRealServer(t *testing.T) {
	for _, name := range []string{"invalid_flag", "invalid_choice", "bad_value", "no_model_flag"} {
		t.Run(name, func(t *testing.T) {
			folder := refdata.Path(t, "sglang-h100/failed_starts/"+name)
			command, err := os.ReadFile(folder + "/command")
			require.NoError(t, err)
			_, line, _ := strings.Cut(string(command), "sglang.launch_server ")
			stderr, err := os.ReadFile(folder + "/stderr.log")
			require.NoError(t, err)
			_, want, _ := strings.Cut(string(stderr), "usage: ")
			table, err := sglargs.For("0.5.15.post1")
			require.NoError(t, err)
			_, err = table.Parse(strings.Fields(line))
			var refused *sglargs.Error
			require.ErrorAs(t, err, &refused)
			require.Equal(t, 2, refused.ExitStatus())
			// SGLang keeps these choices in a set, so that their order differs from run to run.
			want = strings.Replace("usage: "+want, "{flashinfer,pytorch,ascend}", "{ascend,flashinfer,pytorch}", 1)
			want = strings.Replace(want, "{pytorch,ascend,flashinfer}", "{ascend,flashinfer,pytorch}", 1)
			want = strings.Replace(want, "{pytorch,flashinfer,ascend}", "{ascend,flashinfer,pytorch}", 1)
			want = strings.Replace(want, "{ascend,pytorch,flashinfer}", "{ascend,flashinfer,pytorch}", 1)
			want = strings.Replace(want, "{flashinfer,ascend,pytorch}", "{ascend,flashinfer,pytorch}", 1)
			have := strings.Split(table.Usage()+refused.Error()+"\n", "\n")
			for i, line := range strings.Split(want, "\n") {
				require.Equal(t, line, have[i])
			}
		})
	}
}

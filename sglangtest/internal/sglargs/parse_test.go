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

// The last lines of a real server of 0.5.23.
func TestRefusalsOfLatestServer(t *testing.T) {
	for name, argv := range map[string][]string{
		"bad-choice":   {"--model-path", "m", "--schedule-policy", "nope"},
		"unknown-flag": {"--model-path", "m", "--nope-flag=1"},
	} {
		stderr, err := os.ReadFile(refdata.Path(t, "sglang-cpu/logs/0.5.23-"+name+".stderr.txt"))
		require.NoError(t, err)
		_, want, _ := strings.Cut(string(stderr), "\n") // the first says that the text before is cut
		table, err := sglargs.For("0.5.23")
		require.NoError(t, err)
		_, err = table.Parse(argv)
		var refused *sglargs.Error
		require.ErrorAs(t, err, &refused)
		text := table.Usage() + refused.Error() + "\n"
		require.True(t, strings.HasSuffix(text, want), "want %s", want)
	}
}

// A command line that is taken can be written anew and is taken again, with the same values.
func FuzzParse(f *testing.F) {
	f.Add("--model-path\x00m\x00--tp\x002", uint8(3))
	f.Add("--model=m\x00--lora-paths\x00{\"lora_name\":\"a\",\"lora_path\":\"b\"}\x00--no-lora-strict\x00-hh", uint8(0))
	f.Add("--model\x00m\x00--cuda-graph-config\x00{\"decode\":{\"bs\":[1]}}\x00--context-length=1.5k\x00--gc-threshold\x001\x00-2", uint8(1))
	f.Fuzz(func(t *testing.T, line string, version uint8) {
		if strings.Contains(line, "--config") {
			t.Skip("reads a file")
		}
		table := sglargs.Tables()[int(version)%len(sglargs.Versions())]
		parsed, err := table.Parse(strings.Split(line, "\x00"))
		if err != nil || parsed.Value("config") != nil {
			return
		}
		var again []string
		for field, v := range parsed.Given {
			a, err := table.Find(field)
			if err != nil {
				return // a flag without effect
			}
			if v, err = table.Normal(a, v); err != nil {
				return // None, NaN, an infinity: not for a config
			}
			part, err := table.Render(a, v)
			if err != nil {
				return
			}
			again = append(again, part...)
		}
		twice, err := table.Parse(again)
		require.NoError(t, err, "%q", again)
		require.Equal(t, parsed.Given, twice.Given, "%q", again)
	})
}

// No file makes the YAML reader panic, and what it takes are arguments.
func FuzzConfigArgs(f *testing.F) {
	f.Add("model-path: m\nport: 1:30\nx: [a, {b: 1.0e+5}, *y]\n")
	f.Add("a: &a [*a, *a]\nb: !!str 017\nc: |\n  x\n")
	f.Fuzz(func(t *testing.T, text string) {
		argv, err := sglargs.Latest().ConfigArgs([]byte(text))
		if err != nil {
			require.ErrorAs(t, err, new(*sglargs.Error))
			return
		}
		if len(argv) > 0 {
			require.True(t, strings.HasPrefix(argv[0], "--"))
		}
	})
}

//go:build unix

package process

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func parsed(args ...string) (c *command, status int, stdout, stderr string) {
	var out, err bytes.Buffer
	c, status = parse(args, &out, &err)
	return c, status, out.String(), err.String()
}

func TestRefusedAsRecorded(t *testing.T) {
	module := []string{"-m", "sglang.launch_server", "--sim-version", "0.5.15.post1"}
	for name, c := range map[string]struct {
		recording string
		args      []string
	}{
		"unknown flag":         {"sglang-cpu/logs/0.5.23-unknown-flag.stderr.txt", []string{"--model-path", "tiny-llama", "--nope-flag=1"}},
		"bad choice":           {"sglang-cpu/logs/0.5.23-bad-choice.stderr.txt", []string{"--model-path", "tiny-llama", "--schedule-policy", "nope"}},
		"unknown flag, 0.5.15": {"sglang-h100/failed_starts/invalid_flag/stderr.log", append(module, "--model-path", "m", "--no-such-flag", "3")},
		"bad choice, 0.5.15":   {"sglang-h100/failed_starts/invalid_choice/stderr.log", append(module, "--model-path", "m", "--attention-backend", "nonsense")},
		"bad value":            {"sglang-h100/failed_starts/bad_value/stderr.log", append(module, "--model-path", "m", "--max-running-requests", "abc")},
		"no model":             {"sglang-h100/failed_starts/no_model_flag/stderr.log", module},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(refdata.Path(t, c.recording))
			require.NoError(t, err)
			_, status, stdout, stderr := parsed(c.args...)
			require.Equal(t, 2, status)
			require.Empty(t, stdout)
			last := func(s string) string { l := strings.Split(strings.TrimSpace(s), "\n"); return l[len(l)-1] }
			require.Equal(t, last(string(b)), last(stderr))
			require.Contains(t, stderr, "usage: sglang serve [-h] --model-path MODEL_PATH\n")
			require.Equal(t, strings.Contains(string(b), "UserWarning: 'python -m"), strings.Contains(stderr, "UserWarning: 'python -m"))
		})
	}
}

// Every flag of every version is accepted, and either has an effect or is reported as having none.
func TestEveryFlag(t *testing.T) {
	for _, version := range releases {
		table, err := sglargs.For(version)
		require.NoError(t, err)
		argv := []string{"--sim-version", version}
		flags := 0
		for _, a := range table.Args() {
			if a.Action == sglargs.Help || a.Fatal != "" || a.Field == "config" || strings.Contains(a.Field, "cuda_graph_config") {
				continue
			}
			value := map[sglargs.Kind]string{sglargs.Int: "8", sglargs.HumanInt: "64", sglargs.Float: "0.5", sglargs.JSON: "{}", sglargs.JSONList: "[]"}[a.Kind]
			if value == "" {
				value = "x"
			}
			if a.Field == "log_level" {
				value = "info"
			}
			if a.Choices != nil {
				value = fmt.Sprint(a.Choices[0])
			}
			argv = append(argv, a.Flag())
			if a.Action == sglargs.Store || a.Action == sglargs.LoRAPaths || a.Action == sglargs.StoreConst && !a.NoValue {
				argv = append(argv, value)
			}
			flags++
		}
		c, status, _, stderr := parsed(argv...)
		require.Equal(t, -1, status, "%s: %s", version, stderr)
		require.Greater(t, flags, 400)
		require.Greater(t, len(c.unhonoured), 300)
	}
}

func TestForms(t *testing.T) {
	for _, args := range [][]string{
		{"serve", "llama", "--tp", "2"}, {"serve", "--model-path", "llama", "--tp", "2"}, {"--model", "llama", "--tp-size=2"},
		{"-m", "sglang.launch_server", "--model-path", "llama", "--tp", "2"}, {"-u", "-m", "sglang.launch_server", "--model-path", "llama", "--tp", "2"},
	} {
		c, status, _, stderr := parsed(args...)
		require.Equal(t, -1, status, stderr)
		require.Equal(t, "llama", c.model)
		require.Equal(t, 2, c.num("tp_size"))
		require.Equal(t, "127.0.0.1", c.config.Host)
		require.Equal(t, 30000, c.config.Port)
		require.Equal(t, args[0] == "-m" || args[0] == "-u", strings.Contains(stderr, "UserWarning"))
	}
	_, status, stdout, _ := parsed("version", "--sim-version=0.5.18")
	require.Equal(t, 0, status)
	require.Contains(t, stdout, "sglang version: 0.5.18\n")
	_, status, stdout, _ = parsed("--help")
	require.Equal(t, 0, status)
	for _, f := range faults {
		require.Contains(t, stdout, "  "+f.name)
	}
}

func TestOwnFlags(t *testing.T) {
	t.Setenv("SGLANG_SIM_FAULT", "hang@3s,refuse")
	t.Setenv("SGLANG_SIM_WAITS", "0.5")
	t.Setenv("SGLANG_SIM_VERSION", "0.5.18")
	c, status, _, stderr := parsed("serve", "llama", "--sim-fault", "crash@7", "--sim-waits=0.25", "--sim-profile", sim.H100Llama8B().Name)
	require.Equal(t, -1, status, stderr)
	require.Equal(t, 0.25, c.waits)
	require.Equal(t, "0.5.18", c.version)
	require.Equal(t, v18, c.release)
	require.Len(t, c.faults, 3)
	for args, want := range map[string]string{
		"--sim-waits 0": "argument --sim-waits: want a number above 0 and at most 1000, not 0\n", "--sim-waits x": `argument --sim-waits: invalid value "x": parse error` + "\n",
		"--sim-nope 1": "unrecognized arguments: --sim-nope\n", "--sim-fault no": `argument --sim-fault: invalid value "no": no fault is called "no": see --help` + "\n",
		"--sim-version 0.2.0": "argument --sim-version: ", "--sim-profile x": `argument --sim-profile: invalid value "x": sim: no profile is called`,
		"--sim-startup -1s": "argument --sim-startup: want a duration that is not negative", "--sim-seed": "argument --sim-seed: invalid value \"--model\"",
	} {
		_, status, _, stderr := parsed(append(strings.Fields(args), "--model", "m")...)
		require.Equal(t, 2, status)
		require.Regexp(t, "^usage: sglang-sim ", stderr)
		require.Contains(t, stderr, "sglang-sim: error: "+want)
	}
	_, status, _, stderr = parsed("--model", "m", "--sim-seed")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "sglang-sim: error: argument --sim-seed: expected one argument\n")
	t.Setenv("SGLANG_SIM_FUALT", "crash")
	t.Setenv("SGLANG_SIM_FAULT", "no-such")
	_, status, _, stderr = parsed("--model", "m")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "sglang-sim: error: unrecognized arguments: SGLANG_SIM_FUALT in the environment: want the name of an argument --sim-\n")
	require.Contains(t, stderr, `sglang-sim: error: argument --sim-fault (SGLANG_SIM_FAULT in the environment): invalid value "no-such": no fault is called "no-such": see --help`)
}

// What the simulation does not have is accepted and reported, of arguments as of values; help lists what has an effect.
func TestWhatIsSimulated(t *testing.T) {
	c, status, _, stderr := parsed("serve", "llama", "--schedule-policy", "lpm", "--page-size", "16", "--tp", "2", "--enable-dp-attention", "--radix-eviction-policy", "tlru",
		"--max-queued-requests", "0", "--api-key", "None", "--max-running-requests", "8")
	require.Equal(t, -1, status, stderr)
	require.Equal(t, server.Config{TokenizerPath: "llama", ServedModelName: "llama", Host: "127.0.0.1", Port: 30000, MaxRunningRequests: 8, SchedulePolicy: "lpm",
		APIKey: "None", Args: server.Args{"page_size": 16}}, c.config)
	require.ElementsMatch(t, []string{"--enable-dp-attention", "--radix-eviction-policy", "--max-queued-requests"}, c.unhonoured)
	require.Equal(t, map[string]any{"model_path": "llama", "load_format": "auto", "tp_size": 2, "enable_dp_attention": true, "radix_eviction_policy": "tlru", "max_queued_requests": 0}, c.reported())

	c, status, _, stderr = parsed("serve", "llama", "--dp", "2", "--load-balance-method", "total_requests")
	require.Equal(t, -1, status, stderr)
	require.Equal(t, 2, c.config.DPSize)
	require.Empty(t, c.unhonoured)
	c, status, _, stderr = parsed("serve", "llama", "--dp", "2", "--tp", "2", "--enable-dp-attention")
	require.Equal(t, -1, status, stderr)
	require.Zero(t, c.config.DPSize, "the ranks share what they have")
	require.ElementsMatch(t, []string{"--dp-size", "--enable-dp-attention"}, c.unhonoured)

	_, _, help, _ := parsed("--help")
	for _, a := range sim.Arguments() {
		require.Contains(t, help, "\n  --"+strings.ReplaceAll(a.Name, "_", "-"))
	}
}

// The command's documentation lists every fault with its end.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../../cmd/sglang-sim/doc.go")
	require.NoError(t, err)
	for _, f := range faults {
		name, exit := f.name, f.exit
		if f.value != "" {
			name += ":VALUE"
		}
		if exit == "1" || exit == "3" {
			exit = "exit " + exit
		}
		require.Contains(t, string(b), fmt.Sprintf("\t%-19s %-9s", name, exit))
	}
	var c command
	c.flags().VisitAll(func(f *flag.Flag) { require.Contains(t, string(b), "\t--"+f.Name+" ") })
}

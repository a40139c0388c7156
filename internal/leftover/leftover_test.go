//go:build linux

package leftover

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWatch(t *testing.T) {
	folder := t.TempDir()
	w, err := Begin(folder)
	require.NoError(t, err)
	require.NoError(t, w.Gone(time.Minute))

	held, err := os.CreateTemp("/dev/shm", "leftover-test-")
	require.NoError(t, err)
	defer os.Remove(held.Name())
	left, err := w.Shared()
	require.NoError(t, err)
	require.NotContains(t, left, held.Name(), "this process has it open")
	require.NoError(t, held.Close())
	left, err = w.Shared()
	require.NoError(t, err)
	require.Contains(t, left, held.Name())
	require.NoError(t, os.Remove(held.Name()))

	for how, cmd := range map[string]*exec.Cmd{
		"argument":    exec.Command("/bin/sh", "-c", "echo up; read -r line", folder),
		"environment": {Path: "/bin/sh", Args: []string{"sh", "-c", "echo up; read -r line"}, Env: []string{"TMPDIR=" + folder + "/tmp"}},
		"open file":   exec.Command("/bin/sh", "-c", "echo up; read -r line"),
	} {
		t.Run(how, func(t *testing.T) {
			if how == "open file" {
				f, err := os.CreateTemp(folder, "")
				require.NoError(t, err)
				defer f.Close()
				cmd.Stderr = f
			}
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			found, err := w.Processes()
			require.NoError(t, err)
			require.Len(t, found, 1)
			require.Equal(t, cmd.Process.Pid, found[0].ID)
			require.Contains(t, found[0].Command, "read -r line")
			require.ErrorAs(t, w.Gone(0), new(*Error))
			require.NoError(t, in.Close())
			_ = cmd.Wait() // read fails at the end of its input
			require.NoError(t, w.Gone(time.Minute))
		})
	}
}

//go:build linux

package leftover

import (
	"bufio"
	"crypto/rand"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWatch(t *testing.T) {
	folder := t.TempDir()
	w := Begin(folder, rand.Text())
	require.NoError(t, w.Gone(0))

	named, err := os.Create("/dev/shm/leftover-test-" + w.instance)
	require.NoError(t, err)
	defer os.Remove(named.Name())
	held, err := os.CreateTemp("/dev/shm", "leftover-test-")
	require.NoError(t, err)
	defer os.Remove(held.Name())
	w.hold("/proc/self")
	require.NoError(t, held.Close())
	require.NoError(t, named.Close())
	left, err := w.Shared()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{named.Name(), held.Name()}, left)
	require.NoError(t, os.Remove(held.Name()))
	require.NoError(t, os.Remove(named.Name()))
	require.NoError(t, w.Gone(0))

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
			if how == "open file" { // whose path is then another file's, and at last none's
				path := cmd.Stderr.(*os.File).Name()
				require.NoError(t, os.Rename(path, path+".old"))
				require.NoError(t, os.WriteFile(path, nil, 0o600))
				require.NoError(t, os.Remove(path+".old"))
				require.NoError(t, w.Gone(0), "a process with a deleted file")
				require.ErrorIs(t, w.Kill(found[0]), os.ErrProcessDone)
				require.NoError(t, in.Close())
			} else {
				require.NoError(t, w.Kill(found[0]))
			}
			_ = cmd.Wait() // killed, or read failed at the end of its input
			require.NoError(t, w.Gone(time.Minute))
		})
	}
}

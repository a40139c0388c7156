package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// members returns the processes of a server: those of its process group, those that carry its marker in their
// environment, and those that write to its log. Setting a process title, as SGLang's children do, can overwrite the
// environment, and a process may leave its group: hence all three. Zombies do not count.
func members(group int, marker string, logs ...string) []int {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil // no /proc: as on other systems, the group is killed all the same
	}
	variable := []byte(markerVariable + "=" + marker)
	var pids []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, parent, group
		if len(fields) < 3 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		if fields[2] == strconv.Itoa(group) || hasVariable(pid, variable) || writesTo(pid, logs) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func hasVariable(pid int, variable []byte) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false // it has ended, or is another user's
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(v, variable) {
			return true
		}
	}
	return false
}

func writesTo(pid int, logs []string) bool {
	for _, fd := range []int{1, 2} {
		if path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err == nil && slices.Contains(logs, path) {
			return true
		}
	}
	return false
}

// sharedPrefixes are the names of files in /dev/shm of which each server has its own, by a random number or a process
// id: SGLang's load snapshots, segments and arguments (load_snapshot.py, stale_shm_cleanup.py), Python's and NCCL's.
var sharedPrefixes = []string{"sglang_loads_", "sgl_shm_", "multi_tokenizer_args_", "psm_", "nccl-"}

// sharedFiles returns the files in /dev/shm that the processes have mapped.
func sharedFiles(pids []int) []string {
	var files []string
	for _, pid := range pids {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(maps)) {
			at := strings.Index(line, "/dev/shm/")
			if at < 0 {
				continue
			}
			path := strings.TrimSpace(line[at:])
			own := slices.ContainsFunc(sharedPrefixes, func(prefix string) bool { return strings.HasPrefix(filepath.Base(path), prefix) })
			if own && !strings.HasSuffix(path, " (deleted)") && !slices.Contains(files, path) {
				files = append(files, path)
			}
		}
	}
	return files
}

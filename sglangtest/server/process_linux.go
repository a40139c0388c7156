package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
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

// lockTimeout bounds the wait for a lock that outlives its server for a moment: a process that this program has just forked
// holds all its files until it has become another program.
const lockTimeout = 2 * time.Second

// lockLog makes sure that no other server writes to the file: what it writes would be taken for this one's, and its
// processes for this one's processes. The lock lasts until the last process that writes to the file has ended.
func lockLog(f *os.File) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(tailInterval) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil // a file system without locks is none to fail for
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("log: another server writes to %s: give each manager a log folder of its own", f.Name())
		}
	}
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
		if path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err == nil && slices.Contains(logs, strings.TrimSuffix(path, " (deleted)")) {
			return true
		}
	}
	return false
}

// sharedPrefixes are the names of files in /dev/shm of which each server has its own, by a random number or a process
// id: SGLang's load snapshots, host pools, segments and arguments (load_snapshot.py, mmap_allocator.py, stale_shm_cleanup.py),
// Python's, NCCL's and CUDA's.
var sharedPrefixes = []string{"sglang_loads_", "sglang_host_pool_", "sgl_shm_", "multi_tokenizer_args_", "psm_", "nccl-", "cuda.shm."}

func isShared(path string) bool {
	return filepath.Dir(path) == "/dev/shm" &&
		slices.ContainsFunc(sharedPrefixes, func(prefix string) bool { return strings.HasPrefix(filepath.Base(path), prefix) })
}

// sharedFiles returns the files in /dev/shm that the processes have mapped or open.
func sharedFiles(pids []int) []string {
	var files []string
	add := func(path string) {
		if isShared(path) && !strings.HasSuffix(path, " (deleted)") && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	for _, pid := range pids {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(maps)) {
			if at := strings.Index(line, "/dev/shm/"); at >= 0 {
				add(strings.TrimSpace(line[at:]))
			}
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil {
				add(path)
			}
		}
	}
	return files
}

// sharedLooks are the times between looks for the owners of new files in /dev/shm: the first one is after the latest of them.
var sharedLooks = []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, time.Second}

// watchShared begins to notice new files in /dev/shm and returns a function that goes on until ends is closed: whenever
// one of SGLang's comes into being, look is called, which finds this server's files, several times until it finds that one.
// This names a file also if its server dies soon afterwards, and costs nothing while it serves.
func watchShared(ends <-chan struct{}, look func() []string) (run func(), err error) {
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w: each server needs one instance: raise fs.inotify.max_user_instances (sysctl)", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := syscall.InotifyAddWatch(fd, "/dev/shm", syscall.IN_CREATE|syscall.IN_MOVED_TO); err != nil {
		f.Close()
		if errors.Is(err, syscall.ENOENT) {
			return func() { <-ends }, nil // no shared memory here
		}
		return nil, fmt.Errorf("watch /dev/shm: %w", err)
	}
	return func() {
		select {
		case <-ends: // the start failed: there is nothing to look at
			f.Close()
			return
		default:
		}
		var reader sync.WaitGroup
		defer reader.Wait()
		created := make(chan string)
		reader.Go(func() { readCreated(f, created) })
		defer func() {
			f.Close() // which ends the reading
			for range created {
			}
		}()
		timer := time.NewTimer(time.Hour)
		defer timer.Stop()
		wanted, looks := map[string]bool{}, 0
		for {
			select {
			case path, ok := <-created:
				if !ok {
					<-ends
					return
				}
				wanted[path], looks = true, 0
				timer.Reset(sharedLooks[0])
			case <-timer.C:
				for _, path := range look() {
					delete(wanted, path)
				}
				if looks++; len(wanted) > 0 && looks < len(sharedLooks) {
					timer.Reset(sharedLooks[looks])
				} else {
					clear(wanted) // they are other programs'
				}
			case <-ends:
				return
			}
		}
	}, nil
}

// readCreated passes on the paths of SGLang's files that come into being, until f is closed.
func readCreated(f *os.File, created chan<- string) {
	defer close(created)
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return // closed
		}
		for data := buf[:n]; len(data) >= syscall.SizeofInotifyEvent; {
			length := int(binary.NativeEndian.Uint32(data[12:])) // of the name
			name := string(bytes.TrimRight(data[syscall.SizeofInotifyEvent:syscall.SizeofInotifyEvent+length], "\x00"))
			data = data[syscall.SizeofInotifyEvent+length:]
			if path := "/dev/shm/" + name; isShared(path) {
				created <- path
			}
		}
	}
}

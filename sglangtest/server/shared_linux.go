package server

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Files in /dev/shm are a server's by who has them, and not by their names: SGLang, torch, NCCL, CUDA, joblib and
// Python put files of many names there, as other programs do. A file is a server's if it came into being while the
// server lived and, when it was first seen, a process of the server had it open or mapped and no other process did. The inode
// counts: a semaphore is mapped under a name that is removed at once, and linked under its own.
const sharedFolder = "/dev/shm"

// ownersName matches names that tell the process that made the file, for files that it closes at once: arguments and images
// of SGLang (stale_shm_cleanup.py, multi_tokenizer_mixin.py), semaphores of loky, tensors of torch, folders of joblib.
var ownersName = regexp.MustCompile(`^(?:sgl_shm_[^_]*_|multi_tokenizer_args_|sem\.loky-|torch_|joblib_memmapping_folder_)(\d+)(?:[_-]|$)`)

// ownerNamed returns the process that a file's name tells; 0 if none.
func ownerNamed(name string) int {
	m := ownersName.FindStringSubmatch(name)
	if m == nil {
		return 0
	}
	pid, _ := strconv.Atoi(m[1]) // 0 if it is too large
	return pid
}

// A sharedEntry is a file or a folder in /dev/shm.
type sharedEntry struct {
	name string
	user uint32
	dir  bool
}

// sharedEntries returns what is in /dev/shm, by inode, and the device. There is nothing to see in a file system that gives
// the inode of a removed file to another one, as only tmpfs does not.
func sharedEntries() (map[uint64]sharedEntry, uint64) {
	var system syscall.Statfs_t
	var folder syscall.Stat_t
	if syscall.Statfs(sharedFolder, &system) != nil || int64(system.Type) != unix.TMPFS_MAGIC || syscall.Stat(sharedFolder, &folder) != nil {
		return nil, 0
	}
	names, _ := os.ReadDir(sharedFolder)
	entries := make(map[uint64]sharedEntry, len(names))
	for _, n := range names {
		var s syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(sharedFolder, n.Name()), &s); err != nil || s.Dev != folder.Dev {
			continue // it has gone, or is a mount
		}
		if kind := s.Mode & syscall.S_IFMT; kind == syscall.S_IFREG || kind == syscall.S_IFDIR {
			entries[s.Ino] = sharedEntry{n.Name(), s.Uid, kind == syscall.S_IFDIR}
		}
	}
	return entries, folder.Dev
}

// heldBy returns the inodes of what a process has open or mapped in /dev/shm, and whether it may write to it: of the files
// themselves, or of the folder in which they are.
func heldBy(pid int, device uint64) map[uint64]bool {
	held := map[uint64]bool{}
	inner := func(path, link string) bool { // also of another mount namespace, with other files there
		name, _, below := strings.Cut(strings.TrimPrefix(path, sharedFolder+"/"), "/")
		var s, t syscall.Stat_t
		if !below || syscall.Stat(path, &s) != nil || link != "" && (syscall.Stat(link, &t) != nil || s.Ino != t.Ino || s.Dev != t.Dev) {
			return below
		}
		if syscall.Lstat(filepath.Join(sharedFolder, name), &s) == nil && s.Dev == device {
			held[s.Ino] = true // which no folder's owner is known by
		}
		return true
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)) // it may have ended, or be another user's
	dev := mapsDevice(device)
	for line := range strings.Lines(string(text)) {
		at := strings.Index(line, sharedFolder+"/")
		if at < 0 {
			continue
		}
		// address perms offset device inode path
		f := strings.Fields(line[:at])
		if len(f) != 5 || f[3] != dev {
			continue
		}
		if ino, err := strconv.ParseUint(f[4], 10, 64); err == nil && !inner(strings.TrimSuffix(line[at:], "\n"), "") {
			held[ino] = held[ino] || f[1] == "rw-s"
		}
	}
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	names, _ := os.ReadDir(fds)
	for _, n := range names {
		link := filepath.Join(fds, n.Name())
		path, err := os.Readlink(link) // first: to ask for the state of a file can take as long as its file system hangs
		if err != nil || !strings.HasPrefix(path, sharedFolder+"/") || inner(path, link) {
			continue
		}
		var s, own syscall.Stat_t
		if syscall.Stat(link, &s) == nil && syscall.Lstat(link, &own) == nil && s.Dev == device {
			held[s.Ino] = held[s.Ino] || own.Mode&syscall.S_IWUSR != 0 // opened to write
		}
	}
	return held
}

// mapsDevice writes a device as /proc/PID/maps does.
func mapsDevice(device uint64) string {
	return fmt.Sprintf("%02x:%02x", unix.Major(device), unix.Minor(device))
}

// sharedFiles are the files in /dev/shm of one server.
type sharedFiles struct {
	id   func() (identity, bool) // false before its main process has started
	tell func(what string, inodes ...any)

	mu   sync.Mutex
	not  map[uint64]bool // were there before, or are others'
	ours map[uint64]bool
}

// note looks, if there are new files, which of them the server's processes have.
func (f *sharedFiles) note(processes func() []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, device := sharedEntries()
	for ino := range entries {
		if f.not[ino] || f.ours[ino] {
			delete(entries, ino)
		}
	}
	if len(entries) == 0 {
		return
	}
	members, candidates := processes(), map[uint64]bool{}
	for _, pid := range members {
		var owner syscall.Stat_t
		if syscall.Stat(fmt.Sprintf("/proc/%d", pid), &owner) != nil {
			continue // it has ended
		}
		held := heldBy(pid, device)
		for ino, e := range entries {
			// What may not be looked into is shown as root's.
			if (e.user == owner.Uid || owner.Uid == 0) && (held[ino] && !e.dir || ownerNamed(e.name) == pid) {
				candidates[ino] = true
			}
		}
	}
	if len(candidates) == 0 {
		return
	}
	eachProcess(func(pid int) {
		if !slices.Contains(members, pid) {
			for ino := range heldBy(pid, device) {
				if candidates[ino] {
					delete(candidates, ino)
					f.not[ino] = true
					f.tell("not", ino)
				}
			}
		}
	})
	for ino := range candidates {
		f.ours[ino] = true
		f.tell("ours", ino)
	}
}

// settle makes those of the files that are not the server's by now others' for good: what a server opens later was not made by
// it.
func (f *sharedFiles) settle(inodes []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var others []any
	for _, ino := range inodes {
		if !f.ours[ino] && !f.not[ino] {
			f.not[ino] = true
			others = append(others, ino)
		}
	}
	if others != nil {
		f.tell("not", others...)
	}
}

// remove removes the server's files.
func (f *sharedFiles) remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, _ := sharedEntries()
	var failed []error
	for ino := range f.ours {
		e, there := entries[ino]
		if !there {
			continue
		}
		path := filepath.Join(sharedFolder, e.name)
		if e.dir {
			failed = append(failed, os.RemoveAll(path))
		} else if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// names returns the paths of the files that are known as the server's and are there.
func (f *sharedFiles) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, _ := sharedEntries()
	var paths []string
	for ino := range f.ours {
		if e, there := entries[ino]; there {
			paths = append(paths, filepath.Join(sharedFolder, e.name))
		}
	}
	return paths
}

// A sharedWatch notices new files in /dev/shm and lets the servers of this program look whose they are. There is one for
// all of them, which runs as long as there is any: this names a file also if its server dies soon afterwards.
type sharedWatch struct {
	mu      sync.Mutex
	servers map[*sharedFiles]bool
	end     chan struct{}
	over    chan struct{}
	degrade error // why new files are found only by looking again and again
}

var theSharedWatch = &sharedWatch{servers: map[*sharedFiles]bool{}}

// sharedLooks are the ages of a new file at which its owner is looked for, after the look at once: it is another program's if
// none finds it.
var sharedLooks = []time.Duration{10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, time.Second}

const (
	// sharedPoll is the time between two looks without a notice from the kernel.
	sharedPoll = time.Second
	// sharedShare is the share of one processor that looks take in the long run, where other programs make files all the
	// time, and sharedBurst the time that they take at once, as when a server starts.
	sharedShare = 0.05
	sharedBurst = 2 * time.Second
)

// newInotify is a variable for a test at the limit of the kernel.
var newInotify = func() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w: raise fs.inotify.max_user_instances (sysctl)", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, sharedFolder, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", sharedFolder, err), f.Close())
	}
	return f, nil
}

// add lets a server that has not started yet look. The warning is not empty if some of its files may stay.
func (w *sharedWatch) add(f *sharedFiles) (warning string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	entries, device := sharedEntries()
	if device == 0 {
		return "" // no shared memory here
	}
	if len(w.servers) == 0 {
		w.end, w.over = make(chan struct{}), make(chan struct{})
		notices, err := newInotify()
		w.degrade = err
		go w.run(notices, slices.Collect(maps.Keys(entries)), w.end, w.over)
	}
	w.servers[f] = true
	f.not, f.ours = map[uint64]bool{}, map[uint64]bool{}
	before := []any{}
	for ino := range entries {
		f.not[ino] = true
		before = append(before, ino)
	}
	f.tell("device", mapsDevice(device))
	f.tell("not", before...)
	if w.degrade != nil {
		return fmt.Sprintf("new files in %s are looked for each %v only, so that one of a server that dies within that time may stay: %v", sharedFolder, sharedPoll, w.degrade)
	}
	return ""
}

// remove ends that. The last server to go waits for the end of the watch.
func (w *sharedWatch) remove(f *sharedFiles) {
	w.mu.Lock()
	was := w.servers[f]
	delete(w.servers, f)
	last := was && len(w.servers) == 0
	end, over := w.end, w.over
	w.mu.Unlock()
	if last {
		close(end)
		<-over
	}
}

// run watches until end is closed.
func (w *sharedWatch) run(notices *os.File, known []uint64, end <-chan struct{}, over chan<- struct{}) {
	defer close(over)
	runtime.LockOSThread() // whose processor time is that of the looks
	defer runtime.UnlockOSThread()
	created := make(chan struct{}, 1)
	var reader sync.WaitGroup
	defer reader.Wait()
	if notices != nil {
		defer notices.Close() // which ends the reading
		reader.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				if _, err := notices.Read(buf); err != nil {
					return // closed
				}
				select {
				case created <- struct{}{}:
				default: // a look is due anyway
				}
			}
		})
	}
	poll := func() time.Duration {
		if notices != nil {
			return 365 * 24 * time.Hour
		}
		return sharedPoll
	}
	seen := map[uint64]bool{}
	for _, ino := range known {
		seen[ino] = true
	}
	looks := map[uint64]time.Time{} // files whose owner is not known yet, and when they were first seen
	timer := time.NewTimer(poll())
	defer timer.Stop()
	budget, counted := sharedBurst, time.Now() // of time for looks, and until when it has been given
	due := func(d time.Duration) {
		if budget < 0 {
			d = max(d, time.Duration(float64(-budget)/sharedShare))
		}
		timer.Reset(d)
	}
	for {
		select {
		case <-end:
			return
		case <-created:
			due(0)
			continue
		case <-timer.C:
		}
		began, used := time.Now(), threadTime()
		entries, _ := sharedEntries()
		for ino := range entries {
			if !seen[ino] {
				seen[ino], looks[ino] = true, began
			}
		}
		maps.DeleteFunc(seen, func(ino uint64, _ bool) bool { _, there := entries[ino]; return !there })
		maps.DeleteFunc(looks, func(ino uint64, _ time.Time) bool { return !seen[ino] })
		next := poll()
		if len(looks) > 0 {
			w.look(looks, began)
			for _, first := range looks {
				age := began.Sub(first)
				i := slices.IndexFunc(sharedLooks, func(d time.Duration) bool { return d > age })
				next = min(next, sharedLooks[i]-age)
			}
		}
		budget = min(sharedBurst, budget+time.Duration(float64(began.Sub(counted))*sharedShare))
		counted = began
		budget -= threadTime() - used
		due(next)
	}
}

// threadTime returns the processor time that the calling thread has used. On a busy machine a look takes longer than that, which
// must not put off the next one.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0 // the kernel knows no such thing: looks are not limited
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// look looks for the owners of files, and takes those off the list of which there is no more to learn.
func (w *sharedWatch) look(looks map[uint64]time.Time, now time.Time) {
	w.mu.Lock()
	servers := slices.Collect(maps.Keys(w.servers))
	w.mu.Unlock()
	var started []*sharedFiles
	var ids []identity
	for _, f := range servers {
		if id, ok := f.id(); ok {
			started, ids = append(started, f), append(ids, id)
		}
	}
	for i, members := range membersOf(ids) {
		started[i].note(func() []int { return members })
	}
	var others []uint64
	for ino, first := range looks {
		owned := slices.ContainsFunc(servers, func(f *sharedFiles) bool { return f.has(ino) })
		if !owned && now.Sub(first) >= sharedLooks[len(sharedLooks)-1] {
			others = append(others, ino)
		} else if !owned {
			continue
		}
		delete(looks, ino)
	}
	for _, f := range servers {
		f.settle(others)
	}
}

func (f *sharedFiles) has(ino uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ours[ino]
}

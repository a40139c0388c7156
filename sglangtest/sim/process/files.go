//go:build unix

package process

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// files are what an SGLang server leaves on the disk. Of those, SGLang itself removes the metrics folder alone, and that
// only when its main process ends by returning (observed on 0.5.23, and read from managers/load_snapshot.py and
// server_args.py, PortArgs): the others stay even after a clean end.
type files struct {
	snapshot    string   // /dev/shm/sglang_loads_ID_DIGEST.shm
	instance    string   // begins the ID, 12 hexadecimal digits
	ipc         []string // addresses of ZeroMQ sockets: tokenizer, scheduler, detokenizer, rpc, metrics
	metrics     string   // PROMETHEUS_MULTIPROC_DIR
	listeners   []net.Listener
	shmDir, tmp string
}

// slotSize is the size of one rank's part of the load snapshot, after 12 bytes of head.
const slotSize = 16 * 1024

// ipcFiles makes the files that PortArgs makes: five names, of which the main process binds the first two and the
// detokenizer the third.
func (f *files) ipcFiles() error {
	for range 5 {
		name := tempName(f.tmp)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return fmt.Errorf("sglang-sim: make an ipc file: %w", err)
		}
		f.ipc = append(f.ipc, name)
	}
	for _, name := range f.ipc[:2] {
		ln, err := bindIPC(name)
		if err != nil {
			return err
		}
		f.listeners = append(f.listeners, ln)
	}
	return nil
}

// metricsDir makes the folder of --enable-metrics.
func (f *files) metricsDir() error {
	dir := f.tmp
	if user := os.Getenv("PROMETHEUS_MULTIPROC_DIR"); user != "" {
		dir = user
	}
	f.metrics = tempName(dir)
	if err := os.Mkdir(f.metrics, 0o700); err != nil {
		return fmt.Errorf("sglang-sim: make the metrics folder: %w", err)
	}
	return nil
}

// loadSnapshot makes the shared-memory file of /v1/loads. Its slots are empty.
func (f *files) loadSnapshot(ranks int) error {
	if _, err := os.Stat(f.shmDir); err != nil {
		return nil // not Linux
	}
	var id [10]byte
	_, _ = rand.Read(id[:]) // never fails
	// The second part is SGLang's digest of the first, and random here.
	f.snapshot = filepath.Join(f.shmDir, "sglang_loads_"+f.instance+hex.EncodeToString(id[:6])[len(f.instance):]+"_"+hex.EncodeToString(id[6:])+".shm")
	file, err := os.OpenFile(f.snapshot, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err == nil {
		defer file.Close()
		size := 12 + ranks*slotSize
		if _, err = file.Write(make([]byte, size)); err == nil { // mapped as long as the process lives, as SGLang's is
			_, err = syscall.Mmap(int(file.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		}
	}
	if err != nil {
		return fmt.Errorf("sglang-sim: make the load snapshot: %w", err)
	}
	return nil
}

// end is what happens to the files when Python's main function returns.
func (f *files) end() error {
	for _, ln := range f.listeners {
		ln.Close()
	}
	if f.metrics != "" {
		return os.RemoveAll(f.metrics)
	}
	return nil
}

// tempName is a name of Python's tempfile: "tmp" and eight of 37 characters.
func tempName(dir string) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789_"
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return filepath.Join(dir, "tmp"+string(b))
}

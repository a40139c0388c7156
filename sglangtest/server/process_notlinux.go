//go:build unix && !linux

package server

import (
	"errors"
	"os"
	"syscall"
)

// Here a server's processes are those of its group. Its number is another's only if the group has gone, and the kernel has
// given out all others since; processes that left it cannot be found.

func startOf(int) string { return "" }

func (id identity) members() []int {
	if id.leader <= 0 || syscall.Kill(-id.leader, 0) != nil {
		return nil
	}
	return []int{id.leader}
}

func (id identity) signalAll(s syscall.Signal) error {
	if id.leader <= 0 { // which would mean this program's own group
		return syscall.ESRCH
	}
	return syscall.Kill(-id.leader, s)
}

func awaitUnreaped(int) bool { return false }

// lockLog does nothing: no process is found by its log here.
func lockLog(*os.File) error { return nil }

func lockOf(string, int) string { return "" }

// cgroup is for Linux.
type cgroup struct{ dir, path string }

func nameCgroup(string) cgroup            { return cgroup{} }
func (cgroup) make() (*os.File, error)    { return nil, errors.ErrUnsupported }
func (cgroup) kill() error                { return nil }
func (cgroup) remove() error              { return nil }
func into(*syscall.SysProcAttr, *os.File) {}

// sharedFiles is for Linux: other systems have no /dev/shm.
type sharedFiles struct {
	id   func() (identity, bool)
	tell func(string, ...any)
}

func (*sharedFiles) note(func() []int) {}
func (*sharedFiles) names() []string   { return nil }
func (*sharedFiles) remove() error     { return nil }

type sharedWatch struct{}

var theSharedWatch sharedWatch

func (sharedWatch) add(*sharedFiles) string { return "" }
func (sharedWatch) remove(*sharedFiles)     {}

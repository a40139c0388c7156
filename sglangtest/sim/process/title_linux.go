package process

import (
	"os"
	"syscall"
)

// setTitle gives a process the name that ps and top show. The arguments are set by the parent.
func setTitle(title string) {
	_ = os.WriteFile("/proc/self/comm", []byte(title[:min(len(title), 15)]), 0o600) // a name is not worth failing for
}

// dieWithParent asks for SIGKILL when the parent dies (utils/common.py, kill_itself_when_parent_died).
func dieWithParent() {
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0) // cannot fail with a valid signal
}

package results

// A process identifies the process that writes a run, so that a reader can tell whether it is still alive.
// A PID alone is reused; with its start time, within one boot and one PID namespace, it is not. The fields
// but PID are empty where they cannot be had.
type process struct {
	PID          int    `json:"pid"`
	StartTicks   uint64 `json:"start_ticks,omitempty"`   // clock ticks from boot to the process's start
	BootID       string `json:"boot_id,omitempty"`       // of the kernel
	PIDNamespace string `json:"pid_namespace,omitempty"` // in which PID counts
}

// liveness is what can be said of a process.
type liveness int

const (
	unknown liveness = iota
	alive
	dead
)

package server

import "context"

// A GPU is one CUDA device of this host, as it is at one moment.
type GPU struct {
	Index       int    // the CUDA device id among all GPUs of the host, in PCI order
	UUID        string // such as "GPU-5a1…"
	Name        string // such as "NVIDIA H100 80GB HBM3"
	MemoryTotal int64  // bytes
	MemoryUsed  int64  // bytes, of all processes
}

// A GPUInventory lists the GPUs of this host. Implementations are safe for concurrent use.
type GPUInventory interface {
	GPUs(ctx context.Context) ([]GPU, error)
}

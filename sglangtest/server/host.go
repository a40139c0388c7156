package server

import (
	"context"
	"fmt"
	"net"
	"reflect"
)

// A Host is where servers of a [Reserver] run. The manager gives each port and each GPU of a host to one
// server at a time; two hosts can both have a port 30000 and a GPU 0.
type Host struct {
	// Name tells hosts apart, such as "gpu-7". Empty is the host of this program.
	Name string
	// CanListen says why no server can listen on address there, such as "127.0.0.1:30000"; it is asked before
	// a port is given. nil: ports are given unasked.
	CanListen func(ctx context.Context, address string) error
	// Port: servers there need a port beforehand, so that one is chosen for a config that names none. False:
	// only ports of configs are given out.
	Port bool
	// GPUs: servers there have GPUs of their own. Those of a config are given out, and checked if [WithGPUs]
	// gave the manager an inventory of this host, by which they are also chosen for a config that names none.
	// False: Config.GPUs is of no importance.
	GPUs bool
}

// LocalHost returns the host of this program, whose ports are looked at. Port and GPUs are false.
func LocalHost() Host {
	return Host{CanListen: func(ctx context.Context, address string) error {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			err = l.Close()
		}
		return err
	}}
}

// on is where something is, for a message that names no place otherwise; "" for this host.
func on(host string) string {
	if host == "" {
		return ""
	}
	return " of " + host
}

// hostName names a host in a message.
func hostName(name string) string {
	if name == "" {
		return "this host"
	}
	return name
}

// A GPU is one device that models run on, as it is at one moment.
type GPU struct {
	Index       int    // the device id among all GPUs of the host; CUDA's in PCI order
	UUID        string // such as "GPU-5a1…"
	Name        string // such as "NVIDIA H100 80GB HBM3"
	MemoryTotal int64  // bytes
	MemoryUsed  int64  // bytes, of all processes
}

// A GPUInventory lists the GPUs of this host, of whatever maker; that of package gpu asks for NVIDIA's.
// Implementations are safe for concurrent use.
type GPUInventory interface {
	// GPUs returns the GPUs as they are. It is called before a launch, and after the end of a server until
	// their memory is free again.
	GPUs(ctx context.Context) ([]GPU, error)
}

// A HostInventory is an inventory of the host with this name; see [Host].
type HostInventory interface {
	GPUInventory
	Host() string
}

// hostOf names the host of an inventory.
func hostOf(inventory GPUInventory) string {
	if named, ok := inventory.(HostInventory); ok {
		return named.Host()
	}
	return ""
}

// isNil reports whether v is nil, or a nil pointer in an interface: of something whose making failed.
func isNil(v any) bool {
	p := reflect.ValueOf(v)
	return !p.IsValid() || p.Kind() == reflect.Pointer && p.IsNil()
}

// inventoryFor returns the inventory of a host; nil if the manager has none at all.
func (m *ServerManager) inventoryFor(host Host) (GPUInventory, error) {
	if inventory := m.gpus[host.Name]; inventory != nil || len(m.gpus) == 0 {
		return inventory, nil
	}
	if host.Name == "" && !host.GPUs {
		return nil, nil
	}
	var given string
	for name := range m.gpus {
		given = name
	}
	return nil, fmt.Errorf("server: the GPUs that were given (WithGPUs) are those of %s, and the server would run on %s: leave them out, or give an inventory whose method Host() returns %q",
		hostName(given), hostName(host.Name), host.Name)
}

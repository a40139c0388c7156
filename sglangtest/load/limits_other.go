//go:build !linux

package load

import "time"

// readLimits knows no limits outside Linux.
func readLimits() limits { return limits{} }

// cpuTime is not known outside Linux.
func cpuTime() time.Duration { return 0 }

package sim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const us = time.Microsecond

func TestFrontWithinItsCapacity(t *testing.T) {
	f := Profile{Egress: 2 * ms, EgressEvent: 80 * us}.Front()
	for k := range 5 { // 100 events each 10 ms: 8 ms of work
		at := time.Duration(k) * 10 * ms
		first, each := f.Burst(at, 100)
		require.Equal(t, at+80*us+2*ms, first)
		require.Equal(t, 80*us, each)
		require.Equal(t, 8*ms, f.Backlog(at))
	}
}

// Above its capacity each burst of n leaves n·each after the one before, whatever the interval of the steps: the closed
// form of a deterministic queue.
func TestFrontBehind(t *testing.T) {
	f := Profile{Egress: 2 * ms, EgressEvent: 80 * us}.Front()
	for k := range 50 { // 250 events each 10 ms: 20 ms of work
		at := time.Duration(k) * 10 * ms
		first, each := f.Burst(at, 250)
		require.Equal(t, time.Duration(k)*20*ms+80*us+2*ms, first)
		last := first + 249*each
		require.Equal(t, time.Duration(k+1)*20*ms+2*ms, last)
		require.Equal(t, time.Duration(k+1)*20*ms-at, f.Backlog(at))
	}
	// After a silence it is idle again.
	first, _ := f.Burst(10*time.Second, 1)
	require.Equal(t, 10*time.Second+80*us+2*ms, first)
}

func TestFrontCostGrowsWithTheBurst(t *testing.T) {
	f := Profile{EgressEvent: 10 * us, EgressStream: us}.Front()
	_, each := f.Burst(0, 90)
	require.Equal(t, 100*us, each)
	require.Equal(t, 9*ms, f.Backlog(0))
}

func TestFrontSwitchedOff(t *testing.T) {
	p := Profile{Egress: 2 * ms, EgressEvent: 80 * us, EgressStream: us}
	f := p.WithoutEgressQueue().Front()
	for k := range 3 {
		first, each := f.Burst(time.Duration(k), 1000)
		require.Equal(t, 2*ms+time.Duration(k), first)
		require.Zero(t, each)
	}
	require.Equal(t, 80*us, p.EgressEvent, "the profile itself stays as it is")
}

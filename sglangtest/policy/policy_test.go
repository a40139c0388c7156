package policy

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
)

func fleet(n int) View {
	v := View{Now: time.Second, Workers: make([]Worker, n)}
	for i := range v.Workers {
		v.Workers[i].Healthy = true
	}
	return v
}

func all(t testing.TB) map[string]Policy {
	random, err := NewRandom(rand.NewPCG(1, 2))
	require.NoError(t, err)
	out := map[string]Policy{"random": random, "round robin": new(RoundRobin)}
	for _, s := range []Signal{Local, Polled, PolledPlusOwn} {
		p, err := NewLeastOutstanding(s)
		require.NoError(t, err)
		out["least outstanding, "+s.String()] = p
	}
	return out
}

func picks(t testing.TB, p Policy, v View, n int) []int {
	var got []int
	for range n {
		d, err := p.Pick(context.Background(), &load.Request{}, v)
		require.NoError(t, err)
		require.Equal(t, Send, d.Verdict)
		got = append(got, d.Worker)
	}
	return got
}

func TestUnhealthyWorkersGetNothing(t *testing.T) {
	for name, p := range all(t) {
		t.Run(name, func(t *testing.T) {
			v := fleet(3)
			v.Workers[0].Healthy, v.Workers[2].Healthy = false, false
			require.Equal(t, []int{1, 1, 1}, picks(t, p, v, 3))
			v.Workers[1].Healthy = false
			d, err := p.Pick(context.Background(), &load.Request{}, v)
			require.NoError(t, err)
			require.Equal(t, Reject("no healthy worker"), d)
		})
	}
}

func TestRoundRobin(t *testing.T) {
	p := new(RoundRobin)
	require.Equal(t, []int{0, 1, 2, 0}, picks(t, p, fleet(3), 4))
	v := fleet(3)
	v.Workers[1].Healthy = false
	require.Equal(t, []int{2, 0, 2}, picks(t, p, v, 3))
	require.Equal(t, []int{0, 1}, picks(t, p, fleet(2), 2), "the fleet has shrunk")
}

func TestLeastOutstandingReadsItsSignal(t *testing.T) {
	v := fleet(3)
	v.Workers[0] = Worker{Healthy: true, InFlight: 1, Running: 5, Waiting: 5, SincePoll: 0}
	v.Workers[1] = Worker{Healthy: true, InFlight: 2, Running: 1, Waiting: 1, SincePoll: 9}
	v.Workers[2] = Worker{Healthy: true, InFlight: 3, Running: 1, Waiting: 2, SincePoll: 0}
	for s, want := range map[Signal]int{Local: 0, Polled: 1, PolledPlusOwn: 2} {
		p, err := NewLeastOutstanding(s)
		require.NoError(t, err)
		require.Equal(t, []int{want}, picks(t, p, v, 1), s)
	}
	_, err := NewLeastOutstanding(0)
	require.ErrorContains(t, err, "want Local, Polled or PolledPlusOwn")
}

func TestLeastOutstandingTakesEqualsInTurn(t *testing.T) {
	p, err := NewLeastOutstanding(Local)
	require.NoError(t, err)
	require.Equal(t, []int{0, 1, 2, 0}, picks(t, p, fleet(3), 4))
}

func TestRandomIsSeededAndEven(t *testing.T) {
	a, err := NewRandom(rand.NewPCG(7, 0))
	require.NoError(t, err)
	b, err := NewRandom(rand.NewPCG(7, 0))
	require.NoError(t, err)
	got := picks(t, a, fleet(4), 4000)
	require.Equal(t, got, picks(t, b, fleet(4), 4000))
	var counts [4]int
	for _, i := range got {
		counts[i]++
	}
	for _, n := range counts {
		require.InDelta(t, 1000, n, 4*27) // four standard deviations of a binomial count
	}
	_, err = NewRandom(nil)
	require.ErrorContains(t, err, "seeded")
}

func TestPolledEqualsShareInTurn(t *testing.T) {
	p, err := NewLeastOutstanding(Polled)
	require.NoError(t, err)
	v := fleet(4)
	v.Workers[0].Running, v.Workers[2].Waiting = 3, 1
	require.Equal(t, []int{1, 3, 1, 3}, picks(t, p, v, 4))
}

func TestWhoReadsSamples(t *testing.T) {
	for name, p := range all(t) {
		r, ok := p.(SampleReader)
		require.Equal(t, name == "least outstanding, polled" || name == "least outstanding, polled_plus_own", ok && r.ReadsSamples(), name)
	}
}

func TestZeroPolicies(t *testing.T) {
	for want, p := range map[string]Policy{"want Local, Polled or PolledPlusOwn": new(LeastOutstanding), "no source": new(Random)} {
		_, err := p.Pick(context.Background(), &load.Request{}, fleet(2))
		require.ErrorContains(t, err, want)
	}
}

func TestAge(t *testing.T) {
	v := fleet(1)
	_, ok := v.Age(0)
	require.False(t, ok)
	v.Workers[0].Polled, v.Workers[0].PolledAt = true, 400*time.Millisecond
	age, ok := v.Age(0)
	require.True(t, ok)
	require.Equal(t, 600*time.Millisecond, age)
}

func TestPicksAllocateNothing(t *testing.T) {
	v := fleet(64)
	v.Workers[5].Healthy = false
	r := &load.Request{}
	for name, p := range all(t) {
		require.Zero(t, testing.AllocsPerRun(100, func() { p.Pick(context.Background(), r, v) }), name)
	}
}

func BenchmarkPick(b *testing.B) {
	r := &load.Request{}
	for name, p := range all(b) {
		for _, n := range []int{8, 256} {
			b.Run(name+"/"+map[int]string{8: "8", 256: "256"}[n], func(b *testing.B) {
				v := fleet(n)
				b.ReportAllocs()
				for b.Loop() {
					p.Pick(context.Background(), r, v)
				}
			})
		}
	}
}

package policy

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func fleet(n int) *View {
	v := &View{Now: time.Second, Workers: make([]Worker, n)}
	for i := range v.Workers {
		v.Workers[i].Slot = i + 1
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

func picks(t testing.TB, p Policy, v *View, n int) []int {
	var got []int
	for range n {
		d, err := p.Pick(&Request{}, v)
		require.NoError(t, err)
		require.Equal(t, VerdictDispatch, d.Verdict)
		got = append(got, d.Worker)
	}
	return got
}

func TestWorkersThatAreNotOpenGetNothing(t *testing.T) {
	for name, p := range all(t) {
		t.Run(name, func(t *testing.T) {
			v := fleet(3)
			v.Workers[0].State, v.Workers[2].Limit, v.Workers[2].InFlight = Down, 2, 2
			require.Equal(t, []int{2, 2, 2}, picks(t, p, v, 3))
			v.Workers[1].State = Draining
			d, err := p.Pick(&Request{}, v)
			require.NoError(t, err)
			require.Equal(t, Reject("no worker is open"), d)
		})
	}
}

func TestRoundRobin(t *testing.T) {
	p := new(RoundRobin)
	require.Equal(t, []int{1, 2, 3, 1}, picks(t, p, fleet(3), 4))
	v := fleet(3)
	v.Workers[1].State = Gone
	require.Equal(t, []int{3, 1, 3}, picks(t, p, v, 3))
	require.Equal(t, []int{1, 2}, picks(t, p, fleet(2), 2), "another fleet")
}

func TestLeastOutstandingReadsItsSignal(t *testing.T) {
	v := fleet(3)
	v.Workers[0] = Worker{InFlight: 1, Load: Load{Running: 5, Waiting: 5}, Unseen: 0}
	v.Workers[1] = Worker{InFlight: 2, Load: Load{Running: 1, Waiting: 1}, Unseen: 9}
	v.Workers[2] = Worker{InFlight: 3, Load: Load{Running: 1, Waiting: 2}, Unseen: 0}
	for s, want := range map[Signal]int{Local: 1, Polled: 2, PolledPlusOwn: 3} {
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
	require.Equal(t, []int{1, 2, 3, 1}, picks(t, p, fleet(3), 4))
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
		counts[i-1]++
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
	v.Workers[0].Load.Running, v.Workers[2].Load.Waiting = 3, 1
	require.Equal(t, []int{2, 4, 2, 4}, picks(t, p, v, 4))
}

func TestNeeds(t *testing.T) {
	for name, p := range all(t) {
		require.Equal(t, Needs{Samples: name == "least outstanding, polled" || name == "least outstanding, polled_plus_own"}, NeedsOf(p), name)
	}
}

func TestZeroPolicies(t *testing.T) {
	for want, p := range map[string]Policy{"want Local, Polled or PolledPlusOwn": new(LeastOutstanding), "no source": new(Random)} {
		_, err := p.Pick(&Request{}, fleet(2))
		require.ErrorContains(t, err, want)
	}
}

func TestAge(t *testing.T) {
	v := fleet(1)
	_, ok := v.Worker(1).Age(v)
	require.False(t, ok)
	v.Workers[0].Load = Load{Sampled: true, At: 400 * time.Millisecond}
	age, ok := v.Worker(1).Age(v)
	require.True(t, ok)
	require.Equal(t, 600*time.Millisecond, age)
}

func TestPicksAllocateNothing(t *testing.T) {
	v := fleet(64)
	v.Workers[5].State = Down
	r := &Request{}
	for name, p := range all(t) {
		require.Zero(t, testing.AllocsPerRun(100, func() { p.Pick(r, v) }), name)
	}
}

// onePerWorker is how a user would write least outstanding.
type onePerWorker struct{}

func (onePerWorker) Pick(_ *Request, v *View) (Decision, error) {
	best, least := 0, 0
	for w := range v.Open() {
		if best == 0 || w.InFlight < least {
			best, least = w.Slot, w.InFlight
		}
	}
	return Dispatch(best), nil
}

func TestTheIteratorAllocatesNothing(t *testing.T) {
	var p Policy = onePerWorker{}
	v := fleet(64)
	require.Zero(t, testing.AllocsPerRun(100, func() { p.Pick(nil, v) }))
	v.Workers[0].InFlight, v.Workers[1].State = 1, Down
	require.Equal(t, []int{3}, picks(t, p, v, 1))
}

func BenchmarkPick(b *testing.B) {
	r := &Request{}
	for name, p := range all(b) {
		for _, n := range []int{8, 256, 1000} {
			b.Run(name+"/"+strconv.Itoa(n), func(b *testing.B) {
				v := fleet(n)
				b.ReportAllocs()
				for b.Loop() {
					p.Pick(r, v)
				}
			})
		}
	}
}

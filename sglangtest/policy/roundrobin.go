package policy

// RoundRobin picks the open workers in turn. It rejects a request if there is none. The zero value begins
// with the first worker.
type RoundRobin struct{ last int } // slot

// Pick implements [Policy].
func (p *RoundRobin) Pick(_ *Request, v *View) (Decision, error) {
	i := p.last // the index of the worker behind it
	for range v.Workers {
		if i >= len(v.Workers) {
			i = 0
		}
		if v.Workers[i].Open() {
			p.last = i + 1
			return Dispatch(p.last), nil
		}
		i++
	}
	return Dispatch(0), nil
}

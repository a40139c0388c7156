package metrics

import "github.com/sglangtest/harness/sglangtest/load"

const (
	resultsPerSlab = 512
	chunkSlabBytes = 256 << 10
)

// A store keeps results in slabs, so that growing copies nothing. Chunk lists lie one behind the other in byte
// slabs of their own. It is not safe for concurrent use.
type store struct {
	slabs [][]load.Result
	bytes []byte // the chunk slab being filled
	held  int    // bytes of all chunk slabs
	names map[string]string
}

func (s *store) add(res *load.Result, keepText bool) {
	if k := len(s.slabs); k == 0 || len(s.slabs[k-1]) == resultsPerSlab {
		s.slabs = append(s.slabs, make([]load.Result, 0, resultsPerSlab))
	}
	slab := &s.slabs[len(s.slabs)-1]
	*slab = append(*slab, *res)
	kept := &(*slab)[len(*slab)-1]
	kept.Chunks = res.Chunks.CopyTo(s.space(len(res.Chunks.Encoded())))
	// Each answer brings its own copy of these few names.
	kept.Worker = s.intern(res.Worker)
	kept.FinishReason = s.intern(res.FinishReason)
	kept.SimulatedBy = s.intern(res.SimulatedBy)
	if !keepText {
		kept.Text = ""
	}
}

// space returns n bytes that nothing else uses.
func (s *store) space(n int) []byte {
	if n == 0 {
		return nil
	}
	if len(s.bytes)+n > cap(s.bytes) {
		s.bytes = make([]byte, 0, max(chunkSlabBytes, n))
		s.held += cap(s.bytes)
	}
	at := len(s.bytes)
	s.bytes = s.bytes[:at+n]
	return s.bytes[at : at+n : at+n]
}

func (s *store) intern(name string) string {
	if name == "" {
		return ""
	}
	if known, ok := s.names[name]; ok {
		return known
	}
	if s.names == nil {
		s.names = make(map[string]string)
	}
	s.names[name] = name
	return name
}

func (s *store) all() []*load.Result {
	var rs []*load.Result
	for _, slab := range s.slabs {
		for i := range slab {
			rs = append(rs, &slab[i])
		}
	}
	return rs
}

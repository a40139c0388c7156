package load

// SamplingParams is replaced by the helper.
type SamplingParams struct{}

func (SamplingParams) Validate() error                         { return nil }
func (p SamplingParams) Merge(o SamplingParams) SamplingParams { return o }
func WarmupRequest(seed uint64, i int) Request                 { return Request{} }

package load

// SamplingParams is replaced by the helper.
type SamplingParams struct{}

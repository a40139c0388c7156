package server

import (
	"slices"

	"github.com/sglangtest/harness/sglangtest/internal/redact"
	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/internal/wire"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// Record says what is measured here, as the server told it when it became ready; after a restart, when it was ready again.
// [Server.Sampler] hands it to the collector, and so to the run folder; metrics.Collector.AddEngine does so for a run
// without that sampler.
func (s *Server) Record() metrics.EngineRecord {
	l := s.present()
	s.mu.Lock()
	info, raw := s.info, s.raw
	s.mu.Unlock()
	r := metrics.EngineRecord{
		Engine:        metrics.Engine{Source: s.name, Version: info.Version, Model: info.ModelPath, URL: wire.WithoutPassword(l.inst.URL())},
		ContextLength: info.ContextLength, MaxInputLen: info.MaxInputLen, MaxTotalTokens: info.MaxTotalTokens,
		MaxRunningRequests: info.MaxRunningRequests, DPSize: info.DPSize,
	}
	if raw != nil {
		r.ServerInfo, _ = sglargs.WithoutSecrets(raw).(map[string]any)
	}
	for _, id := range l.reservation.config.GPUs {
		name := metrics.GPUName{Index: id}
		if i := slices.IndexFunc(l.reservation.gpus, func(g GPU) bool { return g.Index == id }); i >= 0 {
			name.Name, name.UUID = l.reservation.gpus[i].Name, l.reservation.gpus[i].UUID
		}
		r.GPUs = append(r.GPUs, name)
	}
	if commanded, ok := l.inst.(Commanded); ok {
		r.Command = redact.CommandLine(commanded.CommandLine())
	}
	return r
}

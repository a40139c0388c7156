package sim

// EngineConfig returns the effective configuration of the server's scheduler: that of the profile with what the
// server's config sets. It is known before Start.
func (s *Server) EngineConfig() EngineConfig { return s.host.loop.Engine.Config() }

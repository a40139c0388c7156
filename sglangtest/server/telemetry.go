package server
import "context"
func (s *Server) Metrics(ctx context.Context) (int, error) { var b []byte; return 0, s.client.once(ctx, "GET", "/metrics", nil, &b) }

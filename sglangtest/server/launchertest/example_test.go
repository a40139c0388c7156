package launchertest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"

	"github.com/sglangtest/harness/sglangtest/server"
)

// A cluster launches servers as a scheduler of a cluster does: it knows its nodes, and what happens on them.
type cluster struct{ nodes []string }

// Hosts makes it a server.Reserver: the manager gives each port and GPU of a node to one server.
func (c cluster) Hosts(context.Context, server.Config) ([]server.Host, error) {
	var hosts []server.Host
	for _, name := range c.nodes {
		hosts = append(hosts, server.Host{Name: name, Port: true, GPUs: true})
	}
	return hosts, nil
}

func (c cluster) Launch(_ context.Context, spec server.Spec) (server.Instance, error) {
	j := &job{spec: spec, log: server.NewLog(spec.Config), exited: make(chan struct{})}
	// Here `srun -w NODE python -m sglang.launch_server ARGUMENTS` would start, with its streams to j.log.
	args, err := spec.CommandLine("")
	if err != nil {
		return nil, err
	}
	fmt.Println(spec.Host, args)
	j.http = httptest.NewServer(http.HandlerFunc(j.serve))
	_, _ = io.WriteString(j.log.Stderr(), "server_args={}\nLoad weight begin\nLoad weight end\nINFO: Uvicorn running on "+j.http.URL+"\n")
	return j, nil
}

// A job is one server of the cluster. Beyond the least it is server.Logged, server.Named and a server.Killer.
type job struct {
	spec   server.Spec
	log    *server.Log
	http   *httptest.Server
	once   sync.Once
	exited chan struct{}
}

func (j *job) URL() string                { return j.http.URL }
func (j *job) Exited() <-chan struct{}    { return j.exited }
func (j *job) Err() error                 { return nil }
func (j *job) Log() *server.Log           { return j.log }
func (j *job) WeightVersion() string      { return j.spec.WeightVersion() }
func (j *job) Kill(context.Context) error { j.end(); return nil }
func (j *job) Stop(context.Context) error { j.end(); return nil }

func (j *job) end() {
	j.once.Do(func() {
		j.http.Close()
		j.log.End()
		close(j.exited)
	})
}

// serve stands for SGLang.
func (j *job) serve(w http.ResponseWriter, r *http.Request) {
	name := j.spec.WeightVersion()
	answers := map[string]string{
		"/ready":       "",
		"/model_info":  fmt.Sprintf(`{"model_path": "m", "is_generation": true, "weight_version": %q}`, name),
		"/server_info": `{"version": "0.5.23"}`,
		"/v1/models":   `{"data": [{"id": "m", "max_model_len": 4096}]}`,
		"/generate":    fmt.Sprintf(`{"meta_info": {"completion_tokens": 1, "weight_version": %q}}`, name),
	}
	if answer, ok := answers[r.URL.Path]; ok {
		fmt.Fprint(w, answer)
	} else {
		http.NotFound(w, r)
	}
}

// A launcher of one's own, for two nodes of a cluster.
func Example() {
	ctx := context.Background()
	servers, err := server.NewServerManager(cluster{nodes: []string{"node-a", "node-b"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer servers.StopAll(ctx)
	for range 2 {
		s, err := servers.Launch(ctx, server.Config{ModelPath: "m", Host: "0.0.0.0", Port: 30000, GPUs: []int{0}})
		if err != nil {
			fmt.Println(err)
			return
		}
		host, _ := s.Host()
		fmt.Println(s.Name(), "is", s.State(), "on", host)
	}
	_, err = servers.Launch(ctx, server.Config{ModelPath: "m", Port: 30000})
	fmt.Println(err)

	if err := servers.Servers()[0].Kill(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println(servers.Servers()[0].Err())
	// Output:
	// node-a [--model-path m --host 0.0.0.0 --port 30000 --weight-version server-0]
	// server-0 is ready on node-a
	// node-b [--model-path m --host 0.0.0.0 --port 30000 --weight-version server-1]
	// server-1 is ready on node-b
	// server: 127.0.0.1:30000 of node-a is the port of server-0: choose another port, or 0 for a free one
	// server: 127.0.0.1:30000 of node-b is the port of server-1: choose another port, or 0 for a free one
	// killed as the experiment asked
}

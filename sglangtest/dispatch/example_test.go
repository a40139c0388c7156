package dispatch_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/sglangtest/harness/sglangtest/dispatch"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// server answers every request with one token.
func server() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, `data: {"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}`+"\n\ndata: [DONE]\n\n")
	}))
}

// One sender spreads a workload over two servers. The policy may be one of your own; what it holds back waits before it is sent.
func ExampleNewLive() {
	a, b := server(), server()
	defer a.Close()
	defer b.Close()
	route, err := dispatch.NewLive(new(policy.RoundRobin), []dispatch.Worker{{Name: "a", URL: a.URL}, {Name: "b", URL: b.URL, Limit: 8}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer route.Close()
	sender, err := load.NewRoutedSender()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sender.Close()
	gen, err := load.NewRequestGenerator(load.Random(100, 1, 0), load.WithArrivals(load.AllAtOnce()), load.WithLimit(10))
	if err != nil {
		fmt.Println(err)
		return
	}
	col, err := metrics.NewCollector()
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := load.Run(context.Background(), gen, sender, col, load.WithRoute(route)); err != nil {
		fmt.Println(err)
		return
	}
	served := map[string]int{}
	for r := range col.Results() {
		served[r.Worker]++
	}
	fmt.Println(served["a"], served["b"])
	// Output: 5 5
}

// A program with servers and a queue of its own feeds the core with what happens and does what comes out.
func ExampleCore() {
	core, err := dispatch.New(new(policy.RoundRobin), dispatch.WithLimits(dispatch.Limits{InFlight: 1}))
	if err != nil {
		fmt.Println(err)
		return
	}
	core.AddWorker(0, dispatch.Worker{Name: "a"})
	core.AddWorker(0, dispatch.Worker{Name: "b"})
	carryOut := func() {
		for a, ok := core.Next(); ok; a, ok = core.Next() {
			fmt.Printf("request %d: %v to %s\n", a.Ticket.Request.ID, a.Verdict, core.View().Worker(a.Worker).Name)
		}
	}
	tickets := make([]dispatch.Ticket, 2)
	for i := range tickets {
		tickets[i].Request.Request = &load.Request{ID: i, Prompt: load.Prompt{Text: "hello"}}
		core.Arrive(time.Duration(i)*time.Second, &tickets[i])
		carryOut()
	}
	fmt.Println("waiting:", core.View().Waiting)
	core.End(5*time.Second, &tickets[0], &load.Result{Outcome: load.OutcomeOK})
	carryOut()
	// Output:
	// request 0: dispatch to a
	// waiting: 1
	// request 1: dispatch to b
}

// Command truth compares what the SDK reports with what a reference server knows to be true: it starts the
// reference server (see bench/README.md), sends it Poisson traffic several times, and prints for each run the
// server's own figures beside ours, then the medians over the runs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

func main() {
	var (
		refserver = flag.String("refserver", "", "`path` of the reference server's binary (required)")
		rate      = flag.Float64("rate", 200, "Poisson arrivals per second")
		seconds   = flag.Float64("seconds", 10, "length of each run")
		runs      = flag.Int("runs", 5, "runs")
		ttft      = flag.Duration("ttft", 20*time.Millisecond, "the server's time to first token")
		itl       = flag.Duration("itl", 2*time.Millisecond, "the server's time between tokens")
		out       = flag.Int("out", 32, "output tokens of each request")
		addr      = flag.String("addr", "127.0.0.1:31000", "where the reference server listens")
	)
	flag.Parse()
	if err := compare(*refserver, *addr, *rate, *seconds, *runs, *ttft, *itl, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// stats is what the reference server says of what it did.
type stats struct {
	TTFT struct{ P50, P99 float64 } `json:"true_ttft_ms"`
	Gap  struct{ P50, P99 float64 } `json:"true_mean_gap_ms"`
	Rate float64                    `json:"arrival_rate"`
}

func compare(refserver, addr string, rate, seconds float64, runs int, ttft, itl time.Duration, out int) error {
	if refserver == "" {
		return errors.New("-refserver is required")
	}
	server := exec.Command(refserver, "-addr", addr, "-ttft", ttft.String(), "-itl", itl.String(), "-stamps")
	if err := server.Start(); err != nil {
		return err
	}
	defer func() { server.Process.Signal(os.Interrupt); server.Wait() }()
	url := "http://" + addr
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, err := get(url + "/reset"); err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}

	loadavg, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("Poisson %g/s for %g s, TTFT %v, gap %v, %d tokens; load average before: %s\n", rate, seconds, ttft, itl, out, strings.TrimSpace(string(loadavg)))
	fmt.Println("run  TTFT p50 (true, ours)   TTFT p99 (true, ours)   gap p50 (true, ours)   ITL p99  late p50  late p99  rate (scheduled, server saw)  failed")
	var dTTFT50, dTTFT99, dGap50, late, rateError []float64
	for i := range runs {
		if _, err := get(url + "/reset"); err != nil {
			return err
		}
		sum, err := run(url, rate, seconds, out, uint64(i+1))
		if err != nil {
			return err
		}
		body, err := get(url + "/stats")
		if err != nil {
			return err
		}
		var s stats
		if err := json.Unmarshal(body, &s); err != nil {
			return err
		}
		ours50, ours99 := float64(sum.ServerTTFT.Median), at(sum.ServerTTFT, 0.99)
		tpot50, itl99 := float64(sum.TPOT.Median), at(sum.ITL, 0.99)
		late99 := at(sum.Client.Lateness, 0.99)
		fmt.Printf("%3d  %9.3f %9.3f     %9.3f %9.3f     %9.3f %9.3f    %8.3f  %8.3f  %8.3f   %10.2f %10.2f          %d\n", i+1, s.TTFT.P50, ours50, s.TTFT.P99, ours99,
			s.Gap.P50, tpot50, itl99, float64(sum.Client.Lateness.Median), late99, *sum.Rates.Scheduled, s.Rate, sum.Requests.Failed)
		dTTFT50 = append(dTTFT50, ours50-s.TTFT.P50)
		dTTFT99 = append(dTTFT99, ours99-s.TTFT.P99)
		dGap50 = append(dGap50, tpot50-s.Gap.P50)
		late = append(late, late99)
		rateError = append(rateError, 100*(s.Rate / *sum.Rates.Scheduled - 1))
	}
	fmt.Printf("median over the runs: TTFT p50 off by %.3f ms, p99 by %.3f ms; mean gap p50 by %.3f ms; lateness p99 %.3f ms; arrival rate off by %.2f %%\n",
		median(dTTFT50), median(dTTFT99), median(dGap50), median(late), median(rateError))
	return nil
}

func run(url string, rate, seconds float64, out int, seed uint64) (*metrics.Summary, error) {
	gen, err := load.NewRequestGenerator(load.Random(32, out, 1), load.WithArrivals(load.Poisson(rate)), load.WithDuration(time.Duration(seconds*1e9)), load.WithSeed(seed))
	if err != nil {
		return nil, err
	}
	sender, err := load.NewSender(url)
	if err != nil {
		return nil, err
	}
	defer sender.Close()
	col, err := metrics.NewCollector()
	if err != nil {
		return nil, err
	}
	if err := load.Run(context.Background(), gen, sender, col); err != nil {
		return nil, err
	}
	return col.Summary(), nil
}

func get(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var b json.RawMessage
	if strings.HasSuffix(url, "/stats") {
		err = json.NewDecoder(resp.Body).Decode(&b)
	}
	return b, err
}

func at(d metrics.Distribution, q float64) float64 {
	v, err := d.Quantile(q)
	if err != nil {
		panic(err) // 0.99 is among the default percentiles
	}
	return float64(v)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

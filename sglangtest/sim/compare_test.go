package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// An answer is one HTTP response, recorded or simulated.
type answer struct {
	line   string
	header http.Header
	body   string
}

func readAnswer(t testing.TB, raw []byte) answer {
	line, rest, ok := bytes.Cut(raw, []byte("\r\n"))
	require.True(t, ok)
	head, body, _ := bytes.Cut(rest, []byte("\r\n\r\n"))
	a := answer{line: string(line), header: http.Header{}, body: string(body)}
	for l := range strings.SplitSeq(string(head), "\r\n") {
		k, v, _ := strings.Cut(l, ": ")
		a.header.Add(k, v)
	}
	return a
}

// ask sends a request and reads the whole answer, also one that breaks off.
func (c client) ask(ctx context.Context, method, path, body string, header ...string) answer {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	require.NoError(c.t, err)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	read := bufio.NewReader(resp.Body)
	read.Peek(1)
	if c.began != nil {
		close(c.began)
	}
	b, _ := io.ReadAll(read)
	return answer{line: resp.Proto + " " + resp.Status, header: resp.Header, body: string(b)}
}

// parse reads JSON into ordered objects, lists, json.Number and the like.
func parse(t testing.TB, raw string) any {
	dec := json.NewDecoder(strings.NewReader(raw))
	dec.UseNumber()
	var value func() any
	value = func() any {
		tok, err := dec.Token()
		require.NoError(t, err, raw)
		switch tok {
		case json.Delim('{'):
			o := []member{}
			for dec.More() {
				k, err := dec.Token()
				require.NoError(t, err)
				o = append(o, member{k.(string), value()})
			}
			_, err = dec.Token()
			require.NoError(t, err)
			return o
		case json.Delim('['):
			l := []any{}
			for dec.More() {
				l = append(l, value())
			}
			_, err = dec.Token()
			require.NoError(t, err)
			return l
		}
		return tok
	}
	return value()
}

type member struct {
	key   string
	value any
}

// A comparison compares JSON of the simulation with recorded JSON: the same keys in the same order, the same types, and
// equal values, except where free says why not.
type comparison struct {
	t    testing.TB
	free map[string]string // key to the reason
	bad  []string
}

// Values that no simulation can have in common with a real server, wherever they stand.
var freeValues = map[string]string{
	"text": "the model's output", "content": "the model's output", "output_ids": "the model's output", "tokens": "the tokenizer's ids",
	"output_token_logprobs": "the model's output", "output_top_logprobs": "the model's output", "input_token_logprobs": "the model's output",
	"input_top_logprobs": "the model's output",
	"id":                 "an id", "created": "a time", "timestamp": "a time", "queue_time": "a time", "forward_entry_time": "a time",
	"prefill_finished_time": "a time", "e2e_latency": "a time", "request_received_ts": "a time", "first_token_latency": "a time",
	"api_server_dispatch_finish_ts": "a time", "request_finished_ts": "a time", "response_sent_to_client_ts": "a time", "decode_throughput": "a time",
	"startup_time": "times", "last_gen_throughput": "a time", "random_seed": "random", "port": "of the machine", "launch_command": "of the machine",
	"grpc_port": "of the machine", "memory_usage": "of the machine",
}

// anything as the reason says that not even the type must agree.
const anything = "depends on what the tokenizer's texts have in common"

// ours are keys that the simulation adds.
var ours = map[string]bool{"simulated": true}

func (c *comparison) fault(path, format string, args ...any) {
	c.bad = append(c.bad, path+": "+fmt.Sprintf(format, args...))
}

func (c *comparison) compare(path string, want, got any, free bool) {
	switch w := want.(type) {
	case []member:
		g, ok := got.([]member)
		if !ok {
			c.fault(path, "want an object, got %T", got)
			return
		}
		g = slices.DeleteFunc(slices.Clone(g), func(f member) bool { return ours[f.key] })
		keys := func(o []member) (k []string) {
			for _, f := range o {
				k = append(k, f.key)
			}
			return k
		}
		if wk, gk := keys(w), keys(g); !slices.Equal(wk, gk) {
			c.fault(path, "want the keys %v, got %v", wk, gk)
			return
		}
		for i := range w {
			key := w[i].key
			reason := freeValues[key] + c.free[key]
			if c.free[key] == anything {
				continue
			}
			c.compare(path+"."+key, w[i].value, g[i].value, free || reason != "")
		}
	case []any:
		g, ok := got.([]any)
		if !ok {
			c.fault(path, "want a list, got %T", got)
			return
		}
		if len(w) != len(g) && (!free || (len(w) == 0) != (len(g) == 0)) {
			c.fault(path, "want %d items, got %d", len(w), len(g))
			return
		}
		for i := range min(len(w), len(g)) {
			c.compare(fmt.Sprintf("%s[%d]", path, i), w[i], g[i], free)
		}
	case json.Number:
		g, ok := got.(json.Number)
		isFloat := func(n json.Number) bool { return strings.ContainsAny(string(n), ".eE") }
		if !ok || isFloat(w) != isFloat(g) {
			c.fault(path, "want a number like %v, got %v", w, got)
		} else if !free && w != g {
			c.fault(path, "want %v, got %v", w, g)
		}
	case string:
		g, ok := got.(string)
		if !ok {
			c.fault(path, "want a string, got %T", got)
		} else if !free && plain(w) != plain(g) {
			c.fault(path, "\nwant %q\ngot  %q", plain(w), plain(g))
		}
	default:
		if want != got {
			c.fault(path, "want %v, got %v", want, got)
		}
	}
}

// plain leaves out where SGLang is installed, which the recordings replace.
func plain(s string) string { return strings.ReplaceAll(s, sitePackages, "SITE-PACKAGES") }

// old is the shape of an error message of FastAPI before it named the route's code, which the recordings of the H100 have.
var old = regexp.MustCompile(`(?s)^\d+ validation errors?:.* (\[\{.*\}\])$`)

// check compares an answer with a recorded one.
func check(t *testing.T, want, got answer, free map[string]string, oldFastAPI bool) {
	require.Equal(t, want.line, got.line, got.body)
	for _, h := range []string{"Server", "Content-Type", "Vary", "Allow"} {
		require.Equal(t, want.header.Get(h), got.header.Get(h), h)
	}
	require.NotEmpty(t, got.header.Get("Date"))
	if want.header.Get("Content-Length") != "" {
		require.NotEmpty(t, got.header.Get("Content-Length"))
	}
	c := &comparison{t: t, free: free}
	one := func(path, w, g string) {
		if c.free = free; strings.HasPrefix(path, "event") && strings.Contains(w, `"finish_reason":null`) {
			c.free = maps.Clone(counts) // how many tokens share an event depends on the time
			maps.Copy(c.free, free)
		}
		wv, gv := parse(t, w), parse(t, g)
		if o, ok := gv.([]member); ok && oldFastAPI {
			for i := range o {
				if s, ok := o[i].value.(string); ok && o[i].key == "message" {
					o[i].value = strings.TrimPrefix(old.ReplaceAllString(s, "$1"), " ")
				}
			}
		}
		if o, ok := wv.([]member); ok && oldFastAPI {
			for i := range o {
				if s, ok := o[i].value.(string); ok && o[i].key == "message" {
					o[i].value = strings.TrimPrefix(s, " ")
				}
			}
		}
		c.compare(path, wv, gv, false)
	}
	switch kind := want.header.Get("Content-Type"); {
	case strings.HasPrefix(kind, "application/json"):
		one("", want.body, got.body)
	case strings.HasPrefix(kind, "text/event-stream"):
		compareEvents(t, one, events(want.body), events(got.body))
	default:
		require.Equal(t, want.body, got.body)
	}
	require.Empty(t, c.bad, strings.Join(c.bad, "\n"))
}

// compareEvents compares streams by their distinct events.
func compareEvents(t *testing.T, one func(path, w, g string), want, got []string) {
	w, g := distinct(t, want), distinct(t, got)
	require.Len(t, g, len(w), "want\n%s\ngot\n%s", strings.Join(w, "\n"), strings.Join(g, "\n"))
	for i := range w {
		if w[i] == "[DONE]" || g[i] == "[DONE]" {
			require.Equal(t, w[i], g[i])
			continue
		}
		one(fmt.Sprintf("event %d ", i), w[i], g[i])
	}
}

// streamOf is the end of an event that tells to which stream of a batch it belongs.
func streamOf(e string) string {
	if i := strings.LastIndex(e, `"index":`); i >= 0 && len(e)-i < 12 {
		return e[i:]
	}
	return "~"
}

// distinct leaves of events of one shape that follow each other the first: how many tokens share an event depends on the
// time. So does the order of the streams of a batch.
func distinct(t *testing.T, list []string) (out []string) {
	last := map[string]string{}
	for _, e := range list {
		if e == "[DONE]" {
			out = append(out, e)
			continue
		}
		shape := eventShape(t, e)
		if last[streamOf(e)] != shape {
			out = append(out, e)
		}
		last[streamOf(e)] = shape
	}
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(streamOf(a), streamOf(b)) })
	return out
}

// again asks until a stream has as many distinct events as the recorded one: on a busy machine all tokens may come in one
// event. So each try has slower steps.
func again(t *testing.T, c client, want answer, ask func() answer) answer {
	got := ask()
	if !strings.HasPrefix(want.header.Get("Content-Type"), "text/event-stream") {
		return got
	}
	n := len(distinct(t, events(want.body)))
	for sleep := 0.02; len(distinct(t, events(got.body))) != n && sleep < 1; sleep *= 2 {
		c.post("/slow_down", fmt.Sprintf(`{"forward_sleep_time":%v}`, sleep))
		got = ask()
		c.post("/slow_down", `{"forward_sleep_time":null}`)
	}
	return got
}

// eventShape is the keys of an event and the types of their values; a list counts as one.
func eventShape(t testing.TB, e string) string {
	var b strings.Builder
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []member:
			for _, f := range v {
				b.WriteString(f.key + "(")
				walk(f.value)
				b.WriteString(")")
			}
		case []any:
			b.WriteString("[")
			if len(v) > 0 {
				if _, object := v[0].([]member); object {
					walk(v[0])
				}
			}
		default:
			fmt.Fprintf(&b, "%T", v)
		}
	}
	walk(parse(t, e))
	return b.String()
}

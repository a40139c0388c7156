package metrics

import (
	"fmt"
	"math"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A CacheState says what a server's prefix cache held when the load began. Empty: not said.
type CacheState string

// The states of a cache. A server's cache makes TTFT shorter for each prompt that begins like one of an earlier run.
const (
	CacheFlushed CacheState = "flushed" // it was emptied right before the load
	CacheKept    CacheState = "kept"    // it was left as it was, on purpose
	CacheUnknown CacheState = "unknown" // the server ran before, and nobody emptied it
)

// text says what the reader of a summary has to know; "" if it is nothing.
func (s CacheState) text() string {
	switch s {
	case CacheKept:
		return "kept as it was before the run (keep_cache: true): latencies can be shorter for what it held"
	case CacheUnknown:
		return "state unknown: the server ran before, and latencies can be shorter for what earlier requests left there; " +
			"\"keep_cache\": false (or Server.FlushCache) empties it before the load, \"keep_cache\": true says that it is meant"
	}
	return ""
}

// cache notes what the events tell of the prefix caches, and what the engines count where the answers do not tell.
func (b *builder) cache() {
	t := &b.sum.Throughput
	var prefilled *float64
	for _, e := range b.events {
		switch e.Kind {
		case KindCacheState:
			// Of several servers the one of which least is known.
			if s := CacheState(fmt.Sprint(e.Data["state"])); b.sum.Cache == "" || s == CacheUnknown || s == CacheKept && b.sum.Cache == CacheFlushed {
				b.sum.Cache = s
			}
		case KindPrefilled:
			if n, ok := e.Number("tokens"); ok {
				if prefilled == nil {
					prefilled = new(float64)
				}
				*prefilled += n
			}
		}
	}
	if prefilled != nil {
		n := max(0, t.InputTokens-int64(*prefilled))
		t.CachedByEngine = &n
	}
}

// cached returns how many of the input tokens came from prefix caches, by the answers or else by the engines' own count, and
// which of the two.
func (t Throughput) cached() (n int64, by string, ok bool) {
	switch {
	case t.CachedTokens != nil:
		return *t.CachedTokens, "", true
	case t.CachedByEngine != nil:
		return *t.CachedByEngine, ", by the engine's own count of prefilled tokens,", true
	}
	return 0, "", false
}

// cacheNote says how many input tokens came from prefix caches that the workload itself does not explain.
func (b *builder) cacheNote(add func(format string, args ...any)) {
	t := b.sum.Throughput
	cached, by, ok := t.cached()
	if !ok || cached == 0 || t.InputTokens == 0 {
		return
	}
	share := func(n float64) float64 { return 100 * n / float64(t.InputTokens) }
	n := float64(b.sum.Requests.OK)
	p := b.sum.Plan.Prompts
	if p == nil {
		if float64(cached) > chanceTokens(n) {
			add("%.1f %% of the input tokens came%s from the server's prefix cache; how much of that the workload's own prompts explain is not known",
				share(float64(cached)), by)
		}
		return
	}
	explained := float64(p.Shared)
	allowed := explained + chanceTokens(n)
	if p.Bytes > 0 {
		text := max(0, float64(t.InputTokens-p.Tokens)) // of the prompts whose tokens only the server knows
		explained += text * float64(p.SharedBytes) / float64(p.Bytes)
		// Equal shares of the bytes are not equal shares of the tokens, and each text begins with the same special token.
		allowed = 1.1*explained + chanceTokens(n) + n
	}
	if float64(cached) <= allowed {
		return
	}
	rest := "the rest was in the cache before the run, or comes from requests that are not of this run"
	if b.sum.Cache == CacheFlushed {
		rest = "the cache was emptied before the load, so that the rest comes from requests that are not of this run"
	}
	if p.Bytes > 0 && b.chatTexts() {
		rest += ", or is what the chat template puts before each prompt"
	}
	add("%.1f %% of the input tokens came%s from the server's prefix cache; equal beginnings of the workload's own prompts explain at most %.1f %%: %s",
		share(float64(cached)), by, share(math.Min(explained, float64(t.InputTokens))), rest)
}

// chanceTokens is how many tokens of n made-up prompts begin an earlier one by chance, at most: tokens are drawn from
// load.DefaultTokenLow to load.DefaultTokenHigh, so that of n prompts the first log n, to that base, can meet.
func chanceTokens(n float64) float64 {
	return n * (1 + math.Log(max(n, 1))/math.Log(load.DefaultTokenHigh-load.DefaultTokenLow))
}

func (b *builder) chatTexts() bool {
	for _, r := range b.rs {
		if r.API == load.ChatCompletions {
			return true
		}
	}
	return false
}

package sim

import (
	"encoding/json"
	"math"
)

// What a server with a GPU resolves and measures is that of the recorded one of [H100Llama8B] whatever the profile, and
// /server_info says so: of other GPUs nothing was recorded. Sizes are in GB as SGLang counts them, 2³⁰ bytes.
const (
	memFractionStatic = 0.83
	freeAtStart       = 78.50
	weightGB          = 15.02
	kvBytesPerToken   = 131072
	otherGB           = 0.15
	prefillGraphsGB   = 1.59
	decodeGraphsGB    = 0.41
	memoryOf          = "Llama-3.1-8B in bf16 on an NVIDIA H100 80GB HBM3, as recorded"
)

// decodeSizes are the batch sizes of the decode graphs.
func decodeSizes() []int {
	sizes := []int{1, 2, 4, 8, 12}
	for n := 16; n <= 256; n += 8 {
		sizes = append(sizes, n)
	}
	return sizes
}

// edit changes keys of the object that a key has as its value. A key that the object does not have is left out.
func (o *ordered) edit(key string, changes object) {
	for i := range *o {
		if (*o)[i].key != key {
			continue
		}
		var inner ordered
		if err := json.Unmarshal((*o)[i].value, &inner); err != nil {
			panic("sim: server info: " + err.Error()) // part of the program
		}
		for j := range inner {
			if v, ok := changes[inner[j].key]; ok {
				if deeper, isObject := v.(object); isObject {
					inner.edit(inner[j].key, deeper)
				} else {
					inner[j].value = mustJSON(v)
				}
			}
		}
		(*o)[i].value = mustJSON(inner)
	}
}

// onGPU reports whether the server says that it has a GPU, and graphs whether it has CUDA graphs.
func (s *Server) onGPU() bool {
	return s.opts.serverArgs["device"] == nil || s.opts.serverArgs["device"] == "cuda"
}
func (s *Server) graphs() bool {
	return s.onGPU() && s.opts.serverArgs["disable_cuda_graph"] != true
}

// resolved sets what a server with a GPU makes of its arguments, in place of what one without made of them.
func (s *Server) resolved(args *ordered, ec EngineConfig) {
	if !s.onGPU() {
		return
	}
	args.set("mem_fraction_static", memFractionStatic)
	args.set("sampling_backend", "pytorch")
	if s.graphs() {
		prefill := object{"backend": "breakable"}
		if ec.ChunkedPrefillSize > 0 {
			prefill["max_bs"], prefill["bs"] = ec.ChunkedPrefillSize, graphSizes(ec.ChunkedPrefillSize)
		}
		args.edit("cuda_graph_config", object{"decode": object{"backend": "full", "max_bs": 256, "bs": decodeSizes()}, "prefill": prefill})
	}
}

// memory sets the sizes of memory in the scheduler's state.
func (s *Server) memory(state *ordered, ec EngineConfig) {
	state.edit("memory_usage", object{"token_capacity": ec.MaxTotalTokens})
	if !s.onGPU() {
		return
	}
	digits, graph := 1000., any(object{})
	if s.opts.release.recorded() == 0 { // 0.5.15 has one number for all graphs, that of the decode graphs
		digits, graph = 100, 0
	}
	gb := func(v float64) float64 { return math.Round(v*digits) / digits }
	kv := float64(ec.MaxTotalTokens) * kvBytesPerToken / (1 << 30)
	free := freeAtStart - weightGB - kv - otherGB
	if s.graphs() {
		free -= prefillGraphsGB + decodeGraphsGB
		graph = object{"prefill": prefillGraphsGB, "decode": decodeGraphsGB}
		if digits == 100 {
			graph = decodeGraphsGB
		}
		for i := range *state {
			switch (*state)[i].key {
			case "decode_cuda_graph_bs":
				(*state)[i].value = mustJSON(decodeSizes())
			case "decode_cuda_graph_memory_gb":
				(*state)[i].value = mustJSON(decodeGraphsGB)
			}
		}
	}
	state.edit("memory_usage", object{"weight": weightGB, "kvcache": gb(kv), "startup_available": gb(max(0, free)), "graph": graph})
}

package server

// HighThroughput returns a starting point for the most tokens per second, whatever the single request waits; the caller
// adds the model. SGLang's tuning guide (docs.sglang.io, "Hyperparameter Tuning") calls a large batch the most important
// thing; the values are for GPUs of 80 GB.
//
// What depends on the workload is left to the caller: schedule_conservativeness 0.3 helps if outputs end long before
// max_new_tokens but makes the engine retract requests if they do not, schedule_policy "lpm" helps if prompts share
// prefixes, and a stream_interval above 1 saves work on the CPU but makes token times coarse.
func HighThroughput() Config {
	return Config{
		// The guide wants 5 to 8 GB left beside weights, KV pool and graphs. On an H100 with 0.5.15 and a model of 8
		// billion parameters SGLang's own choice was 0.83 and left 10.3 GB; 0.88 left 6.0.
		MemFractionStatic: 0.88,
		// Decode batches above the largest captured one run without a graph. SGLang captures up to 256 there; the guide
		// finds graphs useful up to 512 or 768. There, those up to 512 took 0.64 GB, those up to 256 0.41.
		CUDAGraphMaxBSDecode: 512,
	}
}

// LowLatency returns a starting point for short and even times between tokens, at the price of throughput; the caller
// adds the model. Requests beyond the limit wait in the queue, so it also needs enough servers for the load.
//
// enable_torch_compile is left to the caller: it makes small models at small batches faster but starts for minutes.
func LowLatency() Config {
	return Config{
		// A decode step takes longer the more requests share it.
		MaxRunningRequests: 32,
		// Every decode batch up to the limit replays a graph; none above it is captured, which shortens the start.
		CUDAGraphMaxBSDecode: 32,
		// Prefill goes before decode, so running requests wait for whole chunks of others' prompts. SGLang's default is
		// 8192 tokens on GPUs of 80 GB; long prompts take longer with smaller chunks.
		ChunkedPrefillSize: 2048,
	}
}

// LittleMemory returns a starting point for a GPU that the model barely fits; the caller adds the model. What it saves
// beside the weights goes to the KV pool, since mem_fraction_static is left to SGLang, which derives it from these
// values. If the server still runs out of memory, lower max_running_requests, mem_fraction_static and
// chunked_prefill_size, in this order.
func LittleMemory() Config {
	return Config{
		// SGLang reserves 1.5 MiB for each token of a chunk and at least 2048 of them (0.5.23, memory_hook.py); the
		// tuning guide's smallest value against running out of memory in prefill.
		ChunkedPrefillSize: 2048,
		// Bounds the memory that decode steps and the requests' slots need, and how soon the pool is full.
		MaxRunningRequests: 32,
		// Every decode batch up to the limit replays a graph. SGLang captures up to 8 on GPUs below 20 GB, but on an H100
		// with a model of 8 billion parameters the graphs up to 8 and those up to 32 took 0.08 GB alike, and batches
		// without a graph took more than twice as long.
		CUDAGraphMaxBSDecode: 32,
		// Graphs of prefill save launch time and cost memory for every captured length: 0.49 GB there.
		CUDAGraphBackendPrefill: "disabled",
	}
}

//go:build unix

/*
The command sglang-sim is a simulated SGLang server as a process, for tests of launchers, routers, gateways and clients without
a GPU. It takes SGLang's command line, logs SGLang's lines on SGLang's streams, has SGLang's child processes, leaves SGLang's
files, ends with SGLang's exit statuses, and fails on demand.

	sglang-sim serve --model-path meta-llama/Llama-3.1-8B-Instruct --port 30000
	sglang-sim -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B-Instruct   # in place of the Python interpreter
	sglang-sim version
	sglang-sim --help                                                                # which arguments have an effect

The engine, its step times and the HTTP API are those of package sim: every answer says that it is simulated, and by which
profile. The log says so, too, which arguments were accepted but have no effect, and when this machine is too slow for the
simulation (results more than 5 ms late at p99). Sizes of memory in the log and in /server_info are those of a recorded start on an H100, whatever the profile,
and so are the arguments there that SGLang resolves by the GPU.

# Arguments

All arguments of SGLang are checked as its version does it; a wrong one ends the process with SGLang's words and status 2. Those
of the scheduler act on the simulated one: limits, schedule policy, priorities, page size, prefix cache, mixed chunks, overlap,
data-parallel ranks. A
--model-path that is a path and does not exist ends it with SGLang's traceback and status 1; any other name is taken as an alias of the profile's
model.

All other arguments are accepted and have no effect on what is simulated: the log names them. Those that could change times, capacity or
schedule in SGLang (all but a list of harmless ones, such as those of logs, names, files and metrics, and values with which the profile was
calibrated), and a model whose name is not that of the profile's, are in the label of every answer and in /server_info, and void the
profile's calibration and known error:

	h100-llama-3.1-8b with arguments not simulated: quantization fp8, tp_size 4

A comparison of --quantization fp8 with none so does not read as a measured "no effect". For a quantized model, choose a profile of it and
leave the argument out.

Arguments that are not SGLang's begin with --sim-, or are in the environment as SGLANG_SIM_NAME:

	--sim-profile NAME      the model and GPU to simulate (h100-llama-3.1-8b)
	--sim-version VERSION   the SGLang to be, 0.5.15.post1 to 0.5.23
	--sim-startup DURATION  time of the start, split over its phases as recorded on an H100 (0)
	--sim-waits FACTOR      scales SGLang's own waiting times, for tests (1)
	--sim-fault FAULT       a failure, see below; may be repeated
	--sim-files false       makes no files, unlike SGLang (true)
	--sim-shm FOLDER        shared memory (/dev/shm)
	--sim-instance PREFIX   of the instance id in the name of the file there, up to 8 hexadecimal digits
	--sim-seed SEED         of random faults (1)

# Answers

The text is filler of as many tokens as were asked for. A simulated model has no end-of-sequence token: where SGLang answers until the
model ends or the context is full, as for a chat without max_tokens, the answer here has 128 tokens and ends with the finish reason stop.
Set max_tokens to the length that is meant. What shapes the text is taken and ignored: response_format, tool_choice (also
"required": there are no tool calls), json_schema, regex and ebnf.

# Signals and exit statuses

	SIGTERM               while loading: signal 15. Up: waits until nothing is in flight, looking every 5 s, then
	                      0 (from 0.5.21 on) or signal 9 (before). Before the first generation: signal 15
	SIGINT                takes no connections, waits for open ones, 0; a second one waits no longer
	SIGKILL               the children die, too; all files stay
	a child has failed    signal 9

A clean end removes PROMETHEUS_MULTIPROC_DIR alone: the load snapshot in /dev/shm and the five files of ZeroMQ stay, as they
do with SGLang.

# Faults

A fault is NAME[:VALUE][@AFTER]. AFTER is a time from readiness, such as 30s, or a number of generation requests; it can be given for
those that are not of the start. GET /sim/fault lists all, with those that go on; POST {"fault": "NAME:VALUE@AFTER"} asks for one,
{"clear": "NAME"} ends one that goes on (but for hang). It wants the key that SGLang's admin routes want, a Content-Type of
application/json, and is not for web pages: those of another origin, or of a name that leads to this machine, are refused.

	missing-model       exit 1    the model's configuration is not found
	gated-model         exit 1    the model or tokenizer needs a login
	missing-package     exit 1    a package is missing
	unsupported-gpu     signal 9  the GPU is too old
	unbalanced-memory   signal 9  another process has memory of one of the GPUs
	oom-at-load         signal 9  CUDA out of memory while the weights are loaded
	no-kv-weights       signal 9  the weights take all memory of the static fraction
	no-kv-memory        signal 9  no memory is left for the KV pool
	kv-pool-small       signal 9  the KV pool holds no request
	oom-at-graphs       signal 9  CUDA out of memory while CUDA graphs are captured
	killed-at-load      exit 1    the operating system kills the scheduler while it loads
	port-in-use         exit 3    another server has the port: found after the load, with the readiness line all the same
	crash               signal 9  the scheduler raises an exception
	oom-prefill         signal 9  the next prefill finds no room in the KV pool
	oom-decode          signal 9  the next decode finds no room in the KV pool
	oom-running         signal 9  CUDA out of memory in the next step
	no-request-slot     signal 9  the next prefill finds no request slot
	watchdog            signal 9  a step exceeds --watchdog-timeout (at once)
	scheduler-killed    signal 9  the scheduler process gets SIGKILL
	detokenizer-killed  signal 9  the detokenizer process gets SIGKILL
	killed              signal 9  the main process gets SIGKILL
	hang                          the scheduler takes no further step; HTTP still answers; --watchdog-timeout applies
	slow-step:VALUE               every step takes 2 (times as long) or 5ms (longer)
	error-rate:VALUE              0.1/503: a tenth of the generations is answered with status 503
	broken-stream:VALUE           the connection of each stream breaks after so many events
	refuse:VALUE                  new connections are refused for a time, or for good without it
	orphan-detokenizer            the detokenizer outlives the main process, as was seen after SIGTERM while loading

What each version does was read from its source and compared with recordings of 0.5.15.post1, 0.5.18, 0.5.21 and 0.5.23. Not
simulated: Python's resource tracker process, py-spy and CUDA dumps, the warnings of Python packages, and faults of data-parallel ranks
other than the first, which the processes and the log have (a fault of steps acts on all). With --dp-size N there are N engines, each on a GPU
like the profile's; with --enable-dp-attention or --attn-dp-size there is one. On other systems than Linux the children end when they
find their parent gone, and have no names.
*/
package main

// Package results stores runs in folders, while they go on, and reads them back, whether they finished or not.
//
// [Create] (or a [ResultManager], which keeps runs side by side below one root) makes a run folder and returns
// its [Writer], the [metrics.Sink] to which a metrics.Collector passes on what happens. [Open] reads a
// folder as a [Run].
//
// # The run folder
//
// This is schema version 2 ([SchemaVersion]). JSON files are UTF-8; a file whose name ends in .jsonl holds
// one JSON object per line, each ended by one newline. Keys ending in _ns are integers in nanoseconds;
// those that are moments are offsets from the run's start on the monotonic clock. Lengths and counts whose
// keys name tokens, and input_len and output_len, are in tokens. Readers should ignore keys that they don't know.
//
//	run.json          what the run is and how far it came
//	config.json       the experiment's configuration, as it was given
//	environment.json  where and by what the run was made; see Environment
//	engines.json      the servers that were measured, a list; absent until the run begins, and if nothing declared them
//	requests.jsonl    one line per request that has ended
//	arrivals.jsonl    one line per request that has arrived
//	samples.jsonl     one line per sample of an engine, a GPU or a router
//	events.jsonl      one line per event: phases of the start (before 0), parameter changes, failures, verdicts
//	summary.json      the summary given to Finish; absent unless the run finished with one
//	reserve.tmp       64 KiB that make room for the last run.json on a full disk; only until the run has ended
//	requests.csv      with WithCSV, in finished runs: scalar columns of requests.jsonl; see Run.WriteCSV
//
// Files that are not appended to are replaced as a whole: they never hold half of their content. (A crash
// can leave a file named *.tmp behind, which means nothing.)
//
// run.json:
//
//	schema_version   2
//	state            "running", "finished" or "failed"
//	reason           why it failed; absent otherwise
//	label            free text
//	created          when the folder was made; wall-clock time, RFC 3339 with nanoseconds, like the next two
//	started          the moment that offset 0 stands for; null until the run begins
//	ended            null until the run has finished or failed
//	simulated        null if only real engines are measured; else a list of what stood in for them, as it was
//	                 when the run had ended: profile, calibrated (on what), known_error, validation (the
//	                 measured runs that it comes from; a summary states that of its own workload)
//	plan             the workload (load.Plan); null until the run begins
//	max_concurrency  cap on requests under way; 0 for none
//	writer           the process that writes: pid, and where Linux tells them start_ticks (clock ticks from
//	                 boot to its start), boot_id and pid_namespace, by which a reader knows whether it lives
//	chunks_stored    whether requests.jsonl has the chunks of streamed answers; false with WithoutChunks
//	size_bytes       the length of each .jsonl file when the run ended; absent until then, and if storing failed
//
// engines.json, of each server (metrics.EngineRecord), as it was at the run's start; what it does not tell is 0 or "":
//
//	source                the server's name, as in samples and events
//	version               SGLang's
//	model                 the model's path
//	url                   where it was reached
//	context_length        most tokens of prompt and output together
//	max_input_len         longest prompt in tokens
//	max_total_tokens      KV pool in tokens, of each data-parallel rank
//	max_running_requests  limit at start-up, of each data-parallel rank
//	data_parallel_ranks   how many there are
//	gpus                  index, name and uuid of the GPUs that the run gave it (the latter two with server.WithGPUs);
//	                      null for a server that was running, is simulated or chose by itself
//	command               the command line that started it; null if the run did not start it as a process
//	server_info           the server's own answer to GET /server_info, with every setting as it was resolved
//
// API keys and passwords in it are "(not stored)".
//
// Every line of a .jsonl file has every key of its kind, so that tools which take columns from keys (pandas, DuckDB) find the
// right ones. null stands for what is not known, 0 for a 0 that is. Keys marked * are never null. A key that is missing reads
// as null.
//
// requests.jsonl (a [load.Result]):
//
//	id*              position in the workload, unique within a run
//	conversation     the conversation's name; null for a single request
//	turn*            position in the conversation
//	arrival_ns*      intended arrival
//	due_ns*          when nothing but the client stood between the request and its release
//	released_ns*     when the client let go of it
//	send_ns*         when it began to be written; equals completion_ns if sent is false
//	first_event_ns   when the first event of the output had been read; null if none came
//	first_token_ns   when the first output token had been read; null if none came
//	first_tokens     how many had been read then; null if the server did not say
//	last_token_ns    when the last output token had been read; null if none came
//	completion_ns*   when the answer's last byte had been read or the failure was known
//	sent*            whether the request left
//	connect_ns       part of send_ns − released_ns spent on getting a connection; null if none was had
//	reused           whether the connection had served a request before; null likewise
//	idle_ns          how long that connection had lain idle; 0 for a new one, null if none was had
//	held_open*       whether the server kept the connection open after the stream's [DONE]
//	overhead_ns*     time the client spent between reads of the answer
//	api              "generate", "completions" or "chat_completions"
//	streamed*        whether the answer came as an event stream
//	outcome*         how it ended (load.Outcome); "ok" is the only success
//	status           HTTP status; null if no answer came
//	message          the error's text; null if there is none
//	input_len*       prompt length asked for
//	output_len*      output length asked for
//	prompt_tokens    the server's count, like the next two; null if it did not say
//	output_tokens*   of a failed request, those that had arrived
//	cached_tokens    prompt tokens from the server's cache; null if the server did not report it
//	cached_device    of cached_tokens, those from the GPU's memory; null if the server did not tell the tiers, like the next two
//	cached_host      from the host's memory
//	cached_storage   from a storage behind it; 0 also where there is none
//	retractions      how often the engine took the request back to its queue; null if it did not report it
//	finish_reason    the engine's; null if none came
//	worker           the server that processed it; null if that is not known
//	routed_ns        when the harness placed it; null if it did not, like the next three
//	routed_by        the policy
//	route_reason     why the policy placed it there; null if it did not say
//	attempt          which attempt this is, from 1
//	simulated_by     the profile of the simulated engine that answered; null for a real one
//	chunk_gap_ns     for each chunk of a streamed answer, the time since the chunk before it; for the first
//	                 since send_ns. Running sums plus send_ns are the times at which chunks had been read
//	chunk_tokens     the output tokens of each chunk; 0 where the server did not say
//	chunk_text_bytes the bytes of text of each chunk
//	text             the output; null if it was not kept
//	not_utf8         texts that are not valid UTF-8, in standard base64 by their keys, so that no byte is lost; under
//	                 their own keys they have U+FFFD in place of such bytes. null if there are none
//
// The three chunk arrays have equal lengths. They are null for an answer that was not streamed, and for all of a run that was
// stored with WithoutChunks, of which run.json says "chunks_stored": false. Equal results make equal lines.
//
// arrivals.jsonl has id* and arrival_ns*, and what the request was given: priority, deadline_ns (from the run's start), tenant,
// session, lora and rank, each null for none. It is kept when a run has finished: with it anyone can check that
// every request that arrived has a result, without taking the writer's word.
//
// samples.jsonl is a [metrics.Sample]: at_ns*, cost_ns*, source*, values (an object of numbers; values that
// JSON cannot write are the strings "NaN", "+Inf" and "-Inf"), error; one of the last two is null. events.jsonl is a
// [metrics.Event]: at_ns*, kind*, source, data. Bytes in their strings that are not valid UTF-8 are replaced by U+FFFD.
//
// Kinds of events, with the keys of data. They are the same in real and in virtual time; others are the caller's own.
//
//	startup_phase          a phase of a server's start, at a moment before 0: phase, duration_ns
//	server_warning         something that may spoil a measurement: message
//	server_fault           a fault that the experiment asked for: message (killed, suspended, resumed, restarted, hung or
//	                       slowed), and of simulated servers requests (that failed with it) or factor
//	server_fault_not_made  one that was planned for a time after the run's end: message, planned_ns, reason
//	server_ended           a server ended by itself: error
//	param_update           a parameter was changed: name, value, asked_ns, accepted_ns, previous, read_back, mechanism
//	param_update_failed    it was not, or could not be read back: name, value, error, and accepted_ns if it was accepted
//	param_update_not_made  a change that was planned for a time after the run's end: name, value, planned_ns, reason
//	param_in_force         running requests obeyed a changed limit first: name, value, asked_ns, accepted_ns, not_before_ns
//	param_not_in_force     that was not seen: name, value, asked_ns, accepted_ns, reason
//	prefix_cache           what the prefix cache held when the load began: state (flushed, kept or unknown)
//	prefilled              tokens that the engine computed in prefills, by its own count: tokens
//	request_lost           a simulated scheduler has forgotten a request, as SGLang's would: request (its id)
//	storing_failed         from here on not all that is measured is stored: error
//
// # What survives
//
// Every record reaches the operating system within [FlushInterval], a request's arrival before its result.
// If the process dies, by SIGKILL too, at most the records of that last moment are lost, and the last line of each
// file may be torn. A crash of the machine can lose more, up to End, which makes all of it durable.
//
// [Open] drops a torn last line and says so in Run.Truncated. Any other line that cannot be read is an
// error that names file and line. Files of a run that has ended are checked against their lengths.
package results

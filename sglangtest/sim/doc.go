// Package sim simulates an SGLang server: its scheduler, its step times and its HTTP API, without a GPU.
//
// [Engine] is the scheduler of SGLang 0.5.15 to 0.5.23 as a pure state machine; [Recording.Replay] compares it with
// recorded schedules of the real one. [Loop] puts it on a time line, with step times
// from the [StepModel] of a [Profile], and [Ranks] are the loops of a server's data-parallel ranks. [Server] runs them in real
// time behind SGLang's HTTP API, and [Launcher] lets a server.ServerManager start such servers.
//
// Answers are filler, without an end-of-sequence token: where SGLang goes on until the model ends or the context is full, as for a chat
// without max_tokens, an answer has 128 tokens and the finish reason stop. What shapes the text, such as response_format, tool_choice
// and the grammars of sampling parameters, is taken and ignored.
//
// What comes out is a simulation. Every server says so in /server_info, with its profile, the
// profile's known error by kind of workload, and what voids it: other settings, arguments that are not simulated, faults.
// [Calibrate] fits a profile to measurements, [Validate] replays measured runs with it, and [Validated] puts what they show into
// the profile, from where it gets into every summary (see metrics.Validation).
package sim

// Package sim simulates an SGLang server: its scheduler, its step times and its HTTP API, without a GPU.
//
// [Engine] is the scheduler of SGLang 0.5.15 to 0.5.23 as a pure state machine; [Recording.Replay] compares it with
// recorded schedules of the real one. [Loop] puts it on a time line, with step times
// from the [StepModel] of a [Profile], and [Ranks] are the loops of a server's data-parallel ranks. [Server] runs them in real
// time behind SGLang's HTTP API, and [Launcher] lets a server.ServerManager start such servers.
//
// What comes out is a simulation. Every server says so in /server_info, with its profile and the profile's
// known error.
package sim

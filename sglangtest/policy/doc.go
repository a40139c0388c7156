// Package policy decides which worker gets a request.
//
// A [Policy] is one small object: it sees a [Request] and a [View] of the workers, and answers with a
// [Decision]: dispatch the request, hold it, or reject it. The same object drives a simulated fleet in
// virtual time (package sim/fleet), the load client that spreads over several servers, and any other host of
// package dispatch. So that its decisions can be repeated, it reads time from View.Now only and takes
// randomness from the source it was given only.
//
// One method is enough. What else a policy wants, it says by having more: feedback ([DispatchObserver],
// [FirstTokenObserver], [ChunkObserver], [DoneObserver], [SampleObserver], [FleetObserver]), the order of the
// queue ([Orderer]), batches ([BatchPicker]), and what it needs to see ([Needer]).
//
// What a view says of a worker's load is as old and as partial as it would be in reality; [Signal] names the
// ways to read it.
package policy

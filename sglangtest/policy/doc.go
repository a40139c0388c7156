// Package policy decides which worker gets a request.
//
// A [Policy] is one small object: it sees a request and a [View] of the workers, and answers with a [Decision].
// The same object drives a simulated fleet in virtual time (package sim/fleet) and a router that serves real
// requests. So that its decisions can be repeated, it reads time from View.Now only and takes randomness from
// the source it was given only.
//
// What a view says of a worker's load is as old and as partial as it would be in reality; [Signal] names the ways
// to read it.
package policy

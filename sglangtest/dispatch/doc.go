// Package dispatch is what stands between a request that is due and its server: the queue, the admission
// limits, the batching strategy, the policy, the view of the workers that it decides by, and the feedback
// that it gets.
//
// [Core] is a pure state machine: it has no clock, starts nothing and does no I/O. Everything that happens is
// an input with its time: requests that arrive, first tokens, ends, cancellations, load samples, workers that
// come, go or change. What is to be done comes out of [Core.Next]: send this request to that worker, or
// reject it; and [Core.Wake] says when it wants to be called again. Equal inputs give equal decisions, under
// every driver:
//
//   - package sim/fleet drives the bare core in virtual time;
//   - [Live] drives it in real time, for many goroutines: it is the load.Route of a client that spreads over
//     several servers.
//
// What a request goes through:
//
//  1. [Core.Arrive]. With a strategy it waits until the strategy lets it go in a batch; without, each request
//     is a batch of its own.
//  2. Admission: while the limits leave no room, the policy is not asked, and the batch waits for a freed
//     place.
//  3. The policy is asked. It dispatches, rejects, or holds and names the events to wait for (policy.Wake).
//     After an event the core asks again, in order of the queue, only about those that wait for it, and stops
//     at the first that is held again for the same events; a request that has just arrived is asked about
//     once in any case.
//  4. Dispatched, it is the worker's until [Core.End]. The policy is told of both, once each, whatever
//     happens.
package dispatch

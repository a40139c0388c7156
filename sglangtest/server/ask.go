package server

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// patience is how long after the end of its context a call of a launcher, an instance or an inventory may
// still take: to use force, or to undo what it has begun.
const patience = 15 * time.Second

// logTimeout is how long the log of a server that has ended may take to end.
const logTimeout = 2 * time.Second

// errGivenUp is in the error of a call that did not return.
var errGivenUp = errors.New("has not returned")

// ask calls f, which somebody else wrote, and gives it up some time after ctx is done: f then goes on, and
// late, if it is not nil, gets what it returns.
func ask[T any](ctx context.Context, what string, f func(context.Context) (T, error), late func(T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		v, err := f(ctx)
		got <- answer{v, err}
	}()
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-got:
		return a.value, a.err
	case <-time.After(patience):
	}
	if late != nil {
		go func() {
			a := <-got
			late(a.value, a.err)
		}()
	}
	var none T
	return none, fmt.Errorf("%s %w %v after its context was done: %w", what, errGivenUp, patience, context.Cause(ctx))
}

// order is ask for a call that only can fail.
func order(ctx context.Context, what string, f func(context.Context) error) error {
	_, err := ask(ctx, what, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) }, nil)
	return err
}

package server

import (
	"context"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// put writes one line.
func put(l *Log, stderr bool, text string) {
	w := l.Stdout()
	if stderr {
		w = l.Stderr()
	}
	_, _ = w.Write([]byte(text + "\n"))
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(Config{})
		require.Empty(t, l.Tail(5))
		for i := range logCapacity + 10 {
			put(l, i%2 == 0, strconv.Itoa(i))
		}
		require.Equal(t, []Line{{N: logCapacity + 8, Time: time.Now(), Stderr: true, Text: strconv.Itoa(logCapacity + 8)},
			{N: logCapacity + 9, Time: time.Now(), Text: strconv.Itoa(logCapacity + 9)}}, l.Tail(2))
		require.Len(t, l.Tail(1<<30), logCapacity)

		numbers := make(chan []int)
		go func() {
			var got []int
			for line := range l.Follow(context.Background()) {
				got = append(got, line.N)
			}
			numbers <- got
		}()
		synctest.Wait()
		put(l, true, "new")
		l.End()
		l.End()
		got := <-numbers
		require.Equal(t, 10, got[0], "the oldest that is still there")
		require.Equal(t, logCapacity+10, got[len(got)-1])
		require.Len(t, got, logCapacity+1)

		ctx, cancel := context.WithCancel(context.Background())
		live := NewLog(Config{})
		go func() {
			for range live.Follow(ctx) {
			}
			numbers <- nil
		}()
		cancel()
		<-numbers
	})
}

func TestExitClean(t *testing.T) {
	status := func(code int) Exit { return Exit{Code: code, Asked: true} }
	signal := func(s syscall.Signal) Exit { return Exit{Code: -1, Signal: s, Asked: true} }
	for _, c := range []struct {
		exit                 Exit
		before, since, other bool // 0.5.18, 0.5.21, no version
	}{
		{status(0), false, true, true},
		{status(1), false, false, false},
		{status(137), true, false, true},
		{signal(syscall.SIGKILL), true, false, true},
		{signal(syscall.SIGTERM), true, true, true},
		{status(143), true, true, true},
		{Exit{}, false, false, false},
		{Exit{Code: -1, Signal: syscall.SIGKILL, Asked: true, Forced: true}, false, false, false},
	} {
		require.Equal(t, []bool{c.before, c.since, c.other}, []bool{c.exit.Clean("0.5.18"), c.exit.Clean("0.5.21"), c.exit.Clean("")}, c.exit)
	}
	require.Equal(t, "signal 9 (killed), forced", Exit{Code: -1, Signal: syscall.SIGKILL, Forced: true}.String())
	require.Equal(t, "exit status 3", Exit{Code: 3}.String())
}

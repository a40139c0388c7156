package load

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAppendEncodedIsAppend(t *testing.T) {
	var whole, log, c Chunks
	var ends []int
	for i := range 40 {
		ch := Chunk{At: time.Duration(i*i) * 700 * time.Microsecond, Tokens: i % 5, TextBytes: i}
		log.Append(ch)
		ends = append(ends, len(log.Encoded()))
		if i >= 9 && i < 32 {
			whole.Append(ch)
			if i < 11 {
				c.Append(ch)
			}
		}
	}
	c.AppendEncoded(log.Encoded()[ends[10]:ends[31]], 21, time.Duration(31*31)*700*time.Microsecond)
	require.Equal(t, whole, c)
	more := Chunk{At: 2 * time.Second, Tokens: 1}
	whole.Append(more)
	c.Append(more)
	require.Equal(t, slices.Collect(whole.All()), slices.Collect(c.All()))
	require.Equal(t, whole.Len(), c.Len())
}

func TestCopyToIsACopy(t *testing.T) {
	var c Chunks
	c.Append(Chunk{At: time.Second, Tokens: 2, TextBytes: 3})
	buf := make([]byte, len(c.Encoded())+4)
	d := c.CopyTo(buf)
	require.Equal(t, c, d)
	c.Reset()
	c.Append(Chunk{At: 9 * time.Second, Tokens: 1})
	require.Equal(t, []Chunk{{At: time.Second, Tokens: 2, TextBytes: 3}}, slices.Collect(d.All()))
	require.Equal(t, Chunks{}, Chunks{}.CopyTo(nil))
}

package batching

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

func TestStatic(t *testing.T) {
	s, err := NewStatic(3)
	require.NoError(t, err)
	push := func(ids ...int) {
		for _, id := range ids {
			s.Push(&policy.Request{Request: &load.Request{ID: id}})
		}
	}
	next := func() (ids []int) {
		batch, wake := s.Next(&policy.View{})
		if len(batch) == 0 {
			require.Equal(t, policy.Wake{On: policy.Arrival}, wake)
		}
		for _, r := range batch {
			ids = append(ids, r.ID)
		}
		return ids
	}
	push(5, 3)
	require.Nil(t, next())
	require.True(t, s.Remove(5))
	require.False(t, s.Remove(5))
	push(8, 1, 2)
	require.Equal(t, []int{3, 8, 1}, next(), "in order of arrival")
	require.Nil(t, next())
	require.Equal(t, 1, s.Len())
	push(0, 4, 6, 7, 9)
	require.Equal(t, []int{2, 0, 4}, next())
	require.Equal(t, []int{6, 7, 9}, next())
	require.Zero(t, s.Len())

	_, err = NewStatic(0)
	require.ErrorContains(t, err, "want ≥ 1")
	batch, wake := new(Static).Next(nil)
	require.Empty(t, batch)
	require.NotZero(t, wake, "the zero value forms no batches, and says so by waiting")
}

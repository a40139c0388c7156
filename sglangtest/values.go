package sglangtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Seconds is a span of time in a config, in seconds. In JSON it is a number; as the key of a schedule, a string
// that spells one.
type Seconds float64

// Duration converts s, rounded to the nanosecond.
func (s Seconds) Duration() time.Duration { return time.Duration(math.Round(float64(s) * 1e9)) }

// MarshalText implements encoding.TextMarshaler, for keys of JSON objects.
func (s Seconds) MarshalText() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(s), 'f', -1, 64), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Seconds) UnmarshalText(b []byte) error {
	v, err := strconv.ParseFloat(string(b), 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Errorf("%q is not a number of seconds", b)
	}
	*s = Seconds(v)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (s Seconds) MarshalJSON() ([]byte, error) { return s.MarshalText() }

// UnmarshalJSON implements json.Unmarshaler. It takes a number, or a string that spells one: encoding/json calls it
// for keys of objects as well.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	return s.UnmarshalText(bytes.Trim(b, `"`))
}

// A Rate is a request rate in requests/s. Inf stands for all requests at once; in JSON it is the string "inf".
type Rate float64

// Inf is the rate at which all requests arrive at once.
var Inf = Rate(math.Inf(1))

// MarshalJSON implements json.Marshaler.
func (r Rate) MarshalJSON() ([]byte, error) {
	if math.IsInf(float64(r), 1) {
		return []byte(`"inf"`), nil
	}
	return json.Marshal(float64(r))
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Rate) UnmarshalJSON(b []byte) error {
	if string(b) == `"inf"` {
		*r = Inf
		return nil
	}
	var v float64
	if json.Unmarshal(b, &v) != nil {
		return errors.New(`want a number of requests/s or "inf"`)
	}
	*r = Rate(v)
	return nil
}

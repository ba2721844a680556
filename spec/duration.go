package spec

import (
	"encoding/json"
	"fmt"
	"time"
)

// Duration is a time.Duration that encodes as text ("1m30s"). A bare number is
// refused on input, since its unit would be a guess.
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String returns the text form, as time.Duration has it.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON encodes d as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON decodes a string that time.ParseDuration accepts.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("duration %s: want a string such as \"10s\"", b)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, such as 10s or 1m30s", s)
	}
	*d = Duration(v)
	return nil
}

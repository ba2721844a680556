package main

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"wherry.dev/spec"
)

// TestTwin: while another host holds the identity nothing is started, and
// after a while this host gives in.
func TestTwin(t *testing.T) {
	conflict, silence := spec.Conflictf("another host uses the identity"), spec.Unavailablef("no manager")
	for _, tt := range []struct {
		name    string
		answers []error // to a beat each second
		refused bool
		end     bool
	}{
		{"alone", []error{nil, nil}, false, false},
		{"no manager", []error{silence, silence}, false, false},
		{"refused", []error{conflict}, true, false},
		{"what was before has ended", []error{conflict, conflict, nil}, false, false},
		{"no answer resolves nothing", []error{conflict, silence, silence}, true, false},
		{"patient", slices.Repeat([]error{conflict}, 11), true, false},
		{"a twin", slices.Repeat([]error{conflict}, 12), true, true},
		{"taken over later", []error{nil, nil, conflict}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := session{refused: new(atomic.Bool)}
			var since time.Time
			var err error
			for i, a := range tt.answers {
				if err != nil {
					t.Fatalf("gave in after %d s: %v", i, err)
				}
				since, err = s.judge(a, since, time.Unix(int64(1000+i), 0))
			}
			if s.refused.Load() != tt.refused || (err != nil) != tt.end || err != nil && !errors.Is(err, spec.ErrConflict) {
				t.Errorf("refused %v, %v", s.refused.Load(), err)
			}
		})
	}
}

package cluster

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// halt is the fail-stop of a member: the first error of its store, kept for
// ever. After it nothing is written and nothing is acknowledged.
type halt struct {
	once sync.Once
	err  error
	// c is closed after err was set.
	c chan struct{}
	// live is set while Raft runs: store calls then come from Raft's own
	// goroutines, which die may end.
	live atomic.Bool
}

func newHalt() *halt { return &halt{c: make(chan struct{})} }

// stop records err, unless there is one already, and lets Run know.
func (h *halt) stop(err error) {
	h.once.Do(func() {
		h.err = err
		close(h.c)
	})
}

// failure returns the recorded error, or nil.
func (h *halt) failure() error {
	select {
	case <-h.c:
		return h.err
	default:
		return nil
	}
}

// die stops the member and, while Raft runs, ends the calling goroutine.
//
// Raft does not end on an error of its store: after a failed append it stands
// for election again, after a failed vote it goes on, and only an unsavable
// term makes it panic. Whatever it does next would rest on a store whose
// content is unknown. Ending its goroutine here, deferred functions included
// (they tell those who wait that leadership is lost), is the one way to be
// sure that nothing is done next; Run then shuts down what is left.
func (h *halt) die(err error) error {
	h.stop(err)
	if h.live.Load() {
		runtime.Goexit()
	}
	return err
}

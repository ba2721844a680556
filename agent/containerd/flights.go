package containerd

import (
	"context"
	"sync"
)

// flights lets callers that want the same thing at the same time share one
// piece of work. The work goes on as long as one of them waits.
type flights struct {
	mu   sync.Mutex
	open map[string]*flight
}

type flight struct {
	cancel  context.CancelFunc
	waiting int
	done    chan struct{}
	err     error
}

// do runs f, or waits for the f that runs already under the same key.
func (s *flights) do(ctx context.Context, key string, f func(context.Context) error) error {
	s.mu.Lock()
	if s.open == nil {
		s.open = map[string]*flight{}
	}
	w := s.open[key]
	if w == nil {
		wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		w = &flight{cancel: cancel, done: make(chan struct{})}
		s.open[key] = w
		go func() {
			err := f(wctx)
			s.mu.Lock()
			if s.open[key] == w {
				delete(s.open, key)
			}
			s.mu.Unlock()
			w.err = err
			close(w.done)
			cancel()
		}()
	}
	w.waiting++
	s.mu.Unlock()

	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.waiting--; w.waiting == 0 {
		w.cancel()
		// One who comes now must not share work that has been given up.
		if s.open[key] == w {
			delete(s.open, key)
		}
	}
	return ctx.Err()
}

package keeper

import "sync"

const (
	// maxForwards of one container are under way at a time, each with a socket
	// of its own. Names of the cluster are not counted.
	maxForwards = 2000
	// maxWaiting of one container wait for their turn; what comes beyond is
	// answered SERVFAIL at once.
	maxWaiting = 20_000
)

// forwards are the queries of one container that others have to answer. A
// burst waits instead of failing. The zero value is ready for use.
type forwards struct {
	mu      sync.Mutex
	running int
	waiting []func() // at most maxWaiting, only while maxForwards are running
}

// do runs f in a goroutine of wg, now or after others. It returns false when
// too many wait already. Everything that was taken is run, so f has to look
// itself whether it comes too late.
func (q *forwards) do(wg *sync.WaitGroup, f func()) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.running < maxForwards:
		q.running++
		wg.Go(func() {
			for f := f; f != nil; f = q.next() {
				f()
			}
		})
	case len(q.waiting) < maxWaiting:
		q.waiting = append(q.waiting, f)
	default:
		return false
	}
	return true
}

// next is what a goroutine that has finished one query runs next; nil ends it.
func (q *forwards) next() func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.waiting = nil // the memory of a burst is given back
		q.running--
		return nil
	}
	f := q.waiting[0]
	q.waiting[0] = nil
	q.waiting = q.waiting[1:]
	return f
}

// count is how many are under way or wait.
func (q *forwards) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running + len(q.waiting)
}

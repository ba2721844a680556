package keeper

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"wherry.dev/spec"
)

// sink is the log of one task: one or two streams and the file they share.
// Its methods are called by the keeper under the keeper's lock.
type sink struct {
	spec    spec.LogSink
	slots   slots
	log     *slog.Logger
	streams []*stream

	mu   sync.Mutex // streams write in turns
	file *logFile
}

// openSink opens the FIFOs, but those in have, which were handed over.
func openSink(s spec.LogSink, have map[string]*stream, sl slots, c *counters, log *slog.Logger) (*sink, error) {
	k := &sink{spec: s, slots: sl, log: log, file: newLogFile(s, c)}
	var errs []error
	for _, x := range []struct{ name, path string }{{"stdout", s.Stdout}, {"stderr", s.Stderr}} {
		if x.path == "" {
			continue
		}
		st := have[x.name]
		if st == nil {
			var err error
			if st, err = openStream(x.name, x.path); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		k.streams = append(k.streams, st)
	}
	if len(errs) > 0 {
		k.close()
		return nil, errors.Join(errs...)
	}
	return k, nil
}

// fresh reports whether the FIFOs are still those that the paths name. One that
// is gone counts as fresh, for it may hold output.
func (k *sink) fresh() bool {
	for _, s := range k.streams {
		if id, err := idOf(s.path); err == nil && id != s.id {
			return false
		}
	}
	return true
}

// setSpec changes the file of a stopped sink, or its bounds.
func (k *sink) setSpec(s spec.LogSink, c *counters) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.file.close()
	lost := k.file.lost
	k.spec, k.file = s, newLogFile(s, c)
	k.file.lost = lost
}

func (k *sink) start() {
	for _, s := range k.streams {
		s.start(k)
	}
}

// stop returns when nothing is being moved any more. What was not moved is
// still in the FIFOs.
func (k *sink) stop() {
	for _, s := range k.streams {
		s.stop()
	}
}

// drain moves what is left in the FIFOs of a stopped sink and closes it. It
// returns at the end of the output, or when ctx ends.
func (k *sink) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range k.streams {
		wg.Go(func() {
			if err := s.drain(ctx, k); err != nil {
				k.log.Warn("drain output of a task", "task", k.spec.Task, "stream", s.name, "err", err)
			}
		})
	}
	wg.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.file.report()
	k.file.close()
}

// sweep moves what the FIFOs of a stopped sink hold now.
func (k *sink) sweep() {
	for _, s := range k.streams {
		s.sweep(k)
	}
}

// close closes a stopped sink and leaves its FIFOs as they are.
func (k *sink) close() {
	for _, s := range k.streams {
		s.f.Close()
	}
	k.file.close()
}

// check looks after the file from time to time.
func (k *sink) check() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.file.check()
	k.file.report()
}

// write appends to the file and returns how much of data was used.
func (k *sink) write(sl *slot, stream string, data []byte, final bool) (used int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if final {
		// All but the beginning of a character, unless there is nothing else.
		if n := wholeRunes(data); n > 0 {
			data = data[:n]
		}
	}
	used, sl.out = k.file.append(sl.out, data, stream, time.Now(), final)
	return used
}

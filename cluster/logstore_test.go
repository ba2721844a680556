package cluster

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// faultyLog is a log in memory whose disk can hang or fail.
type faultyLog struct {
	*raft.InmemStore
	mu    sync.Mutex
	fail  error
	delay time.Duration
}

func (f *faultyLog) set(fail error, delay time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.delay = fail, delay
}

func (f *faultyLog) fault() error {
	f.mu.Lock()
	fail, delay := f.fail, f.delay
	f.mu.Unlock()
	time.Sleep(delay)
	return fail
}

func (f *faultyLog) StoreLogs(l []*raft.Log) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.InmemStore.StoreLogs(l)
}

func (f *faultyLog) DeleteRange(lo, hi uint64) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.InmemStore.DeleteRange(lo, hi)
}

func newFaultyStore(t *testing.T) (*logStore, *faultyLog) {
	t.Helper()
	aead, err := newSealKey(bytes.Repeat([]byte{1}, keySize), nil, "log")
	if err != nil {
		t.Fatal(err)
	}
	f := &faultyLog{InmemStore: raft.NewInmemStore()}
	return &logStore{
		inner: f, aead: aead, halt: newHalt(), log: slog.New(slog.DiscardHandler),
		hung: func(time.Duration) {}, patience: slowAppend,
		due: make(chan struct{}, 1), maxEntries: 10, maxBytes: 10_000,
	}, f
}

func command(index uint64, size int) *raft.Log {
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: make([]byte, size)}
}

func TestLogStoreStopsAtFirstError(t *testing.T) {
	for name, call := range map[string]func(*logStore) error{
		"append": func(s *logStore) error { return s.StoreLog(command(2, 1)) },
		"delete": func(s *logStore) error { return s.DeleteRange(1, 1) },
	} {
		s, f := newFaultyStore(t)
		if err := s.StoreLog(command(1, 1)); err != nil {
			t.Fatal(err)
		}
		f.set(syscall.EIO, 0)
		if err := call(s); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: err %v", name, err)
		}
		if !errors.Is(s.halt.failure(), syscall.EIO) {
			t.Errorf("%s: the member goes on", name)
		}
		f.set(nil, 0)
		if err := s.StoreLog(command(2, 1)); err == nil {
			t.Errorf("%s: an append was acknowledged after the failure", name)
		}
		if last, _ := s.LastIndex(); last != 1 {
			t.Errorf("%s: the log grew to %d after the failure", name, last)
		}
	}
}

func TestLogStoreEndsRaftsGoroutine(t *testing.T) {
	s, f := newFaultyStore(t)
	f.set(syscall.EIO, 0)
	s.halt.live.Store(true)
	returned, deferred := false, false
	var done sync.WaitGroup
	done.Go(func() {
		defer func() { deferred = true }()
		s.StoreLog(command(1, 1))
		returned = true
	})
	done.Wait()
	if returned || !deferred {
		t.Fatalf("caller went on: %v, deferred functions ran: %v", returned, deferred)
	}
}

func TestLogStoreNotFoundIsNoFailure(t *testing.T) {
	s, _ := newFaultyStore(t)
	if err := s.GetLog(7, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatal(err)
	}
	if err := s.halt.failure(); err != nil {
		t.Fatal(err)
	}
}

// The newest entry is not read from the disk, unless it is gone.
func TestLogStoreKnowsNewest(t *testing.T) {
	s, f := newFaultyStore(t)
	if err := s.StoreLogs([]*raft.Log{command(1, 3), command(2, 4)}); err != nil {
		t.Fatal(err)
	}
	if err := f.InmemStore.DeleteRange(1, 2); err != nil { // the file loses them
		t.Fatal(err)
	}
	var l raft.Log
	if err := s.GetLog(2, &l); err != nil || l.Index != 2 || len(l.Data) != 4 {
		t.Errorf("newest entry: %+v, %v", l, err)
	}
	if err := s.GetLog(1, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry before it: %v", err)
	}
	if err := s.DeleteRange(2, 2); err != nil {
		t.Fatal(err)
	}
	if err := s.GetLog(2, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry that was deleted: %v", err)
	}
}

// What waits for the next entry hears of it before it is durable, and does not
// wait for one that is there.
func TestLogStoreSaysWhenAppendBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newFaultyStore(t)
		next := s.after(0)
		f.set(nil, time.Second)
		began := time.Now()
		go s.StoreLog(command(1, 1))
		<-next
		if d := time.Since(began); d >= time.Second {
			t.Errorf("told %s after the append began", d)
		}
		if s.after(0) != nil {
			t.Error("entry 1 is being appended, and whoever has none waits for it")
		}
		synctest.Wait()
		if s.after(1) == nil {
			t.Error("nothing is to come behind entry 1, and nobody waits for it")
		}
		time.Sleep(time.Minute)
	})
}

func TestLogStoreNoticesHangingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newFaultyStore(t)
		var at []time.Duration
		began := time.Now()
		s.hung = func(time.Duration) { at = append(at, time.Since(began)) }
		f.set(nil, slowAppend-time.Millisecond)
		if err := s.StoreLog(command(1, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(at) != 0 {
			t.Fatalf("reported at %v, though the disk answered in time", at)
		}
		began = time.Now()
		f.set(nil, time.Minute)
		if err := s.StoreLog(command(2, 1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(at) != 1 || at[0] != slowAppend {
			t.Fatalf("reported at %v, want once after %s", at, slowAppend)
		}
	})
}

func TestSnapshotIsDue(t *testing.T) {
	due := func(s *logStore) bool {
		select {
		case <-s.due:
			return true
		default:
			return false
		}
	}
	s, _ := newFaultyStore(t)
	add := func(from, to uint64, size int) {
		t.Helper()
		for i := from; i <= to; i++ {
			if err := s.StoreLog(command(i, size)); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(1, 9, 1)
	if due(s) {
		t.Fatal("due too early")
	}
	add(10, 15, 1)
	if !due(s) || due(s) {
		t.Fatal("want it due once, by number")
	}
	s.snapshotTaken(15)
	add(16, 18, 3000)
	if due(s) {
		t.Fatal("due too early after a snapshot")
	}
	add(19, 19, 3000)
	if !due(s) {
		t.Fatal("not due by size")
	}

	// A process that starts again counts what it reads, once.
	again := &logStore{inner: s.inner, aead: s.aead, halt: newHalt(), log: s.log, due: make(chan struct{}, 1), maxEntries: 100, maxBytes: 10_000}
	again.snapshotTaken(15)
	for range 2 {
		for i := uint64(12); i <= 18; i++ {
			if err := again.GetLog(i, new(raft.Log)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if due(again) {
		t.Fatal("entries were counted twice")
	}
	if err := again.GetLog(19, new(raft.Log)); err != nil || !due(again) {
		t.Fatalf("replayed entries do not count (%v)", err)
	}
}

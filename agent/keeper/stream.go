package keeper

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunkSize is read at a time; it is what a pipe holds by default.
	chunkSize = 64 << 10
	// partialAfter is how long an unfinished line waits for its end before its
	// beginning is written.
	partialAfter = 100 * time.Millisecond
	// drainTime bounds how long the end of a FIFO is waited for.
	drainTime = 2 * time.Second
)

// slot is what it takes to move one chunk: the pipe that it is copied to and
// the buffers. There are fewer slots than streams, and one less than
// processors, so that output in floods neither costs memory nor delays names.
type slot struct {
	r, w     int // the pipe
	null     int // where consumed bytes go
	in, out  []byte
	prepared bool
}

// slots is a set of slots to take and give back.
type slots chan *slot

func newSlots(n int) slots {
	s := make(slots, n)
	for range n {
		s <- &slot{r: -1, w: -1, null: -1}
	}
	return s
}

// close frees the descriptors; all slots must have been given back.
func (s slots) close() {
	for range cap(s) {
		(<-s).reset()
	}
}

func (s *slot) prepare() error {
	if s.prepared {
		return nil
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	s.r, s.w = p[0], p[1]
	// A FIFO may hold a few bytes in each of many pages.
	unix.FcntlInt(uintptr(s.w), unix.F_SETPIPE_SZ, 4*chunkSize)
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.reset()
		return os.NewSyscallError("open "+os.DevNull, err)
	}
	s.null = null
	if s.in == nil {
		s.in = make([]byte, chunkSize)
		s.out = make([]byte, 0, flushSize+longestRecord)
	}
	s.prepared = true
	return nil
}

// reset forgets what the pipe holds.
func (s *slot) reset() {
	for _, fd := range []*int{&s.r, &s.w, &s.null} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	s.prepared = false
}

// peek copies what the FIFO holds, up to a chunk, and leaves it there. It
// returns EAGAIN when the FIFO is empty, and nothing without error at its end.
func (s *slot) peek(fifo int) ([]byte, error) {
	var n int64
	err := retry(func() (err error) {
		n, err = unix.Tee(fifo, s.w, chunkSize, unix.SPLICE_F_NONBLOCK)
		return err
	})
	if err != nil || n == 0 {
		return nil, err
	}
	for have := 0; have < int(n); {
		var m int
		err := retry(func() (err error) {
			m, err = unix.Read(s.r, s.in[have:n])
			return err
		})
		if err != nil || m == 0 {
			s.reset()
			return nil, fmt.Errorf("read a copied chunk: %w", err)
		}
		have += m
	}
	return s.in[:n], nil
}

// consume removes n bytes, which peek has returned, from the FIFO.
func (s *slot) consume(fifo, n int) error {
	for n > 0 {
		var m int64
		err := retry(func() (err error) {
			m, err = unix.Splice(fifo, nil, s.null, nil, n, unix.SPLICE_F_NONBLOCK)
			return err
		})
		if err == nil && m == 0 {
			err = unix.EPIPE
		}
		if err != nil {
			return fmt.Errorf("consume output: %w", err)
		}
		n -= int(m)
	}
	return nil
}

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// stream moves the output of one FIFO into a sink. Bytes leave the FIFO only
// after they are in the file, so the end of the process at any moment loses
// nothing; it may repeat the last chunk. Hence also nothing needs to be handed
// over but the descriptor.
type stream struct {
	name string // "stdout" or "stderr"
	path string
	f    *os.File // the FIFO, open for reading and writing: it has no end that would have to be waited out
	raw  syscall.RawConn
	id   fileID

	mu       sync.Mutex
	stopping bool
	done     chan struct{} // closed when run has returned
}

// openStream opens a FIFO.
func openStream(name, path string) (*stream, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of a task: %w", name, &os.PathError{Op: "open", Path: path, Err: err})
	}
	return adoptStream(name, path, fd)
}

// adoptStream makes a stream of an open FIFO, whose descriptor it takes over.
func adoptStream(name, path string, fd int) (*stream, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		err = errors.New("not a FIFO")
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s of a task: %w", name, &os.PathError{Op: "open", Path: path, Err: err})
	}
	s := &stream{name: name, path: path, id: fileID{uint64(st.Dev), st.Ino}}
	if err := s.setFile(fd); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *stream) setFile(fd int) error {
	f := os.NewFile(uintptr(fd), s.path)
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return fmt.Errorf("open %s of a task: %w", s.name, err)
	}
	s.f, s.raw = f, raw
	return nil
}

// start begins moving output; stop ends it and waits.
func (s *stream) start(k *sink) {
	s.mu.Lock()
	s.stopping = false
	s.done = make(chan struct{})
	s.f.SetReadDeadline(time.Time{})
	s.mu.Unlock()
	go func() {
		defer close(s.done)
		s.run(k)
	}()
}

func (s *stream) stop() {
	s.mu.Lock()
	s.stopping = true
	s.f.SetReadDeadline(time.Unix(1, 0))
	s.mu.Unlock()
	if s.done != nil {
		<-s.done
	}
}

// setDeadline is for run alone; it reports false when the stream is to stop.
func (s *stream) setDeadline(t time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.f.SetReadDeadline(t)
	}
	return !s.stopping
}

// run moves output until the stream is stopped. Bytes of an unfinished line
// stay in the FIFO until it ends or partialAfter has passed.
func (s *stream) run(k *sink) {
	left := 0          // bytes of an unfinished line in the FIFO
	var due time.Time  // when they are written all the same
	var trouble string // logged last
	for s.setDeadline(due) {
		err := s.wait(left)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !late || late && !s.setDeadline(time.Time{}) {
			return
		}
		n, used, err := s.move(k, late)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			// Giving up would block the task when its FIFO is full.
			if err.Error() != trouble {
				trouble = err.Error()
				k.log.Error("move output of a task, will retry", "task", k.spec.Task, "stream", s.name, "err", err)
			}
			left, due = math.MaxInt, time.Now().Add(retryEvery)
			continue
		}
		switch {
		case n == 0:
			due = time.Time{}
		case used > 0 || left == 0: // it is another line than before
			due = time.Now().Add(partialAfter)
		}
		left = n
	}
}

// wait returns when the FIFO holds more than left bytes.
func (s *stream) wait(left int) error {
	return s.raw.Read(func(fd uintptr) bool {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		return err != nil || n > left
	})
}

// move moves the whole lines of one chunk. It returns how many bytes of an
// unfinished line it left behind and how many it moved; with final it leaves
// none, but for the beginning of a character that may still be completed.
func (s *stream) move(k *sink, final bool) (left, used int, err error) {
	sl := <-k.slots
	defer func() { k.slots <- sl }()
	if err := sl.prepare(); err != nil {
		return 0, 0, err
	}
	var opErr error
	err = s.raw.Control(func(fd uintptr) {
		var data []byte
		if data, opErr = sl.peek(int(fd)); opErr != nil || len(data) == 0 {
			return
		}
		used = k.write(sl, s.name, data, final)
		left = len(data) - used
		opErr = sl.consume(int(fd), used)
	})
	if err == nil {
		err = opErr
	}
	return left, used, err
}

// drain moves what is left of a stopped stream until its end, which is when no
// process has it open for writing any more, and closes it. It gives up waiting
// when ctx ends.
func (s *stream) drain(ctx context.Context, k *sink) error {
	defer func() { s.f.Close() }()
	if err := s.readOnly(); err != nil {
		return fmt.Errorf("drain output: %w", err)
	}
	s.f.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { s.f.SetReadDeadline(time.Unix(1, 0)) })()
	left := 0
	for {
		ended, err := s.waitEnd(left)
		if ended || err != nil {
			break
		}
		if left, _, err = s.move(k, false); err != nil && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	s.sweep(k)
	return nil
}

// sweep moves what is in the FIFO now, without waiting. It is bounded, should
// somebody still write.
func (s *stream) sweep(k *sink) {
	for range 64 {
		if _, used, err := s.move(k, true); err != nil || used == 0 {
			return
		}
	}
}

// readOnly opens the FIFO again, for reading alone: only then is its end seen.
// It works by descriptor, for the path may be gone.
func (s *stream) readOnly() error {
	var fd int
	var opErr error
	err := s.raw.Control(func(old uintptr) {
		fd, opErr = unix.Open(fmt.Sprintf("/proc/self/fd/%d", old), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err == nil {
		err = opErr
	}
	if err != nil {
		return err
	}
	old := s.f
	if err := s.setFile(fd); err != nil {
		return err
	}
	return old.Close()
}

// waitEnd returns when the FIFO holds more than left bytes or has ended.
func (s *stream) waitEnd(left int) (ended bool, err error) {
	err = s.raw.Read(func(fd uintptr) bool {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err != nil || n > left {
			return true
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := unix.Poll(p, 0)
		ended = err == nil && p[0].Revents&unix.POLLHUP != 0
		return ended
	})
	return ended, err
}

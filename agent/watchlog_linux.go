package agent

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Without inotify a followed log is looked at every logPoll; with it only in
// case an event was lost or Done has changed.
const (
	logPoll     = 200 * time.Millisecond
	logPollSlow = time.Second
)

// logNews says when there may be something new in a log's folder.
type logNews struct {
	events chan struct{} // capacity one
	f      *os.File      // nil without inotify
	every  time.Duration
	ended  chan struct{} // closed by the goroutine that reads events
}

// watchLog watches a folder. When that cannot be done, because it does not
// exist yet or the host has no watches left, it polls.
func watchLog(dir string) *logNews {
	n := &logNews{events: make(chan struct{}, 1), every: logPoll}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return n
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE_SELF); err != nil {
		unix.Close(fd)
		return n
	}
	n.f, n.every, n.ended = os.NewFile(uintptr(fd), "inotify"), logPollSlow, make(chan struct{})
	go n.read()
	return n
}

// read turns events into pokes until the file is closed.
func (n *logNews) read() {
	defer close(n.ended)
	buf := make([]byte, 4096)
	for {
		if _, err := n.f.Read(buf); err != nil {
			return
		}
		poke(n.events)
	}
}

// wait returns when it is time to look; false when ctx has ended.
func (n *logNews) wait(ctx context.Context) bool {
	t := time.NewTimer(n.every)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-n.events:
	case <-t.C:
	}
	return true
}

func (n *logNews) close() {
	if n.f != nil {
		n.f.Close()
		<-n.ended
	}
}

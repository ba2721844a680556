//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a network namespace that probes open their sockets in. They stay in
// the test's process, so a container has nothing to do but to sleep. A socket
// that is open keeps its namespace alive: what is opened has to be closed
// before the lab is.
type Space struct {
	// Name in what is reported.
	Name string
	Path string
}

// Space is a namespace of the lab: "sw", "client" or a host's name.
func (l *Lab) Space(name string) Space { return Space{Name: name, Path: l.NSPath(name)} }

// TaskSpace is the namespace of a task of the host, known by its ID.
func (h *Host) TaskSpace(name, id string) Space {
	return Space{Name: name, Path: filepath.Join(h.RunDir, "netns", id)}
}

// Run runs a command in the namespace.
func (s Space) Run(args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return run(exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + s.Path, "--"}, args...)...))
}

// Do calls f on a thread in the namespace. Sockets that it opens stay there.
func (s Space) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread goes back, since it may be the one that stands for the
		// process in /proc; if it cannot, it ends with the goroutine.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			if err = enter(s.Path); err == nil {
				err = f()
				if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
					runtime.UnlockOSThread()
				}
			}
			err = errors.Join(err, home.Close())
		}
		done <- err
	}()
	return <-done
}

func enter(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Setns(int(file.Fd()), unix.CLONE_NEWNET), file.Close())
}

// dialer makes connections that say nothing of themselves.
func dialer(d time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: d, KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{Enable: false}}
}

// Dial connects from the namespace to an address, which must not be a name,
// without keep-alives.
func (s Space) Dial(network, address string, d time.Duration) (c net.Conn, err error) {
	err = s.Do(func() (err error) {
		c, err = dialer(d).Dial(network, address)
		return err
	})
	return c, err
}

// Listen listens for connections in the namespace.
func (s Space) Listen(network, address string) (l net.Listener, err error) {
	listen := net.ListenConfig{KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{Enable: false}}
	err = s.Do(func() (err error) {
		l, err = listen.Listen(context.Background(), network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a socket for packets in the namespace, with room for as
// many as come while this process is not run.
func (s Space) ListenPacket(network, address string) (c *net.UDPConn, err error) {
	err = s.Do(func() error {
		p, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		c = p.(*net.UDPConn)
		raw, err := c.SyscallConn()
		if err != nil {
			return errors.Join(err, c.Close())
		}
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		})
		if err = errors.Join(err, set); err != nil {
			return errors.Join(fmt.Errorf("set receive buffer: %w", err), c.Close())
		}
		return nil
	})
	return c, err
}

package keeper

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// maxFrame bounds one message: the names of a very large cluster are a few MiB.
const maxFrame = 64 << 20

// maxFDs is how many descriptors one message may carry; the kernel takes 253.
const maxFDs = 8

// The operations of the control socket.
const (
	opStatus    = "status"
	opSetDNS    = "set_dns"
	opSetLogs   = "set_logs"
	opSetLeases = "set_leases"
	opStop      = "stop"
	opHandover  = "handover"
)

// message is one frame of the control socket, in either direction: four bytes
// of length, then JSON. Keepers of different versions speak it with each other:
// fields are only ever added.
type message struct {
	Op     string       `json:"op,omitempty"`
	DNS    *dnsState    `json:"dns,omitempty"`
	Logs   *logsState   `json:"logs,omitempty"`
	Leases *leasesState `json:"leases,omitempty"`
	// Error and Class of a reply.
	Error  string  `json:"error,omitempty"`
	Class  string  `json:"class,omitempty"`
	Status *Status `json:"status,omitempty"`
	Item   *item   `json:"item,omitempty"`
}

// dnsState, logsState and leasesState are the whole of what a keeper has to do.
type dnsState struct {
	Resolvers []spec.Resolver  `json:"resolvers"`
	Tables    []spec.NameTable `json:"tables"`
}

type logsState struct {
	Sinks []spec.LogSink `json:"sinks"`
}

type leasesState struct {
	Tasks []spec.TaskLease `json:"tasks"`
}

// Status describes a running keeper.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Resolvers and Sinks that are served now.
	Resolvers int `json:"resolvers"`
	Sinks     int `json:"sinks"`
	// Leases that are watched now, and Ended, the tasks whose processes were
	// ended since Started because their lease was over.
	Leases int    `json:"leases"`
	Ended  uint64 `json:"ended"`
	// Queries answered since Started, of which Forwarded were asked outside and
	// Failed got no answer.
	Queries   uint64 `json:"queries"`
	Forwarded uint64 `json:"forwarded"`
	Failed    uint64 `json:"failed"`
	// LogBytes of output were written and DroppedBytes could not be.
	LogBytes     uint64 `json:"log_bytes"`
	DroppedBytes uint64 `json:"dropped_bytes"`
	// Problems are what cannot be served, and why.
	Problems []string `json:"problems,omitempty"`
}

// peer is one end of a control connection. Not safe for concurrent use.
type peer struct {
	c *net.UnixConn
	// kept connections are closed when the process ends.
	kept bool
}

// send writes one message, with descriptors attached to its first byte.
func (p *peer) send(m message, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return spec.Invalidf("the message to the keeper has %d bytes, more than %d", len(b), maxFrame)
	}
	frame := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
	if len(fds) > 0 {
		if _, _, err := p.c.WriteMsgUnix(frame[:4], unix.UnixRights(fds...), nil); err != nil {
			return err
		}
		frame = frame[4:]
	}
	_, err = p.c.Write(frame)
	return err
}

// receive reads one message and the descriptors that came with it, which the
// caller owns.
func (p *peer) receive() (m message, fds []int, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	var size [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, flags, _, err := p.c.ReadMsgUnix(size[:], oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, io.EOF
	}
	if oobn > 0 {
		if fds, err = parseFDs(oob[:oobn]); err != nil {
			return m, fds, err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return m, fds, errors.New("more descriptors arrived than were expected")
	}
	if _, err := io.ReadFull(p.c, size[n:]); err != nil {
		return m, fds, err
	}
	length := binary.BigEndian.Uint32(size[:])
	if length > maxFrame {
		return m, fds, spec.Invalidf("a message of %d bytes arrived, more than %d", length, maxFrame)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(p.c, b); err != nil {
		return m, fds, err
	}
	return m, fds, json.Unmarshal(b, &m)
}

func parseFDs(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		fds = append(fds, got...)
		if err != nil {
			return fds, err
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// call sends a message and returns the reply.
func (p *peer) call(m message) (message, error) {
	if err := p.send(m); err != nil {
		return message{}, err
	}
	reply, fds, err := p.receive()
	closeAll(fds)
	return reply, err
}

// fault is the error that a reply carries.
func (m message) fault() error {
	if m.Error == "" {
		return nil
	}
	return spec.ErrorOfClass(m.Class, m.Error)
}

func failure(err error) message {
	if err == nil {
		return message{}
	}
	return message{Error: err.Error(), Class: spec.ErrorClass(err)}
}

// dialControl connects to the keeper of a run folder.
func dialControl(ctx context.Context, dir string) (*peer, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(dir, sockName))
	if err != nil {
		return nil, err
	}
	return &peer{c: c.(*net.UnixConn)}, nil
}

// nobody reports whether an error of dialControl says that no keeper listens.
func nobody(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// listenControl makes the control socket, in place of one that an earlier
// keeper left. It is never reachable with wider rights than its owner's.
func listenControl(dir string) (*net.UnixListener, error) {
	path := filepath.Join(dir, sockName)
	fresh := path + ".new"
	os.Remove(fresh)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		os.Remove(fresh)
		return nil, err
	}
	return l, nil
}

// checkPeer refuses connections of other users.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var opErr error
	if err := raw.Control(func(fd uintptr) {
		cred, opErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if opErr != nil {
		return opErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not control the keeper", cred.Uid)
	}
	return nil
}

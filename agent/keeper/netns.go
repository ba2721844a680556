package keeper

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// dnsAddress is where containers find their resolver, as with Docker.
var dnsAddress = [4]byte{127, 0, 0, 11}

// receiveBuffer lets a burst of some twenty thousand queries wait in the socket
// (the kernel doubles the figure and counts some 800 bytes for each); memory is
// taken only while it is filled.
const receiveBuffer = 8 << 20

// fileID tells files apart, also namespaces.
type fileID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

func idOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}

func idOfFD(fd int) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, os.NewSyscallError("fstat", err)
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}

// opener opens the sockets of a resolver, given the path of its namespace.
type opener func(netns string) (sockets, error)

// openInNamespace binds 127.0.0.11:53 inside a namespace. It does so on a
// thread of its own: one that could not return to the host's namespace ends
// with its goroutine and is never used again.
func openInNamespace(netns string) (sockets, error) {
	type result struct {
		s   sockets
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		s, back, err := openBeyond(netns)
		if back {
			runtime.UnlockOSThread()
		}
		done <- result{s, err}
	}()
	r := <-done
	return r.s, r.err
}

// openBeyond runs on a locked thread; back reports whether the thread is in
// the namespace where it began.
func openBeyond(netns string) (s sockets, back bool, err error) {
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, true, fmt.Errorf("open own network namespace: %w", err)
	}
	defer unix.Close(own)
	target, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, true, fmt.Errorf("open network namespace %s: %w", netns, err)
	}
	defer unix.Close(target)
	if s.ns, err = idOfFD(target); err != nil {
		return s, true, err
	}
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		return s, true, fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	udp, tcp := -1, -1
	if err = loopbackUp(); err == nil {
		udp, tcp, err = bindBoth(&unix.SockaddrInet4{Addr: dnsAddress, Port: 53})
	}
	back = unix.Setns(own, unix.CLONE_NEWNET) == nil
	if err != nil {
		return s, back, fmt.Errorf("serve names in %s: %w", netns, err)
	}
	s.udp, s.tcp, err = adoptSockets(udp, tcp)
	return s, back, err
}

// loopbackUp brings up the loopback device of the thread's namespace. To bind
// before it is up (IP_FREEBIND) would not do: answers would then carry another
// source address than the one that was asked.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("look at lo: %w", err)
	}
	if r.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// bindBoth binds a UDP and a TCP socket in the thread's namespace.
func bindBoth(at *unix.SockaddrInet4) (udp, tcp int, err error) {
	if udp, err = bind(unix.SOCK_DGRAM, at); err != nil {
		return -1, -1, err
	}
	if tcp, err = bind(unix.SOCK_STREAM, at); err != nil {
		unix.Close(udp)
		return -1, -1, err
	}
	return udp, tcp, nil
}

func bind(kind int, at *unix.SockaddrInet4) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM {
		// Connections of an earlier keeper may still be closing.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	} else if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, at))
	if err == nil && kind == unix.SOCK_STREAM {
		err = os.NewSyscallError("listen", unix.Listen(fd, 1024))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// adoptSockets makes Go's sockets of descriptors, which it closes.
func adoptSockets(udp, tcp int) (*net.UDPConn, *net.TCPListener, error) {
	uf, tf := os.NewFile(uintptr(udp), "udp"), os.NewFile(uintptr(tcp), "tcp")
	defer uf.Close()
	defer tf.Close()
	pc, err := net.FilePacketConn(uf)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.FileListener(tf)
	if err != nil {
		pc.Close()
		return nil, nil, err
	}
	u, uok := pc.(*net.UDPConn)
	t, tok := l.(*net.TCPListener)
	if !uok || !tok {
		pc.Close()
		l.Close()
		return nil, nil, spec.Invalidf("the sockets handed over are %T and %T", pc, l)
	}
	return u, t, nil
}

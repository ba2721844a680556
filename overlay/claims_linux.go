package overlay

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// claim binds a socket, without listening, to every port that is not held yet.
// Nobody else on the host can take the port while it is published, and a port
// that somebody has is never taken away from him.
func (k *linuxKernel) claim(claims []Claim) map[Claim]error {
	k.claimMu.Lock()
	defer k.claimMu.Unlock()
	refused := map[Claim]error{}
	for _, c := range claims {
		if fd, ok := k.held[c]; ok && fd >= 0 {
			continue
		}
		fd, err := k.bind(c)
		if err != nil {
			delete(k.held, c)
			refused[c] = err
			continue
		}
		k.held[c] = fd
	}
	return refused
}

func (k *linuxKernel) release(c Claim) {
	k.claimMu.Lock()
	defer k.claimMu.Unlock()
	k.releaseLocked(c)
}

func (k *linuxKernel) releaseLocked(c Claim) {
	if fd, ok := k.held[c]; ok && fd >= 0 {
		unix.Close(fd)
	}
	delete(k.held, c)
}

func (k *linuxKernel) releaseAll() {
	k.claimMu.Lock()
	defer k.claimMu.Unlock()
	for c := range k.held {
		k.releaseLocked(c)
	}
}

var errNoAddress = spec.Conflictf(spec.NoAddress)

// bind returns the socket, or -1 when nothing but connections that are closing
// stand in the way: they belong to nobody, and the bind is tried again later.
func (k *linuxKernel) bind(c Claim) (int, error) {
	ip, err := netip.ParseAddr(c.IP)
	if err != nil {
		return 0, spec.Invalidf("port %d/%s: %q is no address", c.Port, c.Proto, c.IP)
	}
	typ := unix.SOCK_STREAM
	if c.Proto == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(int(inetOf(ip)), typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("claim port %d/%s on %s: %w", c.Port, c.Proto, c.IP, err)
	}
	if ip.Is4() {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(c.Port), Addr: ip.As4()})
	} else if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(c.Port), Addr: ip.As16()})
	}
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return 0, fmt.Errorf("port %d/%s cannot be published on %s: %w", c.Port, c.Proto, c.IP, errNoAddress)
	case !errors.Is(err, unix.EADDRINUSE):
		return 0, fmt.Errorf("claim port %d/%s on %s: %w", c.Port, c.Proto, c.IP, err)
	}
	holder, live := k.holders.find(c.Proto, ip, c.Port)
	if !live {
		return -1, nil
	}
	return 0, spec.Conflictf("port %d/%s on %s is in use on the host by %s; stop it or publish another port", c.Port, c.Proto, c.IP, holder)
}

// holderCache finds the process that holds a port. Looking through all
// processes is slow, so the answer is kept while the socket stays the same.
type holderCache struct {
	mu      sync.Mutex
	sockets map[uint64]holder
}

type holder struct{ link, name string }

// unseen holds a port and has no file descriptor: it is in another namespace of
// processes, or the kernel.
const unseen = "a process that cannot be seen from here"

// tcpTimeWait is the state of a connection that is over (net/tcp_states.h).
const tcpTimeWait = 6

// find returns the holder of a port as text; live is false when all that is
// left of it are closed connections.
func (h *holderCache) find(proto string, ip netip.Addr, port uint16) (name string, live bool) {
	files := []string{proto, proto + "6"}
	if ip.Is6() {
		files = files[1:] // ours does not take IPv4
	}
	for _, file := range files {
		f, err := os.Open("/proc/thread-self/net/" + file)
		if err != nil {
			continue // a host without IPv6
		}
		inode, found := findSocket(f, ip, port)
		f.Close()
		if found {
			return h.name(inode), true
		}
	}
	return "", false
}

// findSocket looks in the format of /proc/net/tcp for a socket that keeps
// others from ip:port. A listener comes before a connection.
func findSocket(f *os.File, ip netip.Addr, port uint16) (inode uint64, found bool) {
	const listening, closed = 10, 7
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 10 {
			continue
		}
		local, ok := parseSocketAddr(fields[1])
		if !ok || local.Port() != port {
			continue
		}
		if !standsInTheWay(local.Addr().Unmap(), ip) {
			continue
		}
		state, err1 := strconv.ParseUint(fields[3], 16, 8)
		n, err2 := strconv.ParseUint(fields[9], 10, 64)
		if err1 != nil || err2 != nil || state == tcpTimeWait {
			continue
		}
		if !found || state == listening || state == closed {
			inode, found = n, true
		}
	}
	return inode, found
}

// standsInTheWay reports whether a socket bound to a keeps others from ip. One
// that is bound to :: may be there for IPv4 as well.
func standsInTheWay(a, ip netip.Addr) bool {
	if a.Is6() != ip.Is6() {
		return a == netip.IPv6Unspecified()
	}
	return a == ip || a.IsUnspecified() || ip.IsUnspecified()
}

// parseSocketAddr reads "0100007F:1F90": 32-bit words in the host's order.
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	ip, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(ip, uint16(p)), ok
}

func (h *holderCache) name(inode uint64) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	want := fmt.Sprintf("socket:[%d]", inode)
	if c, ok := h.sockets[inode]; ok {
		if to, err := os.Readlink(c.link); err == nil && to == want {
			return c.name
		}
	}
	h.sockets = map[uint64]holder{}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // its only error is a bad pattern
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || to != want {
			continue
		}
		pid := strings.Split(l, "/")[2]
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			break
		}
		name := fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
		h.sockets[inode] = holder{l, name}
		return name
	}
	return unseen
}

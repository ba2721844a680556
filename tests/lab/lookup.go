//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Resolver is the server that every task asks.
const Resolver = "127.0.0.11:53"

// Lookup asks a server for the IPv4 addresses of a name, as the resolver of a
// C library does it: a question that is not answered within two seconds is
// asked again, and the lookup has failed after five. It tells how often it asked.
func (s Space) Lookup(server, name string) (answer []string, asked int, err error) {
	c, err := s.ListenPacket("udp4", ":0")
	if err != nil {
		return nil, 0, err
	}
	defer c.Close()
	return lookup(c, server, name, uint16(time.Now().UnixNano()))
}

func lookup(c *net.UDPConn, server, name string, id uint16) (answer []string, asked int, err error) {
	to, err := netip.ParseAddrPort(server)
	if err != nil {
		return nil, 0, err
	}
	question := ask(id, name)
	buf := make([]byte, 64<<10)
	end := time.Now().Add(5 * time.Second)
	err = errors.New("no answer")
	for time.Now().Before(end) {
		again := time.Now().Add(2 * time.Second)
		if again.After(end) {
			again = end
		}
		asked++
		if _, werr := c.WriteToUDPAddrPort(question, to); werr != nil {
			err = werr
		}
		_ = c.SetReadDeadline(again) // a socket that is closed fails below
		for {
			n, _, rerr := c.ReadFromUDPAddrPort(buf)
			if errors.Is(rerr, net.ErrClosed) {
				return nil, asked, rerr
			}
			if rerr != nil {
				break
			}
			if n >= 2 && binary.BigEndian.Uint16(buf) == id {
				answer, err = answers(buf[:n])
				return answer, asked, err
			}
		}
	}
	return nil, asked, fmt.Errorf("after 5 s: %w", err)
}

// ask is a question for the IPv4 addresses of a name.
func ask(id uint16, name string) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	for _, label := range strings.Split(strings.TrimSuffix(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1) // A, IN
}

var errShort = errors.New("the answer ends too early")

// answers are the IPv4 addresses in an answer.
func answers(b []byte) ([]string, error) {
	if len(b) < 12 {
		return nil, errShort
	}
	if code := b[3] & 15; code != 0 {
		return nil, fmt.Errorf("the answer is code %d", code)
	}
	at, questions, records := 12, int(binary.BigEndian.Uint16(b[4:])), int(binary.BigEndian.Uint16(b[6:]))
	name := func() bool {
		for at < len(b) {
			switch n := int(b[at]); {
			case n == 0:
				at++
				return true
			case n >= 0xc0: // the rest of the name is elsewhere
				at += 2
				return at <= len(b)
			default:
				at += 1 + n
			}
		}
		return false
	}
	for range questions {
		if !name() {
			return nil, errShort
		}
		at += 4
	}
	var out []string
	for range records {
		if !name() || at+10 > len(b) {
			return nil, errShort
		}
		kind, size := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+8:]))
		at += 10
		if at+size > len(b) {
			return nil, errShort
		}
		if kind == 1 && size == 4 {
			out = append(out, netip.AddrFrom4([4]byte(b[at:at+4])).String())
		}
		at += size
	}
	return out, nil
}

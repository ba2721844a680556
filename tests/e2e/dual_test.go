//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wherry.dev/tests/lab"
)

// TestDualStack: a network with IPv6 between two hosts that reach each other by
// IPv4. Its tasks have addresses and names of both families, and their ports
// are published on both.
func TestDualStack(t *testing.T) {
	c := link(t, 2)
	c.Plug("client")
	client, _ := outside(c)
	clientIP := "2001:db8::c"
	hostIPs := map[string]string{}
	give := func(s lab.Space, ip string) {
		t.Helper()
		if r := s.Run("ip", "addr", "add", ip+"/64", "dev", "eth0", "nodad"); r.Code != 0 {
			t.Fatalf("%s: %s", s.Name, r.Stderr)
		}
	}
	give(client, clientIP)
	for i, h := range c.Hosts {
		hostIPs[h.Name] = fmt.Sprintf("2001:db8::%d", i+1)
		give(c.Space(h.Name), hostIPs[h.Name])
	}
	apply(t, c, stack(t, `
name: dual
services:
  web: {image: `+image+`, command: [sleep, "7601"], stop_signal: SIGKILL, ports: ["8080:80"], deploy: {mode: global}}
  db: {image: `+image+`, command: [sleep, "7602"], stop_signal: SIGKILL, deploy: {mode: global}}
networks:
  default: {enable_ipv6: true}
`))
	type end struct {
		lab.Space
		name, host string
		ip         netip.Addr // of IPv6
	}
	ends := func(ref string) (out []end) {
		for _, ti := range tasks(t, c.Leader(), ref) {
			e := end{Space: space(c, ti), name: ti.Name, host: ti.Node}
			for _, f := range strings.Fields(e.Run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global").Stdout) {
				if p, err := netip.ParsePrefix(f); err == nil {
					e.ip = p.Addr()
				}
			}
			if !e.ip.Is6() || !e.ip.IsPrivate() {
				t.Fatalf("%s has the address %s", e.name, e.ip)
			}
			out = append(out, e)
		}
		if len(out) != 2 {
			t.Fatalf("%d tasks of %s", len(out), ref)
		}
		return out
	}
	webs, dbs := ends("dual/web"), ends("dual/db")
	for _, w := range webs {
		l, err := w.Listen("tcp", ":80") // of both families
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "%s %s", w.host, conn.RemoteAddr().(*net.TCPAddr).IP)
				conn.Close()
			}
		}()
	}
	visit := func(from lab.Space, to string) (string, error) {
		conn, err := from.Dial("tcp", to, 2*time.Second)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second)) // a socket that is closed fails below
		b, err := io.ReadAll(conn)
		return string(b), err
	}
	query := func(from lab.Space, name string, typ uint16) ([]string, error) {
		conn, err := from.Dial("udp", lab.Resolver, 2*time.Second)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second)) // a socket that is closed fails below
		d := dns.Conn{Conn: conn}
		if err := d.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), typ)); err != nil {
			return nil, err
		}
		m, err := d.ReadMsg()
		if err != nil {
			return nil, err
		}
		var out []string
		for _, rr := range m.Answer {
			switch x := rr.(type) {
			case *dns.A:
				out = append(out, x.A.String())
			case *dns.AAAA:
				out = append(out, x.AAAA.String())
			case *dns.PTR:
				out = append(out, x.Ptr)
			}
		}
		slices.Sort(out)
		return out, nil
	}
	both := []string{webs[0].ip.String(), webs[1].ip.String()}
	slices.Sort(both)
	for _, from := range dbs {
		lab.Eventually(t, soon, from.name+" reaches all by address and name", func() error {
			for _, to := range webs {
				if got, err := visit(from.Space, netip.AddrPortFrom(to.ip, 80).String()); err != nil || got != to.host+" "+from.ip.String() {
					return fmt.Errorf("%s at %s: %q, %w", to.name, to.ip, got, err)
				}
				arpa, err := dns.ReverseAddr(to.ip.String())
				if err != nil {
					return err
				}
				if got, err := query(from.Space, arpa, dns.TypePTR); err != nil || !slices.Equal(got, []string{to.name + "."}) {
					return fmt.Errorf("who is %s: %v, %w", to.ip, got, err)
				}
			}
			if got, err := query(from.Space, "tasks.web", dns.TypeAAAA); err != nil || !slices.Equal(got, both) {
				return fmt.Errorf("tasks.web is %v, %w, want %v", got, err, both)
			}
			four, err := query(from.Space, "web", dns.TypeA)
			if err != nil || len(four) != 1 {
				return fmt.Errorf("web is %v by IPv4, %w", four, err)
			}
			six, err := query(from.Space, "web", dns.TypeAAAA)
			if err != nil || len(six) != 1 || slices.Contains(both, six[0]) {
				return fmt.Errorf("web is %v, %w", six, err)
			}
			seen := map[string]bool{}
			for range 30 {
				got, err := visit(from.Space, net.JoinHostPort(six[0], "80"))
				host, client, _ := strings.Cut(got, " ")
				if err != nil || client != from.ip.String() {
					return fmt.Errorf("web at %s: %q, %w", six[0], got, err)
				}
				seen[host] = true
			}
			if len(seen) != 2 {
				return fmt.Errorf("30 connections to web went to %v", seen)
			}
			return nil
		})
	}
	for _, h := range c.Hosts {
		lab.Eventually(t, soon, "the port is published on "+h.Name, func() error {
			seen := map[string]bool{}
			for range 30 {
				got, err := visit(client, net.JoinHostPort(hostIPs[h.Name], "8080"))
				host, who, _ := strings.Cut(got, " ")
				if err != nil || who != clientIP {
					return fmt.Errorf("%q, %w", got, err)
				}
				seen[host] = true
			}
			if len(seen) != 2 {
				return fmt.Errorf("30 connections went to %v", seen)
			}
			return nil
		})
	}
	// Out of the network by the own host's address.
	l, err := client.Listen("tcp6", "[::]:81")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
			conn.Close()
		}
	}()
	for _, from := range dbs {
		if got, err := visit(from.Space, net.JoinHostPort(clientIP, "81")); err != nil || got != hostIPs[from.host] {
			t.Errorf("%s is seen outside as %q, %v, want %s", from.name, got, err, hostIPs[from.host])
		}
	}
}

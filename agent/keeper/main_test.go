package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// TestMain lets the test program be the keeper process, with sockets on
// loopback in place of namespaces.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "keeper" {
		open := opener(openLoopback)
		if strings.HasSuffix(os.Getenv("KEEPER_TEST_OPENER"), "netns") {
			open = openInNamespace
		}
		os.Exit(mainWith(os.Args[2:], open))
	}
	os.Exit(m.Run())
}

// openLoopback takes a plain file for a namespace. The file holds the port;
// an empty one gets a free port.
func openLoopback(path string) (sockets, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return sockets{}, err
	}
	var port int
	fmt.Sscan(string(b), &port)
	for {
		udp, tcp, err := bindBoth(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port})
		if err == nil && port == 0 {
			sa, _ := unix.Getsockname(udp)
			unix.Close(udp)
			unix.Close(tcp)
			port = sa.(*unix.SockaddrInet4).Port
			if udp, tcp, err = bindBoth(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); errors.Is(err, unix.EADDRINUSE) {
				port = 0
				continue
			}
			os.WriteFile(path, fmt.Append(nil, port), 0o600)
		}
		if err != nil {
			return sockets{}, err
		}
		s := sockets{}
		if s.ns, err = idOf(path); err != nil {
			return s, err
		}
		s.udp, s.tcp, err = adoptSockets(udp, tcp)
		return s, err
	}
}

// world is what the tests run a keeper in.
type world struct {
	t   testing.TB
	dir string
}

func newWorld(t testing.TB) *world {
	// The path of a unix socket has to be short.
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &world{t, dir}
}

func (w *world) config(version string) Config {
	return Config{RunDir: w.dir, Version: version, Binary: os.Args[0], Logger: nil}
}

// ensure starts a keeper process that ends with the test.
func (w *world) ensure(version string) *Client {
	w.t.Helper()
	c, err := Ensure(w.ctx(), w.config(version))
	if err != nil {
		b, _ := os.ReadFile(filepath.Join(w.dir, logName))
		w.t.Fatalf("%v\n%s", err, b)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := NewClient(w.dir).Stop(ctx); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	w.t.Cleanup(cancel)
	return ctx
}

// namespace makes a file that stands for one.
func (w *world) namespace(name string) string {
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// server is the address of the resolver in a namespace.
func (w *world) server(ns string) string {
	b, err := os.ReadFile(ns)
	if err != nil || len(b) == 0 {
		w.t.Fatalf("no resolver was opened in %s: %v", ns, err)
	}
	return "127.0.0.1:" + string(b)
}

// fifo makes a FIFO and holds both its ends, as a shim does.
func (w *world) fifo(name string) (string, *os.File) {
	path := filepath.Join(w.dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		w.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { f.Close() })
	return path, f
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 15 s still not: %s", what)
		}
	}
}

func resolverOf(task, ns string, upstream ...string) spec.Resolver {
	return spec.Resolver{Task: spec.TaskID(task), NetNS: ns, Networks: []spec.NetworkID{"1-1", "1-2"}, Upstream: upstream}
}

func tablesOf(names ...spec.Name) []spec.NameTable {
	return []spec.NameTable{{Network: "1-1", Names: names}}
}

func name(n string, addresses ...string) spec.Name { return spec.Name{Name: n, Addresses: addresses} }

// lookup asks one question and describes the answer: its code, then addresses
// or names, sorted.
func lookup(server, network, name string, qtype uint16) (string, error) {
	return lookupFor(8*time.Second, server, network, name, qtype)
}

func lookupFor(patience time.Duration, server, network, name string, qtype uint16) (string, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	c := dns.Client{Net: network, Timeout: patience}
	r, _, err := c.Exchange(m, server)
	if err != nil {
		return "", err
	}
	return describe(r), nil
}

func describe(r *dns.Msg) string {
	out := []string{dns.RcodeToString[r.Rcode]}
	var data []string
	for _, rr := range r.Answer {
		switch x := rr.(type) {
		case *dns.A:
			data = append(data, x.A.String())
		case *dns.AAAA:
			data = append(data, x.AAAA.String())
		case *dns.PTR:
			data = append(data, x.Ptr)
		default:
			data = append(data, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	sortStrings(data)
	out = append(out, data...)
	if r.Truncated {
		out = append(out, "TC")
	}
	return strings.Join(out, " ")
}

func sortStrings(s []string) {
	for i := range s {
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}

// readLog joins the text of all records of one stream, oldest file first.
func readLog(t testing.TB, file string, stream string) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, r := range readRecords(t, file) {
		if r.Stream == stream {
			out.WriteString(r.Log)
		}
	}
	return out.Bytes()
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

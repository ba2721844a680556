package cluster

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// soon looks again and again until what is so.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// noLeak fails the test if goroutines of this package or of the libraries below
// it are left when everything that was set up after it is closed.
func noLeak(t *testing.T) {
	t.Cleanup(func() {
		left := func() string {
			buf := make([]byte, 1<<20)
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				for _, of := range []string{"cluster.(*port)", "cluster.(*gossip", "cluster.(*directory)", "memberlist.", "net/http.", "cluster.first", "cluster.dialNode"} {
					if strings.Contains(g, of) {
						return g
					}
				}
			}
			return ""
		}
		end := time.Now().Add(5 * time.Second)
		for left() != "" && time.Now().Before(end) {
			time.Sleep(5 * time.Millisecond)
		}
		if g := left(); g != "" {
			t.Errorf("left behind: %s", g)
		}
	})
}

// authority makes identities of one cluster.
type authority struct {
	t    *testing.T
	root spec.Root
	name string
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	root, err := ca.NewRoot(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, root, name}
}

func (a authority) identity(s ca.Subject) *ca.Identity {
	a.t.Helper()
	id, err := ca.OpenIdentity(filepath.Join(a.t.TempDir(), "tls"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.certify(id, s, 24*time.Hour)
	return id
}

// certify gives an identity a certificate for so long.
func (a authority) certify(id *ca.Identity, s ca.Subject, life time.Duration) {
	a.t.Helper()
	s.Cluster = a.name
	csr, err := id.CSR()
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := ca.Sign(a.root, csr, s, time.Now(), life)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := id.Install(cert, a.root.Certificate); err != nil {
		a.t.Fatal(err)
	}
}

func (a authority) node(id spec.NodeID) *ca.Identity {
	a.t.Helper()
	return a.identity(ca.Subject{Kind: ca.KindNode, ID: string(id), Role: spec.RoleManager})
}

// The nodes of the tests.
const (
	nodeA spec.NodeID = "aaaaaaaaaaaaaaaa"
	nodeB spec.NodeID = "bbbbbbbbbbbbbbbb"
	nodeC spec.NodeID = "cccccccccccccccc"
)

// testPort is the port of one node, with the addresses that it knows.
type testPort struct {
	*port
	mu    sync.Mutex
	addrs map[spec.NodeID][]string
	learn map[string]spec.NodeID
}

func (a authority) port(id spec.NodeID, change ...func(*portConfig)) *testPort {
	a.t.Helper()
	tp := &testPort{addrs: map[spec.NodeID][]string{}, learn: map[string]spec.NodeID{}}
	c := portConfig{
		Listen: "127.0.0.1:0", Identity: a.node(id),
		Find: func(id spec.NodeID) []string {
			tp.mu.Lock()
			defer tp.mu.Unlock()
			return tp.addrs[id]
		},
		Learn: func(id spec.NodeID, addr string) {
			tp.mu.Lock()
			defer tp.mu.Unlock()
			tp.learn[addr] = id
		},
	}
	for _, f := range change {
		f(&c)
	}
	p, err := openPort(c)
	if err != nil {
		a.t.Fatal(err)
	}
	tp.port = p
	a.t.Cleanup(func() {
		if err := p.close(); err != nil {
			a.t.Error(err)
		}
	})
	return tp
}

func (p *testPort) knows(id spec.NodeID, addrs ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addrs[id] = addrs
}

// serve answers the API of the port.
func (p *testPort) serve(t *testing.T, h http.HandlerFunc) {
	s := &http.Server{Handler: h}
	var all sync.WaitGroup
	all.Go(func() { s.Serve(p.api()) })
	t.Cleanup(func() {
		s.Close()
		all.Wait()
	})
}

// whoAsks answers with the protocol and the caller.
func whoAsks(w http.ResponseWriter, r *http.Request) {
	c, ok := ca.PeerOf(*r.TLS)
	fmt.Fprintf(w, "%s %s %v", r.Proto, c.ID, ok)
}

func get(t *testing.T, rt http.RoundTripper) (string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://node/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestPortCarriesTheAPI(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	pb.serve(t, whoAsks)
	pa.knows(nodeB, pb.addr())
	for range 3 {
		got, err := get(t, pa.transport(nodeB))
		if err != nil || got != "HTTP/2.0 "+string(nodeA)+" true" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	pa.port.mu.Lock()
	if n := len(pa.conns); n != 1 {
		t.Errorf("%d connections for three requests", n)
	}
	pa.port.mu.Unlock()
	if pa.learn[pb.addr()] != nodeB {
		t.Errorf("learnt %v", pa.learn)
	}

	// A person without a certificate and without ALPN.
	c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := c.Get("https://" + pb.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "HTTP/1.1  false" {
		t.Errorf("%q", b)
	}
}

// TestPortNewCertificate: calls come with the new certificate at once, however
// busy the connection with the old one is. What is under way there goes on
// until that one ends.
func TestPortNewCertificate(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	id, self := pa.c.Identity, pa.c.Identity.Subject()
	pb.serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.TLS.PeerCertificates[0].SerialNumber)
		if r.Header.Get("Stream") == "" {
			return
		}
		http.NewResponseController(w).Flush()
		io.Copy(w, flushed{r.Body, w})
	})
	pa.knows(nodeB, pb.addr())
	serial := func() string { return id.Leaf().SerialNumber.String() }
	asSerial := func() string {
		got, err := get(t, pa.transport(nodeB))
		if err != nil {
			return err.Error() // it may have been cut
		}
		return strings.TrimSpace(got)
	}
	// stream is a request that does not end; it echoes.
	type stream struct {
		in  *io.PipeWriter
		out *bufio.Reader
	}
	begin := func() stream {
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://node/", r)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Stream", "yes")
		resp, err := pa.transport(nodeB).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close(); resp.Body.Close() })
		s := stream{w, bufio.NewReader(resp.Body)}
		if line, err := s.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != serial() {
			t.Fatalf("a stream begins as %q, want %s (%v)", line, serial(), err)
		}
		return s
	}
	echo := func(s stream) error {
		if _, err := fmt.Fprintln(s.in, "x"); err != nil {
			return err
		}
		_, err := s.out.ReadString('\n')
		return err
	}
	first := begin()
	if got := asSerial(); got != serial() {
		t.Fatalf("asked as %s, the certificate is %s", got, serial())
	}
	// What is opened with the next one is cut within a second, once there is
	// another one.
	a.certify(id, self, retireTime+time.Second)
	soon(t, "calls come with the second certificate", func() bool { return asSerial() == serial() })
	second := begin()
	a.certify(id, self, 24*time.Hour)
	soon(t, "calls come with the third certificate", func() bool { return asSerial() == serial() })
	third := begin()
	if _, err := second.out.ReadString('\n'); err == nil {
		t.Error("a stream outlives the certificate that it was begun with")
	}
	for name, s := range map[string]stream{"first": first, "third": third} {
		if err := echo(s); err != nil {
			t.Errorf("the stream of the %s certificate: %v", name, err)
		}
	}
}

// flushed reads, and flushes an answer before it waits.
type flushed struct {
	io.Reader
	w http.ResponseWriter
}

func (f flushed) Read(b []byte) (int, error) {
	http.NewResponseController(f.w).Flush()
	return f.Reader.Read(b)
}

func TestPortUpgrade(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	pa.knows(nodeB, pb.addr())
	pb.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" {
			http.Error(w, "no upgrade", http.StatusTeapot)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(conn, rw)
	})
	// A proxy at A, as a manager is for exec.
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "node"}) },
		Transport: pa.transport(nodeB),
	}
	pa.serve(t, proxy.ServeHTTP)
	for range 2 {
		conn, err := tls.Dial("tcp", pa.addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /exec HTTP/1.1\r\nHost: x\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", resp, err)
		}
		fmt.Fprintf(conn, "hello\n")
		if line, err := r.ReadString('\n'); line != "hello\n" {
			t.Errorf("%q, %v", line, err)
		}
		conn.Close()
	}
	soon(t, "the upgraded connections are closed", func() bool {
		pa.port.mu.Lock()
		defer pa.port.mu.Unlock()
		return len(pa.conns) == 0
	})
}

func TestPortTellsProtocolsApart(t *testing.T) {
	noLeak(t)
	a, foreign := newAuthority(t, "one"), newAuthority(t, "two")
	refused := errors.New("removed")
	pb := a.port(nodeB, func(c *portConfig) {
		c.AdmitRaft = func(c ca.Caller) error {
			if c.ID == string(nodeC) {
				return refused
			}
			return nil
		}
	})
	pb.serve(t, whoAsks)
	raft := pb.raft()
	took := make(chan string, 10)
	go func() {
		for {
			c, err := raft.Accept()
			if err != nil {
				close(took)
				return
			}
			who, _ := ca.PeerOf(c.(*tls.Conn).ConnectionState())
			took <- who.ID
			c.Write([]byte("r"))
			c.Close()
		}
	}()
	gossip := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := pb.gossipDoor.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("g"))
			c.Close()
			gossip <- c
		}
	}()

	person := a.identity(ca.Subject{Kind: ca.KindClient, ID: "ann"})
	dial := func(id *ca.Identity, protos ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var c *tls.Config
		if id != nil {
			c = id.Client(nil, protos...)
		} else {
			c = &tls.Config{InsecureSkipVerify: true, NextProtos: protos}
		}
		conn, err := (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", pb.addr())
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(3 * time.Second))
		b, err := io.ReadAll(conn)
		return string(b), err
	}
	for _, c := range []struct {
		name  string
		id    *ca.Identity
		proto string
		want  string // what the other side sends before it closes
	}{
		{"raft of a node", a.node(nodeA), protoRaft, "r"},
		{"gossip of a node", a.node(nodeA), protoGossip, "g"},
		{"raft of a removed node", a.node(nodeC), protoRaft, ""},
		{"gossip of that", a.node(nodeC), protoGossip, "g"},
		{"raft of a person", person, protoRaft, ""},
		{"gossip of a person", person, protoGossip, ""},
		{"raft of nobody", nil, protoRaft, ""},
		{"gossip of nobody", nil, protoGossip, ""},
		{"raft of another cluster's node", foreign.node(nodeA), protoRaft, ""},
		{"an unknown protocol", a.node(nodeA), "smtp", ""},
	} {
		got, err := dial(c.id, c.proto)
		if got != c.want {
			t.Errorf("%s: got %q, %v", c.name, got, err)
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: left to wait", c.name)
		}
	}
	raft.Close()
	n := 0
	for who := range took {
		if n++; who != string(nodeA) {
			t.Errorf("raft took a stream of %s", who)
		}
	}
	if n != 1 || len(gossip) != 2 {
		t.Errorf("raft took %d streams, gossip %d", n, len(gossip))
	}
}

func TestPortFindsTheNodeBehindTheAddress(t *testing.T) {
	noLeak(t)
	a, foreign := newAuthority(t, "one"), newAuthority(t, "two")
	pa, pb, pc, px := a.port(nodeA), a.port(nodeB), a.port(nodeC), foreign.port(nodeB)
	for _, p := range []*testPort{pb, pc, px} {
		p.serve(t, whoAsks)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	dumb, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer dumb.Close()

	pa.knows(nodeB, closed.Addr().String(), px.addr(), dumb.Addr().String(), pc.addr(), pb.addr())
	if got, err := get(t, pa.transport(nodeB)); err != nil || !strings.HasPrefix(got, "HTTP/2.0") {
		t.Errorf("with wrong addresses first: %q, %v", got, err)
	}
	soon(t, "it has learnt who is where", func() bool {
		pa.mu.Lock()
		defer pa.mu.Unlock()
		return pa.learn[pc.addr()] == nodeC && pa.learn[pb.addr()] == nodeB && len(pa.learn) == 2
	})
	pa.http2.Load().CloseIdleConnections()

	for _, c := range []struct {
		addr, want string
	}{
		{pc.addr(), "reach node " + string(nodeB) + ": " + pc.addr() + " answers as node " + string(nodeC) + ", not " + string(nodeB)},
		{closed.Addr().String(), "reach node " + string(nodeB) + ": " + closed.Addr().String() + ": connect: connection refused"},
		{px.addr(), "comes from another certificate authority"},
	} {
		pa.knows(nodeB, c.addr)
		_, err := get(t, pa.transport(nodeB))
		if !errors.Is(err, spec.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	pa.knows(nodeB, pc.addr(), closed.Addr().String())
	_, err = get(t, pa.transport(nodeB))
	if err == nil || !strings.Contains(err.Error(), "not "+string(nodeB)) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("not all that was tried is told: %v", err)
	}
	pa.knows(nodeB)
	if _, err := get(t, pa.transport(nodeB)); !errors.Is(err, spec.ErrUnavailable) || !strings.Contains(err.Error(), "no address of it is known") {
		t.Error(err)
	}
	pa.knows(nodeB, dumb.Addr().String())
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("too long"))
	defer cancel()
	if _, err := pa.dial(ctx, nodeB, protoRaft); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
}

// Connections that say nothing hold up nobody.
func TestPortSlowClients(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	pb.serve(t, whoAsks)
	pa.knows(nodeB, pb.addr())
	var slow []net.Conn
	for range 2 * maxGreetings {
		c, err := net.Dial("tcp", pb.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		slow = append(slow, c)
	}
	if _, err := get(t, pa.transport(nodeB)); err != nil {
		t.Error(err)
	}
	// The oldest were sent away, the newest still have time.
	slow[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := slow[0].Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the oldest: %v", err)
	}
	pb.port.mu.Lock()
	defer pb.port.mu.Unlock()
	if n := len(pb.greetings); n > maxGreetings {
		t.Errorf("%d connections may take their time", n)
	}
}

// Connections without a certificate that hold their places hold up nobody.
func TestPortStrangers(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	pb.serve(t, whoAsks)
	pa.knows(nodeB, pb.addr())
	if _, err := get(t, pa.transport(nodeB)); err != nil {
		t.Fatal(err)
	}
	half := func() net.Conn {
		c, err := tls.Dial("tcp", pb.addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protoHTTP1}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "POST /v1/cluster/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
		return c
	}
	strangers := func() int {
		pb.port.mu.Lock()
		defer pb.port.mu.Unlock()
		return len(pb.strangers)
	}
	oldest := half()
	soon(t, "it is counted", func() bool { return strangers() == 1 })
	var last net.Conn
	for range maxStrangers {
		last = half()
	}
	oldest.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := io.Copy(io.Discard, oldest)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		t.Error("the oldest was not sent away")
	}
	if n := strangers(); n > maxStrangers {
		t.Errorf("%d connections without a certificate", n)
	}
	fmt.Fprint(last, strings.Repeat("x", 99))
	if resp, err := http.ReadResponse(bufio.NewReader(last), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the newest: %v", err)
	}
	pb.port.mu.Lock()
	n := len(pb.conns)
	pb.port.mu.Unlock()
	if n != maxStrangers+1 {
		t.Errorf("%d connections are open, want %d and that of a node", n, maxStrangers)
	}
	last.Close()
	soon(t, "one that is closed leaves its place", func() bool { return strangers() < maxStrangers })
}

// relay is a network between two ports that can stop to carry anything, as one
// whose cable is pulled.
type relay struct {
	net.Listener
	mu  sync.Mutex
	cut bool
}

func newRelay(t *testing.T, to string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l}
	var all sync.WaitGroup
	var open []net.Conn
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			open = append(open, in, out)
			r.mu.Unlock()
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				all.Go(func() {
					buf := make([]byte, 4096)
					for {
						n, err := way[0].Read(buf)
						r.mu.Lock()
						cut := r.cut
						r.mu.Unlock()
						if !cut && n > 0 {
							way[1].Write(buf[:n])
						}
						if err != nil {
							if !cut {
								way[1].Close()
							}
							return
						}
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range open {
			c.Close()
		}
		r.mu.Unlock()
		all.Wait()
	})
	return r
}

func TestPortNoticesThatAPeerHasVanished(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	asked := make(chan struct{})
	pb.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		close(asked)
		<-r.Context().Done()
	})
	r := newRelay(t, pb.addr())
	pa.knows(nodeB, r.Addr().String())
	done := make(chan error)
	go func() {
		_, err := get(t, pa.transport(nodeB))
		done <- err
	}()
	<-asked
	r.mu.Lock()
	r.cut = true
	r.mu.Unlock()
	begin := time.Now()
	err := <-done
	if took := time.Since(begin); err == nil || took > 3500*time.Millisecond {
		t.Errorf("noticed after %s: %v", took, err)
	}
}

func TestPortInUse(t *testing.T) {
	a := newAuthority(t, "one")
	identity := a.node(nodeA)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for addr, want := range map[string]string{
		tcp.Addr().String():      "/tcp is in use by another program on this host: stop that one, or take another port with --advertise IP:PORT",
		udp.LocalAddr().String(): "/udp is in use by another program on this host: stop that one, or take another port with --advertise IP:PORT",
		"192.0.2.1:4477":         "this host does not have that address",
		"4477":                   "want HOST:PORT",
	} {
		_, err := openPort(portConfig{Listen: addr, Identity: identity})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	// What was opened before the failure is closed again.
	again, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestPortCloseEndsEverything(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	pa, pb := a.port(nodeA), a.port(nodeB)
	began := make(chan struct{})
	pb.serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	})
	pa.knows(nodeB, pb.addr())
	stream, err := pa.raft().Dial(t.Context(), nodeB) // nobody takes it
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	done := make(chan error)
	go func() {
		_, err := get(t, pa.transport(nodeB))
		done <- err
	}()
	<-began
	if err := pb.close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a request outlives the port")
	}
	if _, err := stream.Read(make([]byte, 1)); err == nil {
		t.Error("a stream outlives the port")
	}
	if err := pb.close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := pb.raft().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := pa.close(); err != nil {
		t.Error(err)
	}
	if _, err := pa.dial(t.Context(), nodeB, protoRaft); err == nil {
		t.Error("a closed port dials")
	}
}

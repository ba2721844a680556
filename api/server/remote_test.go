package server

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// fakeCluster is the manager behind the server, with what it was called with.
type fakeCluster struct {
	mu     sync.Mutex
	leader spec.NodeID
	// refused is the instance that is not the one.
	refused string
	beats   []string
	seen    []spec.NodeID
	renewed Caller
	joined  string
	// half makes a backup fail in the middle.
	half bool
}

func (f *fakeCluster) Beat(_ context.Context, n spec.NodeID, b api.Beat, remote string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beats = append(f.beats, fmt.Sprintf("%s %s %s", b.Instance, b.Address, hostOf(remote)))
	if b.Instance == f.refused {
		return spec.Conflictf("another host at %s uses the identity of node %s", remote, n)
	}
	return nil
}

func (f *fakeCluster) Seen(n spec.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, n)
}

func (f *fakeCluster) Alive(a api.Alive) api.AliveReply { return api.AliveReply{Refused: a.Nodes} }

func (f *fakeCluster) Join(_ context.Context, r api.JoinRequest, remote string) (api.JoinReply, error) {
	f.joined = r.Name + " at " + hostOf(remote)
	return api.JoinReply{ClusterID: "c", Certificates: api.Certificates{Roots: "roots"}}, nil
}

func (f *fakeCluster) Renew(_ context.Context, c Caller, r api.RenewRequest) (api.RenewReply, error) {
	f.renewed = c
	return api.RenewReply{Role: spec.RoleWorker, Certificates: api.Certificates{Certificate: "for " + r.CSR}}, nil
}

func (f *fakeCluster) Token(_ context.Context, role spec.NodeRole, r api.TokenRequest) (api.Token, error) {
	return api.Token{Role: role, Token: fmt.Sprintf("WHERRY-1-%s-%t-%s", role, r.Rotate, r.TTL)}, nil
}

func (f *fakeCluster) Client(_ context.Context, name string, r api.ClientRequest) (api.Certificates, error) {
	return api.Certificates{Certificate: name + r.CSR}, nil
}

func (f *fakeCluster) RotateCA(context.Context) error {
	return spec.Conflictf("an exchange is going on")
}

func (f *fakeCluster) Forward(_ context.Context, entry []byte) (api.Forwarded, error) {
	return api.Forwarded{Index: 7, Error: string(entry)}, nil
}

func (f *fakeCluster) ReadIndex(context.Context) (api.ReadIndex, error) {
	return api.ReadIndex{}, spec.Unavailablef("this member does not lead")
}

func (f *fakeCluster) Leader() spec.NodeID { return f.MemberStatus().LeaderID }

func (f *fakeCluster) MemberStatus() api.MemberStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return api.MemberStatus{Node: testNode, LeaderID: f.leader}
}

func (f *fakeCluster) ClusterStatus(context.Context) (api.ClusterStatus, error) {
	return api.ClusterStatus{ClusterID: "c", Workers: 3}, nil
}

func (f *fakeCluster) BackupKey() (string, error) { return "key", nil }

func (f *fakeCluster) Backup(_ context.Context, w io.Writer) error {
	if _, err := io.WriteString(w, strings.Repeat("x", 1<<20)); err != nil {
		return err
	}
	if f.half {
		return errors.New("the disk is gone")
	}
	return nil
}

func hostOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return "no address: " + remote
	}
	return host
}

// fakeHost is the host behind a server.
type fakeHost struct {
	name  string
	image string // the archive that was loaded last
	left  *api.Leave
	// leads are the addresses that it leads to until they are taken away, which
	// closes less.
	mu    sync.Mutex
	leads []spec.Address
	less  chan struct{}
}

func (h *fakeHost) Withdrawn(ctx context.Context, addrs []spec.Address) error {
	for {
		still := h.Leads(addrs)
		h.mu.Lock()
		less := h.less
		h.mu.Unlock()
		if len(still) == 0 {
			return nil
		}
		select {
		case <-less:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *fakeHost) Leads(addrs []spec.Address) []spec.Address {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(addrs), func(a spec.Address) bool { return !slices.Contains(h.leads, a) })
}

func (h *fakeHost) List(context.Context) ([]api.Image, error) {
	return []api.Image{{Name: "on " + h.name}}, nil
}

func (h *fakeHost) Load(_ context.Context, archive io.Reader) ([]api.Image, error) {
	b, err := io.ReadAll(archive)
	h.image = string(b)
	return []api.Image{{Name: "loaded on " + h.name}}, err
}

func (h *fakeHost) Pull(_ context.Context, p api.PullImage, progress func(api.PullProgress)) (api.Image, error) {
	progress(api.PullProgress{Done: 1, Total: 2})
	return api.Image{Name: p.Image + " on " + h.name}, nil
}

func (h *fakeHost) Remove(_ context.Context, ref string) error {
	return spec.NotFoundf("image %s is not on %s", ref, h.name)
}

func (h *fakeHost) Leave(_ context.Context, l api.Leave) error {
	h.left = &l
	return nil
}

func (h *fakeHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
}

// authority makes certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t), pool: x509.NewCertPool()}
	a.cert = a.sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-40 * 24 * time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, a.key)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// issue returns a certificate for name in the role, which may be "client".
func (a *authority) issue(name, role string, life time.Duration) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{role}, Organization: []string{"c"}},
		NotBefore: time.Now().Add(min(0, life) - 2*time.Hour), NotAfter: time.Now().Add(life)}, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key, Leaf: cert}
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// identify trusts what the listener of a test has verified.
func identify(cs *tls.ConnectionState) (Caller, bool) {
	if len(cs.PeerCertificates) == 0 {
		return Caller{}, false
	}
	leaf := cs.PeerCertificates[0]
	c := Caller{Kind: CallerNode, ID: leaf.Subject.CommonName, Role: spec.NodeRole(leaf.Subject.OrganizationalUnit[0]), Key: fingerprint(leaf), Expired: time.Now().After(leaf.NotAfter)}
	if c.Role == "client" {
		c.Kind, c.Role = CallerClient, ""
	}
	return c, true
}

// serveTLS answers with h as the node with that certificate and returns the
// address.
func (a *authority) serveTLS(h http.Handler, cert tls.Certificate) string {
	a.t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			leaf := cs.PeerCertificates[0]
			_, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: leaf.NotBefore.Add(time.Minute)})
			return err
		}}
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// member is a client with the certificate of a node, over HTTP/2 or, with an
// Upgrade, HTTP/1.1.
func (a *authority) member(addr string, cert *tls.Certificate) *api.Client {
	a.t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	h2 := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	h1 := &http.Transport{TLSClientConfig: config.Clone(), Protocols: new(http.Protocols)}
	h1.Protocols.SetHTTP1(true)
	a.t.Cleanup(h2.CloseIdleConnections)
	a.t.Cleanup(h1.CloseIdleConnections)
	return api.NewNodeClient(roundTrip(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = "https", addr
		if r.Header.Get("Upgrade") != "" {
			return h1.RoundTrip(r)
		}
		return h2.RoundTrip(r)
	}))
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// files writes a certificate as a person has it.
func (a *authority) files(cert tls.Certificate) api.TLSFiles {
	a.t.Helper()
	dir := a.t.TempDir()
	f := api.TLSFiles{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{
		f.Cert: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, f.Key: {Type: "PRIVATE KEY", Bytes: key}, f.CA: {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return f
}

const (
	workerID  = spec.NodeID("aaaaaaaaaaaaaaaa")
	managerID = spec.NodeID("bbbbbbbbbbbbbbbb")
)

// join adds two nodes to the table, by the keys of their certificates.
func (w *world) join(workerKey, managerKey string) {
	w.t.Helper()
	w.must(store.Command{PutNode: &store.PutNode{ID: workerID, Name: "w1", Role: spec.RoleWorker, Address: "127.0.0.1:1", Key: workerKey}})
	w.must(store.Command{PutNode: &store.PutNode{ID: managerID, Name: "m2", Role: spec.RoleManager, Address: "127.0.0.1:2", Key: managerKey}})
}

// callers that the matrix knows. The last two are sockets of the host.
var callers = map[string]Caller{
	"nobody":          {},
	"client":          {Kind: CallerClient, ID: "me"},
	"expired client":  {Kind: CallerClient, ID: "me", Expired: true},
	"worker":          {Kind: CallerNode, ID: string(workerID), Role: spec.RoleWorker, Key: "w"},
	"false manager":   {Kind: CallerNode, ID: string(workerID), Role: spec.RoleManager, Key: "w"}, // demoted
	"manager":         {Kind: CallerNode, ID: string(managerID), Role: spec.RoleManager, Key: "m"},
	"new manager":     {Kind: CallerNode, ID: string(managerID), Role: spec.RoleWorker, Key: "m"}, // promoted
	"expired worker":  {Kind: CallerNode, ID: string(workerID), Role: spec.RoleWorker, Key: "w", Expired: true},
	"expired manager": {Kind: CallerNode, ID: string(managerID), Role: spec.RoleManager, Key: "m", Expired: true},
	"removed":         {Kind: CallerNode, ID: "cccccccccccccccc", Role: spec.RoleManager, Key: "r"},
	"expired removed": {Kind: CallerNode, ID: "cccccccccccccccc", Role: spec.RoleManager, Key: "r", Expired: true},
	"other key":       {Kind: CallerNode, ID: string(managerID), Role: spec.RoleManager, Key: "x"},
	"wherry.sock":     {},
	"node.sock":       {Kind: CallerNode, ID: string(testNode)},
}

// admitted says for every route who may use it.
var admitted = func() map[string][]string {
	everyone := []string{"nobody", "client", "expired client", "worker", "false manager", "manager", "new manager", "expired worker",
		"expired manager", "removed", "expired removed", "other key", "wherry.sock", "node.sock"}
	operators := []string{"client", "wherry.sock"}
	nodes := []string{"worker", "false manager", "manager", "new manager", "node.sock"}
	managers := []string{"manager", "new manager", "node.sock"}
	return map[string][]string{
		"version":      everyone,
		"cluster.join": everyone,

		"stack.list": operators, "stack.get": operators, "stack.put": operators, "stack.delete": operators, "stack.status": operators, "stack.plan": operators,
		"service.list": operators, "service.get": operators, "service.scale": operators,
		"stack.history": operators, "stack.rollback": operators, "service.rollback": operators, "service.pause": operators, "service.resume": operators, "service.restart": operators, "service.promote": operators, "service.run": operators,
		"why": operators, "rebalance.plan": operators, "rebalance": operators, "task.list": operators, "task.get": operators, "task.logs": operators, "task.exec": operators,
		"node.list": operators, "node.doctor": operators, "node.get": operators, "node.update": operators, "node.delete": operators, "node.leftovers": operators,
		"network.list": operators, "network.get": operators, "network.create": operators, "network.delete": operators, "volume.list": operators,
		"secret.list": operators, "secret.get": operators, "secret.put": operators, "secret.delete": operators,
		"config.list": operators, "config.get": operators, "config.put": operators, "config.delete": operators,
		"volume.get": operators, "volume.create": operators, "volume.move": operators, "volume.backup": operators, "volume.restore": operators,
		"volume.delete": operators, "event.list": operators,
		"image.list": operators, "image.load": operators, "image.pull": operators, "image.delete": operators,
		"cluster.status": operators, "cluster.backup": operators, "cluster.token": operators, "cluster.client": operators, "cluster.rotate": operators,

		"session.watch": nodes, "session.report": nodes, "session.beat": nodes, "session.lease": nodes, "session.leave": nodes,
		"content.get": nodes, "registry": nodes, "node.member": nodes, "node.withdrawn": nodes, "node.volume.give": nodes,

		"cluster.propose": managers, "cluster.read": managers, "cluster.alive": managers,
		"node.volume.size": managers, "node.volume.export": managers, "node.volume.import": managers,
		"node.task.logs": managers, "node.task.exec": managers,
		"node.image.list": managers, "node.image.load": managers, "node.image.pull": managers, "node.image.delete": managers,

		"cluster.renew": {"worker", "false manager", "manager", "new manager", "expired worker", "expired manager"},
		"node.leave":    {"wherry.sock"},
		"cluster.key":   {"wherry.sock"},
	}
}()

// TestMatrix calls every route as every kind of caller. A route that is not in
// the table fails.
func TestMatrix(t *testing.T) {
	for who, c := range callers {
		w := newWorld(t, func(f *Config) {
			f.Caller = func(*tls.ConnectionState) (Caller, bool) { return c, c.Kind != "" }
		})
		for _, route := range api.Routes {
			may, ok := admitted[route.Name]
			if !ok {
				t.Fatalf("route %s: the table does not say who may use it", route.Name)
			}
			w.join("w", "m") // again, since a call may have removed one
			var h http.Handler
			switch who {
			case "wherry.sock":
				h = w.server.Handler(api.RuleOperator, api.RuleLocal)
			case "node.sock":
				h = w.server.Handler(api.RuleNode, api.RuleManager)
			default:
				h = w.server.Remote()
			}
			call := func(node string) *httptest.ResponseRecorder {
				path := strings.NewReplacer("{node}", node, "{path...}", "x").Replace(route.Path)
				for _, p := range []string{"stack", "service", "task", "volume", "content", "role", "name"} {
					path = strings.ReplaceAll(path, "{"+p+"}", "x")
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel() // a stream ends at once
				r := httptest.NewRequestWithContext(ctx, route.Method, path, strings.NewReader("{}"))
				r.TLS = &tls.ConnectionState{}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				return rec
			}
			if rec := call(cmp.Or(c.ID, "x")); (rec.Code == http.StatusForbidden) == slices.Contains(may, who) {
				t.Errorf("%s as %s: status %d %s", route.Name, who, rec.Code, rec.Body)
			}
			if route.Rule == api.RuleNode && strings.Contains(route.Path, "{node}") {
				if rec := call("eeeeeeeeeeeeeeee"); rec.Code != http.StatusForbidden {
					t.Errorf("%s as %s for another node: status %d %s", route.Name, who, rec.Code, rec.Body)
				}
			}
		}
	}
	if len(admitted) != len(api.Routes) {
		t.Errorf("the table has %d routes, the API %d", len(admitted), len(api.Routes))
	}
}

func route(t *testing.T, name string) api.Route {
	t.Helper()
	i := slices.IndexFunc(api.Routes, func(r api.Route) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("no route %s", name)
	}
	return api.Routes[i]
}

// ask calls a route that only members call, which package cluster does without
// api.Client.
func ask[T any](ctx context.Context, c *api.Client, name, body string) (out T, err error) {
	r := api.Routes[slices.IndexFunc(api.Routes, func(r api.Route) bool { return r.Name == name })]
	req, err := http.NewRequestWithContext(ctx, r.Method, "http://node"+r.Path, strings.NewReader(body))
	if err != nil {
		return out, err
	}
	resp, err := c.Transport().RoundTrip(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return out, json.NewDecoder(resp.Body).Decode(&out)
	}
	var e api.ErrorBody
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		return out, err
	}
	return out, api.ErrorOfClass(e.Error.Class, e.Error.Message)
}

// TestFresh: which routes a manager that has lost the others still answers a
// node, and that those which it does not share one look at the leader.
func TestFresh(t *testing.T) {
	fresh := []string{"content.get", "node.task.logs", "node.task.exec", "node.image.list", "node.image.load", "node.image.pull", "node.image.delete", "node.volume.size", "node.volume.export", "node.volume.import"}
	var cut atomic.Bool
	var looks atomic.Int32
	var now atomic.Pointer[time.Time]
	now.Store(ptr(time.Now()))
	gate := make(chan struct{})
	close(gate)
	w := quietWorld(t, func(c *Config) {
		c.Caller = func(*tls.ConnectionState) (Caller, bool) { return callers["manager"], true }
		c.Now = func() time.Time { return *now.Load() }
	})
	w.server.Proposer = proposer{w, func() error {
		looks.Add(1)
		<-gate
		if cut.Load() {
			return spec.Unavailablef("no leader")
		}
		return nil
	}}
	w.join("w", "m")
	admit := func(name string) error {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.TLS = &tls.ConnectionState{}
		_, err := w.server.remote(r, route(t, name))
		return err
	}
	pass := func(d time.Duration) { now.Store(ptr(now.Load().Add(d))) }
	members := []api.Rule{api.RuleNode, api.RuleManager, api.RuleRenew}

	for range 3 {
		for _, r := range api.Routes {
			if slices.Contains(members, r.Rule) {
				if err := admit(r.Name); err != nil {
					t.Errorf("%s: %v", r.Name, err)
				}
			}
		}
	}
	if n := looks.Load(); n != 1 {
		t.Errorf("%d looks at the leader within a second, want one", n)
	}
	cut.Store(true)
	if err := admit("node.task.exec"); err != nil {
		t.Errorf("right after the cut: %v", err)
	}
	pass(freshTime)
	for _, r := range api.Routes {
		err := admit(r.Name)
		if want := slices.Contains(fresh, r.Name); slices.Contains(members, r.Rule) && errors.Is(err, spec.ErrUnavailable) != want || want && err == nil {
			t.Errorf("%s at a manager that is cut off: %v", r.Name, err)
		}
	}

	// Many at a time make one look, and get its answer; then what was removed
	// meanwhile is refused.
	cut.Store(false)
	looks.Store(0)
	gate = make(chan struct{})
	results := make(chan error)
	for range 20 {
		go func() { results <- admit("node.task.exec") }()
	}
	for looks.Load() == 0 {
		runtime.Gosched()
	}
	w.must(store.Command{RemoveNode: &store.RemoveNode{ID: managerID, Force: true}})
	close(gate)
	for range 20 {
		if err := <-results; !errors.Is(err, api.ErrRemoved) {
			t.Errorf("a node that was removed meanwhile: %v", err)
		}
	}
}

// proposer is the world with another way to a current state.
type proposer struct {
	*world
	current func() error
}

func (p proposer) Linearizable(context.Context) error { return p.current() }

// TestRefusals: what a refusal says, and that it rests on a current state.
func TestRefusals(t *testing.T) {
	as := func(w *world, who, name string) error {
		w.server.Config.Caller = func(*tls.ConnectionState) (Caller, bool) { return callers[who], callers[who].Kind != "" }
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.TLS = &tls.ConnectionState{}
		_, err := w.server.remote(r, route(t, name))
		return err
	}
	says := func(err, class error, text string) {
		t.Helper()
		if !errors.Is(err, class) || err.Error() != text {
			t.Errorf("%v (%s), want %s", err, api.ErrorClass(err), text)
		}
	}
	w := newWorld(t)
	w.join("w", "m")
	says(as(w, "removed", "content.get"), api.ErrRemoved, "node cccccccccccccccc was removed from the cluster")
	says(as(w, "expired removed", "cluster.renew"), api.ErrRemoved, "node cccccccccccccccc was removed from the cluster")
	says(as(w, "nobody", "stack.list"), api.ErrForbidden, "stack.list: not allowed: it needs a certificate of this cluster")
	says(as(w, "expired worker", "content.get"), api.ErrForbidden, "content.get: not allowed: the certificate of node aaaaaaaaaaaaaaaa has expired; all it can do is renew it")
	says(as(w, "worker", "node.image.list"), api.ErrForbidden, "node.image.list: not allowed: it is for managers, and node aaaaaaaaaaaaaaaa is a worker")
	says(as(w, "worker", "stack.list"), api.ErrForbidden, "stack.list: not allowed: it is for the role operator, and aaaaaaaaaaaaaaaa is a node")
	says(as(w, "client", "node.leave"), api.ErrForbidden, "node.leave: not allowed: it can be asked on the host itself only")
	says(as(w, "other key", "content.get"), api.ErrForbidden, "content.get: not allowed: node bbbbbbbbbbbbbbbb has another key than that of the certificate")
	if len(w.cluster.seen) != 0 {
		t.Errorf("refused calls are signs of life of %v", w.cluster.seen)
	}
	if err := as(w, "worker", "content.get"); err != nil || !slices.Equal(w.cluster.seen, []spec.NodeID{workerID}) {
		t.Errorf("worker: %v, signs of life of %v", err, w.cluster.seen)
	}

	// A state that lags behind refuses nobody; without a leader it says so.
	w = newWorld(t)
	w.lost = spec.Unavailablef("no leader")
	says(as(w, "worker", "content.get"), spec.ErrUnavailable, "no leader")
	w.lost = nil
	w.catchUp = func() {
		w.index++
		w.store.Apply(w.index, store.Command{PutNode: &store.PutNode{ID: workerID, Name: "w1", Role: spec.RoleWorker, Address: "127.0.0.1:1"}})
	}
	if err := as(w, "worker", "content.get"); err != nil {
		t.Errorf("worker that joined just now: %v", err)
	}

	// A manager without a state yet can but believe the certificate.
	w.store = store.New()
	w.server.Store = w.store
	if err := as(w, "manager", "node.image.list"); err != nil {
		t.Errorf("manager, at one that has no state yet: %v", err)
	}
	if err := as(w, "new manager", "node.image.list"); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("worker, at a manager that has no state yet: %v", err)
	}
}

// TestRemote: over real TLS, each side of the API does its part.
func TestRemote(t *testing.T) {
	a := newAuthority(t)
	w, ctx := newWorld(t), t.Context()
	worker, manager, own := a.issue(string(workerID), "worker", time.Hour), a.issue(string(managerID), "manager", time.Hour), a.issue(string(testNode), "manager", time.Hour)
	w.join(fingerprint(worker.Leaf), fingerprint(manager.Leaf))
	addr := a.serveTLS(w.server.Remote(), own)

	op, err := api.NewTLSClient("https://"+addr, a.files(a.issue("me", "client", time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := op.Version(ctx); err != nil || v.Name != "host-1" || v.Role != spec.RoleManager {
		t.Errorf("version: %+v, %v", v, err)
	}
	if s, err := op.ClusterStatus(ctx); err != nil || s.Workers != 3 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if tok, err := op.Token(ctx, spec.RoleWorker, api.TokenRequest{Rotate: true, TTL: spec.Duration(time.Hour)}); err != nil || tok.Token != "WHERRY-1-worker-true-1h0m0s" {
		t.Errorf("token: %+v, %v", tok, err)
	}
	if _, err := op.Token(ctx, "king", api.TokenRequest{}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("token of a role that there is not: %v", err)
	}
	if c, err := op.ClientCertificate(ctx, "eve", api.ClientRequest{CSR: "-csr"}); err != nil || c.Certificate != "eve-csr" {
		t.Errorf("client: %+v, %v", c, err)
	}
	if err := op.RotateCA(ctx); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("rotate: %v", err)
	}
	var b strings.Builder
	if err := op.Backup(ctx, &b); err != nil || b.Len() != 1<<20 {
		t.Errorf("backup: %d bytes, %v", b.Len(), err)
	}
	w.cluster.half = true
	if err := op.Backup(ctx, io.Discard); err == nil {
		t.Error("half a backup counts as one")
	}
	if err := op.Leave(ctx, api.Leave{}); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("leave from elsewhere: %v", err)
	}
	if err := w.listen(api.RuleOperator, api.RuleLocal).Leave(ctx, api.Leave{Purge: true}); err != nil || w.host.left == nil || !w.host.left.Purge {
		t.Errorf("leave: %+v, %v", w.host.left, err)
	}

	node := a.member(addr, &worker)
	if err := node.Beat(ctx, workerID, api.Beat{Instance: "i1", Address: "10.0.0.1:4477"}); err != nil || !slices.Equal(w.cluster.beats, []string{"i1 10.0.0.1:4477 127.0.0.1"}) {
		t.Errorf("beat: %q, %v", w.cluster.beats, err)
	}
	if err := node.Report(ctx, spec.Report{Node: workerID, Info: &spec.NodeInfo{OS: "linux"}}); err != nil || w.store.Snapshot().Node(workerID).Info.OS != "linux" {
		t.Errorf("report: %v", err)
	}
	if err := node.Report(ctx, spec.Report{Node: managerID}); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("report in the name of another: %v", err)
	}
	if _, err := ask[api.List[api.Image]](ctx, node, "node.image.list", ""); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("images as worker: %v", err)
	}
	if r, err := ask[api.RenewReply](ctx, a.member(addr, ptr(a.issue(string(managerID), "manager", -time.Minute))), "cluster.renew", "{}"); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("renewal with another key: %+v, %v", r, err)
	}
	old := a.issue(string(workerID), "worker", -time.Minute)
	w.store.Apply(w.next(), store.Command{RemoveNode: &store.RemoveNode{ID: workerID, Force: true}})
	if _, err := node.Lease(ctx, workerID, "i1"); !errors.Is(err, api.ErrRemoved) {
		t.Errorf("lease of a node that was removed: %v", err)
	}
	w.join(fingerprint(old.Leaf), fingerprint(manager.Leaf))
	expired := a.member(addr, &old)
	if r, err := ask[api.RenewReply](ctx, expired, "cluster.renew", `{"csr": "csr"}`); err != nil || r.Certificate != "for csr" || w.cluster.renewed.ID != string(workerID) || !w.cluster.renewed.Expired {
		t.Errorf("renew: %+v as %+v, %v", r, w.cluster.renewed, err)
	}
	if _, err := expired.Lease(ctx, workerID, "i1"); !errors.Is(err, api.ErrForbidden) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("lease with an expired certificate: %v", err)
	}

	peer := a.member(addr, &manager)
	if f, err := ask[api.Forwarded](ctx, peer, "cluster.propose", "entry"); err != nil || f.Index != 7 || f.Error != "entry" {
		t.Errorf("forward: %+v, %v", f, err)
	}
	if _, err := ask[api.ReadIndex](ctx, peer, "cluster.read", ""); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("read index: %v", err)
	}
	if r, err := ask[api.AliveReply](ctx, peer, "cluster.alive", `{"nodes": [{"id": "aaaaaaaaaaaaaaaa", "age": "1s"}]}`); err != nil || len(r.Refused) != 1 || r.Refused[0].Age.D() != time.Second {
		t.Errorf("alive: %+v, %v", r, err)
	}
	if m, err := ask[api.MemberStatus](ctx, peer, "node.member", ""); err != nil || m.LeaderID != testNode {
		t.Errorf("member: %+v, %v", m, err)
	}
	req, err := http.NewRequestWithContext(ctx, "HEAD", "http://node/v2/web/manifests/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := peer.Transport().RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		t.Errorf("registry: %+v, %v", resp, err)
	}

	stranger := a.member(addr, nil)
	if _, err := stranger.Stacks(ctx); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("stacks without a certificate: %v", err)
	}
	join := func(body string) *http.Response {
		req, err := http.NewRequestWithContext(ctx, "POST", "http://node/v1/cluster/join", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := stranger.Transport().RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	if r := join(`{"name": "w2"}`); r.StatusCode != http.StatusOK || w.cluster.joined != "w2 at 127.0.0.1" {
		t.Errorf("join: %s of %s", r.Status, w.cluster.joined)
	}
	if r := join(`{"name": "` + strings.Repeat("x", maxStranger) + `"}`); r.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("join with a large body: %s", r.Status)
	}
}

// deadlines is an answer that notes until when the request may be read.
type deadlines struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.until = t; return nil }

// bodyFunc is a body that is what happens at its first read.
type bodyFunc func() string

func (f *bodyFunc) Read(b []byte) (int, error) {
	if *f == nil {
		return 0, io.EOF
	}
	n := copy(b, (*f)())
	*f = nil
	return n, nil
}

// TestJoinIsReadInTime: somebody unknown cannot take for ever to say what he
// wants, and is not sent away while he waits for the answer.
func TestJoinIsReadInTime(t *testing.T) {
	w := newWorld(t)
	d := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	begin := time.Now()
	body := bodyFunc(func() string {
		if left := d.until.Sub(begin); left < strangerTime || left > strangerTime+5*time.Second {
			t.Errorf("the body may come until %s after its begin", left)
		}
		return `{"name": "w2"}`
	})
	w.server.Remote().ServeHTTP(d, httptest.NewRequest("POST", "/v1/cluster/join", &body))
	if d.Code != http.StatusOK {
		t.Fatalf("%d: %s", d.Code, d.Body)
	}
	if left := d.until.Sub(begin); left < answerTime {
		t.Errorf("the answer may take %s", left)
	}
}

func ptr[T any](v T) *T { return &v }

// TestClientWords: what a person reads when a daemon elsewhere cannot be
// called.
func TestClientWords(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	w := newWorld(t)
	addr := a.serveTLS(w.server.Remote(), a.issue(string(testNode), "manager", time.Hour))
	good := a.issue("me", "client", time.Hour)
	foreign := a.files(b.issue("me", "client", time.Hour))
	wrongCA := a.files(good)
	wrongCA.CA = b.files(good).CA
	expired := a.files(a.issue("me", "client", -time.Minute))
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	early := a.issue("n", "worker", time.Hour)
	early.Certificate[0] = a.sign(&x509.Certificate{SerialNumber: big.NewInt(4), Subject: early.Leaf.Subject,
		NotBefore: time.Now().Add(24 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}, early.PrivateKey.(*ecdsa.PrivateKey)).Raw
	other := a.issue(string(testNode), "manager", time.Hour)
	other.Certificate[0] = a.sign(&x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{OrganizationalUnit: []string{"manager"}, Organization: []string{"d"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}, other.PrivateKey.(*ecdsa.PrivateKey)).Raw
	for _, c := range []struct {
		name, addr string
		files      api.TLSFiles
		class      error
		text       string
	}{
		{"right", addr, a.files(good), nil, ""},
		{"wrong CA", addr, wrongCA, api.ErrUnreachable, "comes from none of the roots"},
		{"foreign certificate", addr, foreign, api.ErrUnreachable, "does not accept the certificate"},
		{"expired certificate", addr, expired, api.ErrForbidden, "the certificate of client me has expired; make a new one"},
		{"impostor", a.serveTLS(w.server.Remote(), good), a.files(good), api.ErrUnreachable, "not that of a node"},
		{"expired node", a.serveTLS(w.server.Remote(), a.issue(string(testNode), "manager", -time.Minute)), a.files(good), nil, ""},
		{"node that expired long ago", a.serveTLS(w.server.Remote(), a.issue("n", "worker", -31*24*time.Hour)), a.files(good), api.ErrUnreachable, "is the clock of this host right?"},
		{"node of tomorrow", a.serveTLS(w.server.Remote(), early), a.files(good), api.ErrUnreachable, "is the clock of this host right?"},
		{"other cluster", a.serveTLS(w.server.Remote(), other), a.files(good), api.ErrUnreachable, "it is of the cluster d, and the certificate"},
		{"no TLS", plain.Listener.Addr().String(), a.files(good), api.ErrUnreachable, "does not speak TLS"},
		{"nobody", gone.Listener.Addr().String(), a.files(good), api.ErrUnreachable, "nothing listens there"},
	} {
		cl, err := api.NewTLSClient("https://"+c.addr, c.files)
		if err != nil {
			t.Fatal(err)
		}
		_, err = cl.Stacks(t.Context())
		if !errors.Is(err, c.class) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
		_, err = cl.Exec(t.Context(), "x", api.ExecRequest{Args: []string{"ls"}}, api.ExecIO{})
		if c.class == nil {
			c.class = spec.ErrNotFound
		}
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: exec: %v", c.name, err)
		}
	}
	for _, host := range []string{"https://", "https://h/path", "http://h", "h:1"} {
		if _, err := api.NewTLSClient(host, a.files(good)); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("host %q: %v", host, err)
		}
	}
	if _, err := api.NewClient("https://h"); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "ca client") {
		t.Errorf("https without a certificate: %v", err)
	}
}

// TestOtherNode: calls about what is on another node go there, through TLS.
func TestOtherNode(t *testing.T) {
	a := newAuthority(t)
	w, ctx := newWorld(t), t.Context()
	manager, worker := a.issue(string(testNode), "manager", time.Hour), a.issue(string(workerID), "worker", time.Hour)
	host := &fakeHost{name: "w1"}
	far, err := New(Config{Images: host, Tasks: w, Volumes: w, Network: host, Leaver: host, Doctor: doctored, Caller: identify, Node: workerID, Name: "w1",
		Managers: func() []api.Peer { return []api.Peer{{ID: testNode, Name: "host-1", Address: "10.0.0.1:4477"}} },
		Members:  func() []api.Peer { return []api.Peer{{ID: testNode}, {ID: workerID}} }})
	if err != nil {
		t.Fatal(err)
	}
	addr := a.serveTLS(far.Remote(), worker)
	w.must(store.Command{PutNode: &store.PutNode{ID: workerID, Name: "w1", Role: spec.RoleWorker, Address: addr}})
	w.others = map[spec.NodeID]http.RoundTripper{workerID: a.member(addr, &manager).Transport()}
	drained := spec.NodeDrain
	w.must(store.Command{SetNode: &store.SetNode{ID: testNode, Availability: &drained}})
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: nginx()}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if task := w.store.Snapshot().TasksOf("shop", "web")[0]; task.Node != workerID {
		t.Fatalf("task on %s", task.Node)
	}
	w.lines = []api.LogLine{{Stream: "stdout", Log: "far\n"}}
	var got string
	if err := w.client.Logs(ctx, "shop/web", api.LogOptions{Tail: -1}, func(l api.LogLine) error { got += l.Log; return nil }); err != nil || got != "far\n" {
		t.Errorf("logs %q, %v", got, err)
	}
	var out strings.Builder
	if code, err := w.client.Exec(ctx, "shop/web", api.ExecRequest{Args: []string{"cat"}, Stdin: true}, api.ExecIO{Stdin: strings.NewReader("hello"), Stdout: &out}); code != 0 || err != nil || out.String() != "hello" {
		t.Errorf("exec: %d %q %v", code, &out, err)
	}

	w.lost = spec.Unavailablef("no leader")
	if err := w.client.Logs(ctx, "shop/web", api.LogOptions{Tail: -1}, nil); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("logs without a leader: %v", err)
	}
	w.lost = nil

	// The same for a person elsewhere, who asks a manager over TLS.
	away, err := api.NewTLSClient("https://"+a.serveTLS(w.server.Remote(), manager), a.files(a.issue("me", "client", time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if code, err := away.Exec(ctx, "shop/web", api.ExecRequest{Args: []string{"cat"}, Stdin: true}, api.ExecIO{Stdin: strings.NewReader("hello"), Stdout: &out}); code != 0 || err != nil || out.String() != "hello" {
		t.Errorf("exec from elsewhere: %d %q %v", code, &out, err)
	}

	w.host.name = "host-1"
	at := w.client.At("w1")
	if l, err := at.Images(ctx); err != nil || l.Items[0].Name != "on w1" {
		t.Errorf("images: %+v, %v", l, err)
	}
	for _, name := range []string{"", "host-1", string(testNode)} {
		if l, err := w.client.At(name).Images(ctx); err != nil || l.Items[0].Name != "on host-1" {
			t.Errorf("images at %q: %+v, %v", name, l, err)
		}
	}
	big := strings.Repeat("0123456789", 100_000)
	if l, err := at.LoadImages(ctx, strings.NewReader(big)); err != nil || l.Items[0].Name != "loaded on w1" || host.image != big {
		t.Errorf("load: %+v of %d bytes, %v", l, len(host.image), err)
	}
	if i, err := at.PullImage(ctx, api.PullImage{Image: "x"}, nil); err != nil || i.Name != "x on w1" {
		t.Errorf("pull: %+v, %v", i, err)
	}
	if err := at.RemoveImage(ctx, "x"); !errors.Is(err, spec.ErrNotFound) || err.Error() != "image x is not on w1" {
		t.Errorf("remove: %v", err)
	}
	if _, err := w.client.At("w9").Images(ctx); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("images of a node that there is not: %v", err)
	}

	// It is a worker: for the rest it names the managers, and it obeys only them.
	op, err := api.NewTLSClient("https://"+addr, a.files(a.issue("me", "client", time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := op.Stacks(ctx); !errors.Is(err, api.ErrNotManager) || err.Error() != "node w1 is a worker; ask a manager: host-1 (--host https://10.0.0.1:4477)" {
		t.Errorf("stacks at a worker: %v", err)
	}
	if l, err := op.Images(ctx); err != nil || l.Items[0].Name != "on w1" {
		t.Errorf("images at a worker: %+v, %v", l, err)
	}
	if v, err := op.Version(ctx); err != nil || v.Role != spec.RoleWorker {
		t.Errorf("version of a worker: %+v, %v", v, err)
	}
	for id, want := range map[spec.NodeID]error{workerID: api.ErrForbidden, managerID: api.ErrForbidden} {
		if _, err := ask[api.List[api.Image]](ctx, a.member(addr, ptr(a.issue(string(id), "manager", time.Hour))), "node.image.list", ""); !errors.Is(err, want) {
			t.Errorf("%s as a manager: %v", id, err)
		}
	}

	// A node that is down or cut off answers in words.
	w.others[workerID] = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") })
	if _, err := at.Images(ctx); !errors.Is(err, spec.ErrUnavailable) || err.Error() != "node w1 does not answer at "+addr+": connection refused" {
		t.Errorf("images of a node that does not answer: %v", err)
	}
	w.must(store.Command{SetNodeState: &store.SetNodeState{ID: workerID, State: spec.NodeDown}})
	if _, err := at.Images(ctx); !errors.Is(err, spec.ErrUnavailable) || !strings.HasPrefix(err.Error(), "node w1 is down") {
		t.Errorf("images of a node that is down: %v", err)
	}
}

func TestUpdateNode(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.join("w", "m")
	drain, worker, blue := spec.NodeDrain, spec.RoleWorker, "blue"
	u := api.NodeUpdate{Availability: &drain, StopPinned: true, Role: &worker, Labels: map[string]*string{"zone": &blue}, RequestID: "r1"}
	first, err := w.client.UpdateNode(ctx, "m2", u)
	if err != nil || !first.Changed {
		t.Fatalf("update: %+v, %v", first, err)
	}
	n, err := w.client.Node(ctx, "m2")
	if err != nil || n.Availability != spec.NodeDrain || !n.StopPinned || n.Role != spec.RoleWorker || n.Labels["zone"] != "blue" {
		t.Errorf("node: %+v, %v", n, err)
	}
	// Its repeat answers the same, also when others have changed the node since.
	manager := spec.RoleManager
	if _, err := w.client.UpdateNode(ctx, string(managerID), api.NodeUpdate{Role: &manager, Labels: map[string]*string{"zone": nil}}); err != nil {
		t.Fatal(err)
	}
	if again, err := w.client.UpdateNode(ctx, "m2", u); err != nil || again != first {
		t.Errorf("repeat: %+v, %v; want %+v", again, err, first)
	}
	if n := w.store.Snapshot().Node(managerID); n.Role != spec.RoleManager || len(n.Labels) != 0 {
		t.Errorf("the repeat changed the node: %+v", n)
	}
	for _, bad := range []api.NodeUpdate{{}, {Labels: map[string]*string{"a b": &blue}}, {Availability: ptr(spec.Availability("up"))}, {RequestID: strings.Repeat("x", 200), Role: &worker}} {
		if _, err := w.client.UpdateNode(ctx, "m2", bad); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := w.client.UpdateNode(ctx, "m9", u); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("a node that there is not: %v", err)
	}

	if _, err := w.client.RemoveNode(ctx, "w1", false, "r2"); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("removal of a node that is ready: %v", err)
	}
	gone, err := w.client.RemoveNode(ctx, "w1", true, "r3")
	if err != nil || w.store.Snapshot().Node(workerID) != nil {
		t.Fatalf("removal: %+v, %v", gone, err)
	}
	if again, err := w.client.RemoveNode(ctx, "w1", true, "r3"); err != nil || again != gone {
		t.Errorf("repeat: %+v, %v; want %+v", again, err, gone)
	}
	if _, err := w.client.RemoveNode(ctx, "w1", true, "r4"); !errors.Is(err, spec.ErrNotFound) || !strings.Contains(err.Error(), "wherry node ls") {
		t.Errorf("removal of a node that there is not: %v", err)
	}
}

// TestContentLag: a manager that lags behind catches up before it says that it
// does not have a content.
func TestContentLag(t *testing.T) {
	w := newWorld(t)
	put := store.Command{PutContent: &store.PutContent{ID: "hmac:1", Size: 1, Data: []byte("x")}}
	w.catchUp = func() {
		w.index++
		w.store.Apply(w.index, put)
	}
	if b, err := w.node.Content(t.Context(), "hmac:1"); err != nil || string(b) != "x" {
		t.Errorf("content: %q, %v", b, err)
	}
	if _, err := w.node.Content(t.Context(), "hmac:2"); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("a content that there is not: %v", err)
	}
}

func TestLease(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	if l, err := w.node.Lease(ctx, testNode, "i1"); err != nil || l.For.D() != api.LeaseTime {
		t.Errorf("lease: %+v, %v", l, err)
	}
	if len(w.cluster.beats) != 1 || !strings.HasPrefix(w.cluster.beats[0], "i1 ") {
		t.Errorf("a lease is no sign of life: %q", w.cluster.beats)
	}
	if _, err := w.node.Lease(ctx, testNode, ""); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("lease of nobody: %v", err)
	}
	w.cluster.refused = "i2"
	if _, err := w.node.Lease(ctx, testNode, "i2"); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "identity") {
		t.Errorf("lease of a host that is refused: %v", err)
	}
	w.must(store.Command{SetNodeState: &store.SetNodeState{ID: testNode, State: spec.NodeDown}})
	if _, err := w.node.Lease(ctx, testNode, "i1"); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("lease of a node that is down: %v", err)
	}
	w.lost = spec.Unavailablef("no leader")
	if _, err := w.node.Lease(ctx, testNode, "i1"); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("lease without a leader: %v", err)
	}
}

// TestHearsay: a worker goes by what it was told last, and by the certificate
// only as long as it was told nothing.
func TestHearsay(t *testing.T) {
	managers := []api.Peer{{ID: testNode, Key: "t"}}
	members := append([]api.Peer{{ID: workerID, Key: "w"}, {ID: "dddddddddddddddd"}}, managers...)
	for _, c := range []struct {
		who             string
		caller          Caller
		told            bool
		node, asManager bool
	}{
		{"manager, told nothing", callers["manager"], false, true, true},
		{"worker, told nothing", callers["worker"], false, true, false},
		{"manager", Caller{Kind: CallerNode, ID: string(testNode), Role: spec.RoleManager, Key: "t"}, true, true, true},
		{"promoted worker", Caller{Kind: CallerNode, ID: string(testNode), Role: spec.RoleWorker, Key: "t"}, true, true, true},
		{"manager with another key", Caller{Kind: CallerNode, ID: string(testNode), Role: spec.RoleManager, Key: "x"}, true, false, false},
		{"worker with another key", Caller{Kind: CallerNode, ID: string(workerID), Role: spec.RoleWorker, Key: "x"}, true, false, false},
		{"worker whose key was not told", Caller{Kind: CallerNode, ID: "dddddddddddddddd", Role: spec.RoleManager, Key: "x"}, true, true, false},
		{"worker", callers["worker"], true, true, false},
		{"demoted manager", callers["false manager"], true, true, false},
		{"removed", callers["removed"], true, false, false},
	} {
		told := func(p []api.Peer) func() []api.Peer {
			return func() []api.Peer {
				if c.told {
					return p
				}
				return nil
			}
		}
		s := &Server{Config: Config{Managers: told(managers), Members: told(members)}}
		for name, want := range map[string]bool{"registry": c.node, "node.task.exec": c.asManager} {
			err := s.byTable(t.Context(), c.caller, route(t, name))
			if (err == nil) != want || err != nil && (!errors.Is(err, api.ErrForbidden) || errors.Is(err, api.ErrRemoved)) {
				t.Errorf("%s for %s: %v", name, c.who, err)
			}
		}
	}
}

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	day      = 24 * time.Hour
	bossID   = spec.NodeID("00000000000000a1")
	joinerID = spec.NodeID("00000000000000b1")
)

// office is a manager m1 that enrolls, on a state without Raft.
type office struct {
	testing.TB
	*enroller
	mu    sync.Mutex
	index uint64
	// refuse, unless nil, is what propose says instead of applying; it is set
	// while nobody asks.
	refuse func(store.Command) error
	// skew is added to the manager's clock, in nanoseconds.
	skew atomic.Int64
}

func newOffice(t testing.TB) *office { return newOfficeWith(t, 0) }

// newOfficeWith is of a cluster whose networks use another port.
func newOfficeWith(t testing.TB, vxlanPort uint16) *office {
	t.Helper()
	identity, err := ca.OpenIdentity(t.TempDir() + "/tls")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{TB: t}
	o.enroller = &enroller{
		self: bossID, identity: identity, store: store.New(),
		keys:    keyring{Gossip: bytes.Repeat([]byte{1}, keySize), Content: bytes.Repeat([]byte{2}, keySize), Data: bytes.Repeat([]byte{3}, keySize)},
		propose: o.apply, fresh: func(context.Context) error { return nil },
		limit: &limiter{}, now: func() time.Time { return time.Now().Add(time.Duration(o.skew.Load())) }, log: slog.New(slog.DiscardHandler),
	}
	o.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c1", Incarnation: 1, Format: store.Format, VXLANPort: vxlanPort}})
	o.must(store.Command{PutNode: &store.PutNode{ID: bossID, Name: "m1", Address: "127.0.0.1:4477", Role: spec.RoleManager, Key: identity.Key()}})
	if err := o.ensureAuthority(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.ownCertificates().renewNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *office) apply(_ context.Context, c store.Command) (store.Result, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refuse != nil {
		if err := o.refuse(c); err != nil {
			return store.Result{}, err
		}
	}
	if c.Time.IsZero() {
		c.Time = o.now().UTC()
	}
	b, err := store.Encode(c)
	if err != nil {
		return store.Result{}, err
	}
	if c, err = store.Decode(b); err != nil {
		return store.Result{}, err
	}
	o.index++
	return o.store.Apply(o.index, c), nil
}

func (o *office) must(c store.Command) {
	o.Helper()
	if res, err := o.apply(context.Background(), c); err != nil || res.Err != nil {
		o.Fatalf("%s: %v %v", c.Kind(), err, res.Err)
	}
}

func (o *office) tokenFor(role spec.NodeRole) string {
	o.Helper()
	t, err := o.token(context.Background(), role, api.TokenRequest{})
	if err != nil {
		o.Fatal(err)
	}
	return t.Token
}

// open serves join and renew as the API does, and returns the address.
func (o *office) open() string {
	return o.serve(o.identity.Server("http/1.1"))
}

func (o *office) serve(config *tls.Config) string {
	o.Helper()
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any, err error) {
		w.Header().Set("Date", o.now().UTC().Format(http.TimeFormat))
		if err != nil {
			var e api.ErrorBody
			e.Error.Class, e.Error.Message = api.ErrorClass(err), err.Error()
			w.WriteHeader(api.ErrorStatus(err))
			v = e
		}
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, r *http.Request) {
		answer(w, api.Version{Name: "m1"}, nil)
	})
	mux.HandleFunc("POST /v1/cluster/join", func(w http.ResponseWriter, r *http.Request) {
		var in api.JoinRequest
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			o.Error(err)
		}
		reply, err := o.join(r.Context(), in, r.RemoteAddr)
		answer(w, reply, err)
	})
	mux.HandleFunc("POST /v1/cluster/renew", func(w http.ResponseWriter, r *http.Request) {
		var in api.RenewRequest
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			o.Error(err)
		}
		caller, _ := ca.PeerOf(*r.TLS)
		reply, err := o.renew(r.Context(), caller, in)
		answer(w, reply, err)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		o.Fatal(err)
	}
	s := &http.Server{Handler: mux, TLSConfig: config, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	var served sync.WaitGroup
	served.Go(func() { s.Serve(tls.NewListener(l, config)) })
	o.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	return l.Addr().String()
}

// host is one that wants to join.
type host struct {
	testing.TB
	*ca.Identity
	self api.JoinRequest
	// skew of its clock.
	skew time.Duration
}

func newHost(t testing.TB, id spec.NodeID, name string) *host {
	t.Helper()
	identity, err := ca.OpenIdentity(t.TempDir() + "/tls")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{TB: t, Identity: identity, self: api.JoinRequest{
		Node: id, Name: name, Address: "127.0.0.1:4478", Version: "v1", Format: store.Format,
	}}
	identity.Now = func() time.Time { return time.Now().Add(h.skew) }
	return h
}

func (h *host) join(addr, token string) (api.JoinReply, error) {
	ctx, cancel := context.WithTimeout(h.Context(), 10*time.Second)
	defer cancel()
	return joinCluster(ctx, addr, token, h.Identity, h.self)
}

func (h *host) mustJoin(addr, token string) api.JoinReply {
	h.Helper()
	r, err := h.join(addr, token)
	if err != nil {
		h.Fatal(err)
	}
	if err := h.Install(r.Certificate, r.Roots); err != nil {
		h.Fatal(err)
	}
	return r
}

func wantError(t testing.TB, err, class error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", want)
	}
	if class != nil && !errors.Is(err, class) {
		t.Errorf("error %q is not of class %q", err, class)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestJoin(t *testing.T) {
	o := newOffice(t)
	addr := o.open()
	w := newHost(t, joinerID, "w1")
	r := w.mustJoin(addr, o.tokenFor(spec.RoleWorker))
	if r.ClusterID != "c1" || r.Role != spec.RoleWorker || !bytes.Equal(r.GossipKey, o.keys.Gossip) || r.DataKey != nil || r.ContentKey != nil {
		t.Errorf("a worker got %+v", r)
	}
	if want := []api.Peer{{ID: bossID, Name: "m1", Address: "127.0.0.1:4477"}}; !slices.Equal(r.Managers, want) {
		t.Errorf("managers %v", r.Managers)
	}
	n := o.store.Snapshot().Node(joinerID)
	if n == nil || n.Name != "w1" || n.Role != spec.RoleWorker || n.Key != w.Key() || n.Address != "127.0.0.1:4478" || n.State != spec.NodeReady {
		t.Errorf("the table of nodes has %+v", n)
	}
	if s := w.Subject(); s != (ca.Subject{Kind: ca.KindNode, ID: string(joinerID), Role: spec.RoleWorker, Cluster: "c1"}) {
		t.Errorf("certificate of %+v", s)
	}
	m := newHost(t, "00000000000000a2", "m2")
	r = m.mustJoin(addr, o.tokenFor(spec.RoleManager))
	if r.Role != spec.RoleManager || !bytes.Equal(r.DataKey, o.keys.Data) || !bytes.Equal(r.ContentKey, o.keys.Content) || len(r.Managers) != 2 {
		t.Errorf("a manager got %+v", r)
	}

	// The answer was lost: the same host asks again, perhaps with another
	// address by now.
	w.self.Address = "127.0.0.1:4479"
	w.mustJoin(addr, o.tokenFor(spec.RoleWorker))
	if n := o.store.Snapshot().Node(joinerID); n.Address != "127.0.0.1:4479" || n.Key != w.Key() || len(o.store.Snapshot().Nodes()) != 3 {
		t.Errorf("after a repeat the table has %+v", n)
	}
}

func TestJoinRefused(t *testing.T) {
	o := newOffice(t)
	addr := o.open()
	known := newHost(t, joinerID, "w1")
	known.mustJoin(addr, o.tokenFor(spec.RoleWorker))
	other := newOffice(t)
	worker, manager := o.tokenFor(spec.RoleWorker), o.tokenFor(spec.RoleManager)
	wrong := worker[:len(worker)-26] + ca.Secret([]byte("guess"), spec.RoleWorker, spec.JoinToken{})
	for _, c := range []struct {
		name   string
		token  string
		change func(*host)
		class  error
		want   string
	}{
		{"malformed token", "WHERRY-1-x", nil, spec.ErrInvalid, "the join token is malformed: its secret is missing; copy it whole"},
		{"wrong token", wrong, nil, spec.ErrInvalid, "the join token is wrong or was rotated: `wherry token worker` prints the present one on a manager"},
		{"another cluster's token", other.tokenFor(spec.RoleWorker), nil, spec.ErrInvalid,
			"join the cluster at " + addr + ": it is another cluster than that of the join token"},
		{"a day ahead", worker, func(h *host) { h.skew = day }, spec.ErrInvalid,
			"the clock of this host is 24h0m ahead of that of manager m1: set it, then join again|the clock of this host is 23h59m ahead of that of manager m1: set it, then join again"},
		{"a day behind", worker, func(h *host) { h.skew = -day }, spec.ErrInvalid,
			"the clock of this host is 24h0m behind that of manager m1: set it, then join again|the clock of this host is 23h59m behind that of manager m1: set it, then join again"},
		{"no clock at all", worker, func(h *host) { h.skew = -time.Since(time.Unix(0, 0)) }, spec.ErrInvalid, " days behind that of manager m1: set it, then join again"},
		{"another key", worker, func(h *host) { h.self.Node = joinerID }, spec.ErrConflict,
			"this host has the ID of node w1 at 127.0.0.1:4478, but another key: a data folder cannot be shared or copied. Start with an empty data folder"},
		{"a manager's ID", manager, func(h *host) { h.self.Node = bossID }, spec.ErrConflict, "this host has the ID of node m1"},
		{"name taken", worker, func(h *host) { h.self.Name = "w1" }, spec.ErrConflict,
			"the name w1 is taken by node " + string(joinerID) + " at 127.0.0.1:4478, which is ready: give this host another one with --name, or, if that node is gone for good, run `wherry node rm w1` on a manager first"},
		{"no name", worker, func(h *host) { h.self.Name = "" }, spec.ErrInvalid, "a node without a name"},
		{"bad ID", worker, func(h *host) { h.self.Node = "x" }, spec.ErrInvalid, `the node ID "x" is not 16 hex digits`},
		{"ID in capitals", worker, func(h *host) { h.self.Node = "00000000000000B2" }, spec.ErrInvalid, "is not 16 hex digits"},
		{"bad address", worker, func(h *host) { h.self.Address = "nowhere" }, spec.ErrInvalid, `this host advertises the address "nowhere", at which nobody can reach it: give it one with --advertise`},
		{"any address", worker, func(h *host) { h.self.Address = "0.0.0.0:4477" }, spec.ErrInvalid, "at which nobody can reach it"},
		{"port 0", worker, func(h *host) { h.self.Address = "127.0.0.1:0" }, spec.ErrInvalid, "at which nobody can reach it"},
		{"an old manager", manager, func(h *host) { h.self.Format = 1 }, spec.ErrInvalid, fmt.Sprintf("this host runs wherry v1, which knows the format 1 of the state, and the cluster uses %d: upgrade wherry on this host", store.Format)},
	} {
		t.Run(c.name, func(t *testing.T) {
			o.limit = &limiter{}
			h := newHost(t, "00000000000000b2", "w2")
			if c.change != nil {
				c.change(h)
			}
			before := len(o.store.Snapshot().Nodes())
			_, err := h.join(addr, c.token)
			one, two, _ := strings.Cut(c.want, "|")
			if err != nil && two != "" && strings.Contains(err.Error(), two) {
				one = two
			}
			wantError(t, err, c.class, one)
			if err != nil && strings.Contains(err.Error(), c.token) {
				t.Errorf("the error tells the token: %v", err)
			}
			if n := len(o.store.Snapshot().Nodes()); n != before {
				t.Errorf("there are %d nodes now, before %d", n, before)
			}
		})
	}
}

// TestJoinKnowsThePort: a host of a version that cannot be told the port of
// networks would be a part of them that nobody reaches.
func TestJoinKnowsThePort(t *testing.T) {
	for _, c := range []struct {
		port   uint16
		format int
		want   string
	}{
		{0, 3, ""},
		{4789, store.AddressFormat, ""},
		{4789, 3, "this host runs wherry v1, whose networks between hosts use UDP port 4478, and the cluster uses 4789: upgrade wherry on this host, then join again"},
	} {
		o := newOfficeWith(t, c.port)
		h := newHost(t, "00000000000000b2", "w2")
		h.self.Format = c.format
		_, err := h.join(o.open(), o.tokenFor(spec.RoleWorker))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("port %d, format %d: %v", c.port, c.format, err)
		}
	}
}

// TestSkewAtManager: who does not look at the manager's clock is told by it.
func TestSkewAtManager(t *testing.T) {
	now := time.Now()
	for skew, want := range map[time.Duration]string{
		-time.Hour: "", time.Hour: "", 0: "",
		time.Hour + time.Minute:     "the clock of this host is 1h1m ahead of that of manager m1: set it, then join again",
		day - time.Millisecond:      "the clock of this host is 23h59m ahead of that of manager m1: set it, then join again",
		-day:                        "the clock of this host is 24h0m behind that of manager m1: set it, then join again",
		-365*day - time.Millisecond: "the clock of this host is 365 days behind that of manager m1: set it, then join again",
	} {
		err := checkSkew(now.Add(skew), now, "manager m1")
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v, want %q", skew, err, want)
		}
	}
	o := newOffice(t)
	h := newHost(t, joinerID, "w1")
	r := h.self
	r.Token, r.CSR = o.tokenFor(spec.RoleWorker), request(t, h.Identity)
	_, err := o.join(t.Context(), r, "127.0.0.1:1")
	wantError(t, err, spec.ErrInvalid, "the request does not say what time it is")
	r.Time = now.Add(day)
	_, err = o.join(t.Context(), r, "127.0.0.1:1")
	wantError(t, err, spec.ErrInvalid, "h59m ahead of that of manager m1")
}

func request(t testing.TB, i *ca.Identity) string {
	t.Helper()
	csr, err := i.CSR()
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// TestLoopback: an address that only the host itself can use is refused with
// the cure, on either side.
func TestLoopback(t *testing.T) {
	o := newOffice(t)
	h := newHost(t, joinerID, "w1")
	r := h.self
	r.Token, r.CSR, r.Time = o.tokenFor(spec.RoleWorker), request(t, h.Identity), time.Now()
	_, err := o.join(t.Context(), r, "10.0.0.2:5000")
	wantError(t, err, spec.ErrInvalid, "this host advertises 127.0.0.1:4478, at which no other host reaches it", "--advertise IP[:PORT]")
	r.Address = "10.0.0.2:4477"
	_, err = o.join(t.Context(), r, "10.0.0.2:5000")
	wantError(t, err, spec.ErrInvalid, "manager m1 can be reached on its own host only, at 127.0.0.1:4477: start its daemon with --advertise IP, then join again")
	o.must(store.Command{PutNode: &store.PutNode{ID: bossID, Name: "m1", Address: "10.0.0.1:4477", Role: spec.RoleManager}})
	if _, err = o.join(t.Context(), r, "10.0.0.2:5000"); err != nil {
		t.Error(err)
	}
}

func TestOtherRole(t *testing.T) {
	o := newOffice(t)
	addr := o.open()
	h := newHost(t, joinerID, "w1")
	h.mustJoin(addr, o.tokenFor(spec.RoleWorker))
	_, err := h.join(addr, o.tokenFor(spec.RoleManager))
	wantError(t, err, spec.ErrConflict, "this host is node w1 already, a worker, and the join token is for a manager: run `wherry node promote w1` on a manager instead")
}

func TestTokens(t *testing.T) {
	o := newOffice(t)
	addr := o.open()
	ctx := t.Context()
	get := func(r api.TokenRequest) api.Token {
		t.Helper()
		tok, err := o.token(ctx, spec.RoleWorker, r)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	first := get(api.TokenRequest{})
	if again := get(api.TokenRequest{}); again.Token != first.Token || !again.Expires.IsZero() || !slices.Equal(again.Addresses, []string{"127.0.0.1:4477"}) {
		t.Errorf("asked again: %+v", again)
	}
	// Another manager prints the same one, from the state and the data key.
	second := *o.enroller
	second.self = "00000000000000a9"
	if tok, err := second.token(ctx, spec.RoleWorker, api.TokenRequest{}); err != nil || tok.Token != first.Token {
		t.Errorf("another manager: %+v, %v", tok, err)
	}
	if o.tokenFor(spec.RoleManager) == first.Token {
		t.Error("both roles have one token")
	}
	if state := o.store.Snapshot().Authority(); strings.Contains(string(state.Tokens[spec.RoleWorker].Hash), first.Token[len(first.Token)-26:]) {
		t.Error("the state holds the secret")
	}

	before := o.store.Snapshot().Authority().Tokens[spec.RoleWorker]
	rotated := get(api.TokenRequest{Rotate: true})
	// Who was a manager has the data key, and the state of then.
	guess := before
	guess.Generation++
	if strings.HasSuffix(rotated.Token, ca.Secret(o.keys.Data, spec.RoleWorker, guess)) {
		t.Error("a manager of the past can tell the new token")
	}
	h := newHost(t, joinerID, "w1")
	_, err := h.join(addr, first.Token)
	wantError(t, err, spec.ErrInvalid, "the join token is wrong or was rotated")
	h.mustJoin(addr, rotated.Token)

	short := get(api.TokenRequest{TTL: spec.Duration(time.Hour)})
	if left := time.Until(short.Expires); short.Token == rotated.Token || left > time.Hour || left < 59*time.Minute {
		t.Errorf("with a TTL: %+v", short)
	}
	if again := get(api.TokenRequest{}); again.Token != short.Token || !again.Expires.Equal(short.Expires) {
		t.Errorf("asked again: %+v, want %+v", again, short)
	}
	// 50 minutes later by the clocks of all, then at its end.
	late := newHost(t, "00000000000000b2", "w2")
	late.skew = 50 * time.Minute
	o.skew.Store(int64(late.skew))
	late.mustJoin(addr, short.Token)
	late.skew = time.Hour
	o.skew.Store(int64(late.skew))
	_, err = late.join(addr, short.Token)
	wantError(t, err, spec.ErrInvalid, "the join token expired at "+short.Expires.Format("2006-01-02 15:04:05Z"), "`wherry token worker --rotate` makes a new one on a manager")
	if fresh := get(api.TokenRequest{}); fresh.Token == short.Token || !fresh.Expires.IsZero() {
		t.Errorf("a token that has ended is printed: %+v", fresh)
	}

	_, err = o.token(ctx, "boss", api.TokenRequest{})
	wantError(t, err, spec.ErrInvalid, `for a manager or a worker, not for "boss"`)
	_, err = o.token(ctx, spec.RoleWorker, api.TokenRequest{TTL: -1})
	wantError(t, err, spec.ErrInvalid, "cannot end 1ns ago")
}

// TestTokenRace: two changes at one time are both made.
func TestTokenRace(t *testing.T) {
	o := newOffice(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := o.token(context.Background(), spec.RoleWorker, api.TokenRequest{Rotate: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if g := o.store.Snapshot().Authority().Tokens[spec.RoleWorker].Generation; g != 5 {
		t.Errorf("generation %d after 4 rotations of the first, want 5", g)
	}
}

// TestRateLimit: guesses are counted, honest attempts are not.
func TestRateLimit(t *testing.T) {
	o := newOffice(t)
	addr := o.open()
	good := o.tokenFor(spec.RoleWorker)
	wrong := good[:len(good)-26] + ca.Secret([]byte("guess"), spec.RoleWorker, spec.JoinToken{})
	h := newHost(t, joinerID, "w1")
	for range 20 {
		h.mustJoin(addr, good)
	}
	refused := 0
	for range 8 {
		_, err := h.join(addr, wrong)
		if errors.Is(err, spec.ErrUnavailable) {
			wantError(t, err, nil, "too many attempts to join from 127.0.0.1: try again in a second")
			refused++
		} else {
			wantError(t, err, spec.ErrInvalid, "wrong or was rotated")
		}
	}
	if refused < 1 || refused > 3 {
		t.Errorf("%d of 8 guesses went no further, want 3 or a little less", refused)
	}
	if _, err := h.join(addr, good); err != nil {
		t.Errorf("a good token after bad ones from the same address: %v", err)
	}
}

// TestGoodTokenPasses: whatever others send, who has a good token joins.
func TestGoodTokenPasses(t *testing.T) {
	o := newOffice(t)
	asked := 0
	o.fresh = func(context.Context) error { asked++; return nil }
	good := o.tokenFor(spec.RoleWorker)
	asked = 0
	guess := api.JoinRequest{Token: good[:len(good)-26] + ca.Secret([]byte("guess"), spec.RoleWorker, spec.JoinToken{})}
	flood := func() (err error) {
		for i := range 80 {
			for range 5 {
				_, err = o.join(t.Context(), guess, net.JoinHostPort(net.IPv4(127, 1, byte(i), 1).String(), "1"))
			}
		}
		return err
	}
	wantError(t, flood(), spec.ErrUnavailable, "too many attempts to join")
	if asked < burstAll || asked > burstAll+10*rateAll {
		t.Errorf("400 guesses asked the leader %d times, want %d or a little more", asked, burstAll)
	}
	h := newHost(t, joinerID, "w1")
	r := h.self
	r.Token, r.CSR, r.Time = good, request(t, h.Identity), time.Now()
	for range 10 {
		if _, err := o.join(t.Context(), r, "127.1.0.1:1"); err != nil {
			t.Fatal(err)
		}
	}

	// A token that this manager hears of only now is good and is not counted; one
	// of which it hears now that it was rotated is not good.
	o.limit = &limiter{}
	next := newToken(o.keys.Data, spec.RoleWorker, 2)
	o.fresh = func(ctx context.Context) error {
		_, err := o.change(ctx, func(a *spec.Authority) bool {
			a.Tokens[spec.RoleWorker] = next
			return true
		})
		return err
	}
	r.Token = good[:len(good)-26] + ca.Secret(o.keys.Data, spec.RoleWorker, next)
	if _, err := o.join(t.Context(), r, "127.1.0.1:1"); err != nil || o.limit.all.level != 0 {
		t.Errorf("a token of which the manager did not know: %v, level %v", err, o.limit.all.level)
	}
	next = newToken(o.keys.Data, spec.RoleWorker, 3)
	_, err := o.join(t.Context(), r, "127.1.0.1:1")
	wantError(t, err, spec.ErrInvalid, "the join token is wrong or was rotated")
}

func TestLimiter(t *testing.T) {
	now := time.Now()
	var l limiter
	guess := func(remote string) bool {
		_, err := l.take(remote, now)
		return err == nil
	}
	count := func(n int, remote string) (ok int) {
		for range n {
			if guess(remote) {
				ok++
			}
		}
		return ok
	}
	if n := count(10, "10.0.0.1:5"); n != 5 {
		t.Errorf("burst of %d, want 5", n)
	}
	if !guess("10.0.0.2:5") {
		t.Error("another address has to wait, too")
	}
	now = now.Add(2 * time.Second)
	if n := count(10, "10.0.0.1:77"); n != 2 {
		t.Errorf("%d after two seconds, want 2: the port does not count", n)
	}
	if n := count(10, "[::ffff:10.0.0.1]:5"); n != 0 {
		t.Errorf("%d for another spelling of the address", n)
	}
	now = now.Add(time.Minute)
	if n := count(4, "[fd00::1]:1") + count(4, "[fd00::2%eth0]:1"); n != 5 {
		t.Errorf("%d for one IPv6 network, want 5", n)
	}
	if n := count(10, "who knows"); n != 5 {
		t.Errorf("%d for an unknown address, want 5", n)
	}
	now = now.Add(time.Minute)
	total := 0
	for i := range 200 {
		if guess(net.JoinHostPort(net.IPv4(10, 1, byte(i), 1).String(), "1")) {
			total++
		}
	}
	if total != 50 {
		t.Errorf("%d for all together, want 50", total)
	}
	now = now.Add(time.Minute)
	for range 100 {
		refund, err := l.take("10.0.0.1:5", now)
		if err != nil {
			t.Fatal(err)
		}
		refund()
	}
	now = now.Add(-time.Hour) // the clock was set back
	if !guess("10.0.0.1:5") {
		t.Error("a clock that goes back shuts everybody out")
	}
	now = now.Add(2 * time.Hour)
	guess("10.0.0.9:1")
	if len(l.per) != 1 {
		t.Errorf("%d addresses are remembered", len(l.per))
	}
}

// TestManInTheMiddle: whoever is not of the cluster gets not one byte of the
// request.
func TestManInTheMiddle(t *testing.T) {
	o, mallory := newOffice(t), newOffice(t)
	token := o.tokenFor(spec.RoleWorker)
	var mu sync.Mutex
	var got bytes.Buffer
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, mallory.identity.Server("http/1.1"))
		b, _ := io.ReadAll(conn) // includes the handshake
		conn.Close()
		mu.Lock()
		defer mu.Unlock()
		got.Write(b)
	}()
	h := newHost(t, joinerID, "w1")
	_, err = h.join(l.Addr().String(), token)
	wantError(t, err, spec.ErrInvalid, "it is another cluster than that of the join token", "Nothing was sent")
	<-done
	mu.Lock()
	defer mu.Unlock()
	if got.Len() > 0 {
		t.Errorf("the man in the middle got %q", got.String())
	}
}

// TestExpiredManager: the token is not sent to a manager whose certificate has
// ended, for instance one whose key was stolen long ago.
func TestExpiredManager(t *testing.T) {
	o := newOffice(t)
	asked := false
	o.refuse = func(store.Command) error { asked = true; return nil }
	root, err := signer(o.store.Snapshot().Authority())
	if err != nil {
		t.Fatal(err)
	}
	s := ca.Subject{Kind: ca.KindNode, ID: string(bossID), Role: spec.RoleManager, Cluster: "c1"}
	chain, err := ca.Sign(root, request(t, o.identity), s, time.Now(), time.Second-time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.identity.Install(chain, root.Certificate); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, joinerID, "w1")
	_, err = h.join(o.open(), o.tokenFor(spec.RoleWorker))
	wantError(t, err, spec.ErrInvalid, "the certificate of node "+string(bossID)+" expired at")
	if asked {
		t.Error("it was asked nevertheless")
	}
}

func TestJoinUnreachable(t *testing.T) {
	o := newOffice(t)
	token := o.tokenFor(spec.RoleWorker)
	h := newHost(t, joinerID, "w1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = h.join(addr, token)
	wantError(t, err, spec.ErrUnavailable, "join the cluster at "+addr+": nobody answers there (", "connection refused", "is `wherry daemon` running on that manager")

	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.NotFoundHandler())
	_, err = h.join(l.Addr().String(), token)
	wantError(t, err, spec.ErrInvalid, "what answers there is not wherry")

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = joinCluster(ctx, silent.Addr().String(), token, h.Identity, h.self)
	wantError(t, err, spec.ErrUnavailable, "there is no secure connection")

	for _, addr := range []string{"", ":4477", "a b", "http://m1:4477", "m1:x", "m1:0", "m1:70000", "[fd00::1", "a:b:c", "u@m1"} {
		_, err := h.join(addr, token)
		wantError(t, err, spec.ErrInvalid, "want the address of a manager, HOST or HOST:PORT")
	}
	for addr, want := range map[string]string{
		"m1": "m1:4477", "10.0.0.1": "10.0.0.1:4477", "10.0.0.1:99": "10.0.0.1:99", " m1:1 ": "m1:1",
		"fd00::1": "[fd00::1]:4477", "[fd00::1]": "[fd00::1]:4477", "[fd00::1]:5": "[fd00::1]:5",
	} {
		if got, err := joinAddress(addr); err != nil || got != want {
			t.Errorf("%q: %q, %v", addr, got, err)
		}
	}
}

// TestJoinThroughWorker: a worker must not be told the token.
func TestJoinThroughWorker(t *testing.T) {
	o := newOffice(t)
	w := newHost(t, joinerID, "w1")
	w.mustJoin(o.open(), o.tokenFor(spec.RoleWorker))
	addr := o.serve(w.Server("http/1.1"))
	_, err := newHost(t, "00000000000000b2", "w2").join(addr, o.tokenFor(spec.RoleManager))
	wantError(t, err, spec.ErrInvalid, "node "+string(joinerID)+" is a worker: give the address of a manager")
}

// TestNoLeader: what may pass is told from what will not.
func TestNoLeader(t *testing.T) {
	o := newOffice(t)
	addr, token := o.open(), o.tokenFor(spec.RoleWorker)
	h := newHost(t, joinerID, "w1")
	o.refuse = func(store.Command) error { return spec.Unavailablef("the cluster has no leader now") }
	_, err := h.join(addr, token)
	wantError(t, err, spec.ErrUnavailable, "no leader now")
	o.refuse = nil
	o.fresh = func(context.Context) error { return spec.Unavailablef("no leader to ask") }
	for range 10 { // and it is no guess that counts
		_, err = h.join(addr, token)
		wantError(t, err, spec.ErrUnavailable, "no leader to ask")
	}
	o.fresh = func(context.Context) error { return nil }
	h.mustJoin(addr, token)

	empty := *o.enroller
	empty.store = store.New()
	_, err = empty.join(t.Context(), api.JoinRequest{Token: token}, "127.0.0.1:1")
	wantError(t, err, spec.ErrUnavailable, "no certificate authority yet")
	_, err = empty.token(t.Context(), spec.RoleWorker, api.TokenRequest{})
	wantError(t, err, spec.ErrUnavailable, "no certificate authority yet")
}

func renewAs(t testing.TB, i *ca.Identity, addr string) (api.RenewReply, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := tls.Dialer{Config: i.Client(nil, "http/1.1")}
		return d.DialContext(ctx, "tcp", addr)
	}}
	return renewOver(tr)(t.Context(), api.RenewRequest{CSR: request(t, i)})
}

func TestRenew(t *testing.T) {
	o := newOffice(t)
	addr := o.open()
	w := newHost(t, joinerID, "w1")
	w.mustJoin(addr, o.tokenFor(spec.RoleWorker))
	r, err := renewAs(t, w.Identity, addr)
	if err != nil || r.Role != spec.RoleWorker || r.DataKey != nil || !bytes.Equal(r.GossipKey, o.keys.Gossip) || len(r.Managers) != 1 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if err := w.Install(r.Certificate, r.Roots); err != nil {
		t.Fatal(err)
	}

	// Expired, but not for long.
	root, err := signer(o.store.Snapshot().Authority())
	if err != nil {
		t.Fatal(err)
	}
	reissue := func(i *ca.Identity, s ca.Subject, age time.Duration) {
		t.Helper()
		old, err := ca.NewRoot("c1", time.Now().Add(-100*day))
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.Sign(old, request(t, i), s, time.Now().Add(-age), ca.Life)
		if err != nil {
			t.Fatal(err)
		}
		roots := old.Certificate + root.Certificate
		if err := errors.Join(i.Install(chain, roots), o.identity.SetRoots(roots)); err != nil {
			t.Fatal(err)
		}
	}
	s := w.Subject()
	reissue(w.Identity, s, 59*day)
	if r, err = renewAs(t, w.Identity, addr); err != nil {
		t.Fatal(err)
	}
	if err := w.Install(r.Certificate, r.Roots); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(w.Leaf().NotAfter); left < 29*day || w.Issuer() != root.Hash {
		t.Errorf("renewed for %s, by %s", left, w.Issuer())
	}
	reissue(w.Identity, s, 61*day)
	_, err = renewAs(t, w.Identity, addr)
	wantError(t, err, spec.ErrUnavailable, "more than 30 days before the clock here", "it must join again")

	// The role is that of the table, and so are the keys.
	if err := w.Install(r.Certificate, r.Roots); err != nil {
		t.Fatal(err)
	}
	o.must(store.Command{SetRole: &store.SetRole{ID: joinerID, Role: spec.RoleManager}})
	if r, err = renewAs(t, w.Identity, addr); err != nil || r.Role != spec.RoleManager || !bytes.Equal(r.DataKey, o.keys.Data) || !bytes.Equal(r.ContentKey, o.keys.Content) {
		t.Errorf("after a promotion: %+v, %v", r, err)
	}
	if got, err := w.Check(r.Certificate, r.Roots); err != nil || got.Role != spec.RoleManager {
		t.Errorf("after a promotion: a certificate for %+v, %v", got, err)
	}

	// Removed: nothing any more.
	o.must(store.Command{RemoveNode: &store.RemoveNode{ID: joinerID, Force: true}})
	_, err = renewAs(t, w.Identity, addr)
	wantError(t, err, api.ErrRemoved, "node "+string(joinerID)+" was removed from the cluster")
}

func TestRenewRefused(t *testing.T) {
	o := newOffice(t)
	w, thief := newHost(t, joinerID, "w1"), newHost(t, joinerID, "w1")
	w.mustJoin(o.open(), o.tokenFor(spec.RoleWorker))
	caller := ca.Caller{Subject: w.Subject(), Key: w.Key()}
	ctx := t.Context()
	_, err := o.renew(ctx, caller, api.RenewRequest{CSR: request(t, thief.Identity)})
	wantError(t, err, spec.ErrConflict, "asks for a certificate for another key than its own")
	_, err = o.renew(ctx, ca.Caller{Subject: w.Subject(), Key: thief.Key()}, api.RenewRequest{CSR: request(t, thief.Identity)})
	wantError(t, err, api.ErrForbidden, "node w1 is known by another key")
	_, err = o.renew(ctx, caller, api.RenewRequest{CSR: "x"})
	wantError(t, err, spec.ErrInvalid, "read certificate request: it is not PEM")
	_, err = o.renew(ctx, ca.Caller{Subject: ca.Subject{Kind: ca.KindClient, ID: "ann", Cluster: "c1"}, Key: w.Key()}, api.RenewRequest{CSR: request(t, w.Identity)})
	wantError(t, err, api.ErrForbidden, "client ann cannot renew")
	_, err = o.renew(ctx, ca.Caller{}, api.RenewRequest{CSR: request(t, w.Identity)})
	wantError(t, err, api.ErrForbidden)
	o.fresh = func(context.Context) error { return spec.Unavailablef("no leader to ask") }
	_, err = o.renew(ctx, caller, api.RenewRequest{CSR: request(t, w.Identity)})
	wantError(t, err, spec.ErrUnavailable, "no leader to ask")
	// A manager renews for itself with nobody's help.
	if _, err := o.renewOwn(ctx, api.RenewRequest{CSR: request(t, o.identity)}); err != nil {
		t.Error(err)
	}
}

func TestClient(t *testing.T) {
	o := newOffice(t)
	ann, err := ca.OpenIdentity(t.TempDir() + "/tls")
	if err != nil {
		t.Fatal(err)
	}
	csr := request(t, ann)
	ctx := t.Context()
	certs, err := o.client(ctx, "ann@office", api.ClientRequest{CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	if err := ann.Install(certs.Certificate, certs.Roots); err != nil {
		t.Fatal(err)
	}
	d := tls.Dialer{Config: ann.Client(nil, "http/1.1")}
	conn, err := d.DialContext(ctx, "tcp", o.open())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for _, name := range []string{"", "a b", "-a", "a-", "ann/bob", "ann\n", strings.Repeat("a", 64), "ä"} {
		_, err := o.client(ctx, name, api.ClientRequest{CSR: csr})
		wantError(t, err, spec.ErrInvalid, "want a name of at most 63 letters")
	}
	for _, ttl := range []time.Duration{-1, 1, 59 * time.Second, 367 * day} {
		_, err := o.client(ctx, "ann", api.ClientRequest{CSR: csr, TTL: spec.Duration(ttl)})
		wantError(t, err, spec.ErrInvalid, "want 1m to 366 days")
	}
	_, err = o.client(ctx, "ann", api.ClientRequest{CSR: "x"})
	wantError(t, err, spec.ErrInvalid, "it is not PEM")

	// A manager that is behind signs with the root of now.
	root, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o.fresh = func(ctx context.Context) error {
		_, err := o.change(ctx, func(a *spec.Authority) bool {
			a.Roots, a.Signer = append(a.Roots, root), root.Hash
			return true
		})
		return err
	}
	if certs, err = o.client(ctx, "ann", api.ClientRequest{CSR: csr}); err != nil {
		t.Fatal(err)
	}
	if err := ann.Install(certs.Certificate, certs.Roots); err != nil || ann.Issuer() != root.Hash {
		t.Errorf("signed with %s, want %s (%v)", ann.Issuer(), root.Hash, err)
	}
	o.fresh = func(context.Context) error { return spec.Unavailablef("no leader to ask") }
	_, err = o.client(ctx, "ann", api.ClientRequest{CSR: csr})
	wantError(t, err, spec.ErrUnavailable, "no leader to ask")
}

// TestKeysOnTheWay: an answer that does not hold what the role needs is not
// taken for one.
func TestKeysOnTheWay(t *testing.T) {
	k := bytes.Repeat([]byte{1}, keySize)
	for _, c := range []struct {
		role                  spec.NodeRole
		gossip, content, data []byte
		ok                    bool
	}{
		{spec.RoleManager, k, k, k, true}, {spec.RoleWorker, k, nil, nil, true},
		{spec.RoleManager, k, k, nil, false}, {spec.RoleManager, k, nil, nil, false}, {spec.RoleManager, nil, k, k, false},
		{spec.RoleWorker, nil, nil, nil, false}, {spec.RoleWorker, k, k, k, false}, {spec.RoleWorker, k[:16], nil, nil, false},
	} {
		if err := checkKeys(c.role, c.gossip, c.content, c.data); (err == nil) != c.ok {
			t.Errorf("%s %d %d %d: %v", c.role, len(c.gossip), len(c.content), len(c.data), err)
		}
	}
}

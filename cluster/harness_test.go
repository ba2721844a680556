package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// routes are the routes that members need of each other, as package api/server
// has them.
func routes(m *Member) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, role spec.NodeRole, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if m.port == nil {
				http.Error(w, "", http.StatusNotFound)
				return
			}
			err := error(nil)
			if c, ok := callerOf(m, r.TLS); role != "" && !ok {
				err = api.Errorf(api.ErrForbidden, "no certificate")
			} else if role == spec.RoleManager && c.Role != role {
				err = api.Errorf(api.ErrForbidden, "%s is a %s", c.ID, c.Role)
			}
			var out any
			if err == nil {
				out, err = f(r)
			}
			if err != nil {
				var e api.ErrorBody
				e.Error.Class, e.Error.Message = api.ErrorClass(err), err.Error()
				w.WriteHeader(api.ErrorStatus(err))
				json.NewEncoder(w).Encode(e)
				return
			}
			json.NewEncoder(w).Encode(out)
		})
	}
	in := func(r *http.Request, v any) error { return json.NewDecoder(r.Body).Decode(v) }
	handle("GET /v1/version", "", func(*http.Request) (any, error) { return api.Version{}, nil })
	handle("POST /v1/cluster/join", "", func(r *http.Request) (any, error) {
		var j api.JoinRequest
		if err := in(r, &j); err != nil {
			return nil, err
		}
		return m.Join(r.Context(), j, r.RemoteAddr)
	})
	handle("POST /v1/cluster/renew", spec.RoleWorker, func(r *http.Request) (any, error) {
		if m.Role() != spec.RoleManager {
			return nil, api.Errorf(api.ErrNotManager, "this node is a worker")
		}
		var j api.RenewRequest
		if err := in(r, &j); err != nil {
			return nil, err
		}
		c, _ := callerOf(m, r.TLS)
		return m.Renew(r.Context(), c, j)
	})
	handle("POST /v1/cluster/propose", spec.RoleManager, func(r *http.Request) (any, error) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		return m.Forward(r.Context(), b)
	})
	handle("POST /v1/cluster/read-index", spec.RoleManager, func(r *http.Request) (any, error) { return m.ReadIndex(r.Context()) })
	handle("POST /v1/cluster/alive", spec.RoleManager, func(r *http.Request) (any, error) {
		var a api.Alive
		if err := in(r, &a); err != nil {
			return nil, err
		}
		return m.Alive(a), nil
	})
	handle("GET /v1/node/member", spec.RoleWorker, func(*http.Request) (any, error) { return m.MemberStatus(), nil })
	return mux
}

// callerOf returns who is at the other end of a connection of m; false without a
// certificate of this cluster. Its role is the one that counts: on a manager
// that of the table of nodes, on a worker that of the last word of a session.
// The role of a node that is not in the table (any more) is empty.
func callerOf(m *Member, cs *tls.ConnectionState) (ca.Caller, bool) {
	if cs == nil || m.identity == nil {
		return ca.Caller{}, false
	}
	c, ok := ca.PeerOf(*cs)
	if !ok || c.Kind != ca.KindNode {
		return c, ok
	}
	id := spec.NodeID(c.ID)
	if m.role == spec.RoleManager {
		s := m.store.Snapshot()
		n := s.Node(id)
		switch {
		case s.ClusterID() == "":
			// A manager that has just joined has no state yet, and gets it only
			// after others have asked it how it is.
		case n == nil:
			c.Role = ""
		case n.Key != "" && n.Key != c.Key:
			return ca.Caller{}, false
		default:
			c.Role = n.Role
		}
		return c, true
	}
	// A worker that was told nothing yet believes the certificate.
	if info, ok := m.dir.cluster(); ok {
		c.Role = spec.RoleWorker
		for _, p := range info.Managers {
			if p.ID == id {
				c.Role = spec.RoleManager
			}
		}
	}
	return c, true
}

// many are the members of a cluster that a test starts and stops.
type many struct {
	t    *testing.T
	dirs map[string]string
	live map[string]*running
	// at are the addresses of those that have run before.
	at map[string]string
	// heartbeat of all.
	heartbeat time.Duration
	opened    func(name string, m *Member) // unless nil, is called before Run
	lead      func(ctx context.Context, epoch uint64) error
}

func newMany(t *testing.T) *many {
	return &many{t: t, dirs: map[string]string{}, live: map[string]*running{}, at: map[string]string{}, heartbeat: 120 * time.Millisecond}
}

func (y *many) config(name string) Config {
	dir := y.dirs[name]
	if dir == "" {
		dir = filepath.Join(y.t.TempDir(), name)
		y.dirs[name] = dir
	}
	c := testConfig(dir)
	c.NodeName, c.Listen, c.Advertise, c.Heartbeat, c.Lead = name, "127.0.0.1:0", "127.0.0.1", y.heartbeat, y.lead
	if at := y.at[name]; at != "" {
		c.Listen, c.Advertise = at, at
	}
	if testing.Verbose() && os.Getenv("WHERRY_TEST_LOG") != "" {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("n", name)
	}
	return c
}

// run opens and runs a member.
func (y *many) run(name string, c Config) *running {
	y.t.Helper()
	m := mustOpen(y.t, c)
	m.Serve(routes(m))
	if y.opened != nil {
		y.opened(name, m)
	}
	r := run(y.t, m)
	y.live[name], y.at[name] = r, m.Address()
	return r
}

// first starts the first manager.
func (y *many) first(name string) *running {
	y.t.Helper()
	r := y.run(name, y.config(name))
	r.await(r.Ready(), "ready")
	r.until("the certificate", r.identity.Has)
	return r
}

func (y *many) token(role spec.NodeRole) string {
	y.t.Helper()
	t, err := y.any().Token(y.t.Context(), role, api.TokenRequest{})
	if err != nil {
		y.t.Fatal(err)
	}
	return t.Token
}

// any is any manager that runs.
func (y *many) any() *running {
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range y.live {
			if !yield(n) {
				return
			}
		}
	}) {
		if r := y.live[name]; r.Role() == spec.RoleManager {
			return r
		}
	}
	y.t.Fatal("no manager runs")
	return nil
}

// join starts a host that joins through a manager.
func (y *many) join(name string, role spec.NodeRole) *running {
	y.t.Helper()
	c := y.config(name)
	c.Join = &Join{Addr: y.any().Address(), Token: y.token(role)}
	r := y.run(name, c)
	r.await(r.Ready(), "ready")
	return r
}

// three starts managers a, b and c, all of them voters.
func three(t *testing.T) *many {
	t.Helper()
	y := newMany(t)
	y.first("a")
	y.join("b", spec.RoleManager)
	y.join("c", spec.RoleManager)
	y.voters(3)
	return y
}

// voters waits until every manager that runs says that there are n voters.
func (y *many) voters(n int) {
	y.t.Helper()
	for _, r := range y.live {
		if r.Role() == spec.RoleManager {
			r.until(fmt.Sprint(n, " voters"), func() bool { s := r.Status(); return len(s.Voters) == n && len(s.NonVoters) == 0 })
		}
	}
}

// stop ends a member; what it returned is checked.
func (y *many) stop(name string) {
	y.t.Helper()
	if err := y.live[name].end(); err != nil {
		y.t.Errorf("member %s ended: %v", name, err)
	}
	delete(y.live, name)
}

// leader waits until one member leads, and returns its name.
func (y *many) leader() string {
	y.t.Helper()
	found := ""
	y.any().until("a leader", func() bool {
		found = ""
		for name, r := range y.live {
			if r.Role() == spec.RoleManager && r.Status().Leader {
				if found != "" {
					return false
				}
				found = name
			}
		}
		return found != ""
	})
	return found
}

// write sets a label of node a through a member and returns the command's
// index.
func (y *many) write(r *running, key, value string) uint64 {
	y.t.Helper()
	res, err := r.Propose(y.t.Context(), store.Command{RequestID: key + value, SetNode: &store.SetNode{ID: y.node("a"), Labels: map[string]*string{key: &value}}})
	if err = errors.Join(err, res.Err); err != nil {
		y.t.Fatalf("write %s=%s through %s: %v", key, value, r.Name(), err)
	}
	return res.Index
}

func (y *many) node(name string) spec.NodeID {
	for _, n := range y.any().Store().Snapshot().Nodes() {
		if n.Name == name {
			return n.ID
		}
	}
	return ""
}

func (y *many) label(r *running, key string) string {
	for _, n := range r.Store().Snapshot().Nodes() {
		if n.Name == "a" {
			return n.Labels[key]
		}
	}
	return ""
}

func (y *many) setRole(name string, role spec.NodeRole) {
	y.t.Helper()
	res, err := y.any().Propose(y.t.Context(), store.Command{RequestID: fmt.Sprint(name, role, time.Now()), SetRole: &store.SetRole{ID: y.node(name), Role: role}})
	if err = errors.Join(err, res.Err); err != nil {
		y.t.Fatal(err)
	}
}

// tellCertificates reports what each node trusts, as its agent would, and tells
// workers what the cluster wants, until the authority is as it should be.
func (y *many) tellCertificates(done func(*spec.Authority) bool) {
	y.t.Helper()
	boss := y.any()
	boss.until("the exchange of the authority", func() bool {
		for _, r := range y.live {
			if r.Role() == spec.RoleWorker {
				r.SetCluster(boss.enroll.own())
			}
			info := spec.NodeInfo{Format: store.Format, Issuer: r.identity.Issuer(), Trusts: strings.Join(r.identity.Trusts(), ",")}
			if n := boss.Store().Snapshot().Node(r.Node()); n != nil && n.Info == info {
				continue
			}
			if _, err := boss.Propose(y.t.Context(), store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: r.Node(), Info: &info}}}}); err != nil {
				y.t.Fatal(err)
			}
		}
		return done(boss.Store().Snapshot().Authority())
	})
}

package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// runWorker is Run without Raft and without a state.
func (m *Member) runWorker(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	m.runPort(work, &loops)
	loops.Go(func() { m.followRole(work) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-m.ended:
	}
	stop()
	loops.Wait()
	m.halt.stop(errEnded)
	return errors.Join(err, m.release())
}

// end makes Run return.
func (m *Member) end(why error) {
	select {
	case m.ended <- why:
	default: // another reason was first
	}
}

// followRole ends a worker that is to be a manager, once it has what a manager
// needs.
func (m *Member) followRole(ctx context.Context) {
	for ctx.Err() == nil {
		told := m.told.wait()
		if info, ok := m.dir.cluster(); ok && info.Role == spec.RoleManager {
			m.changeRole(ctx)
			if !wait(ctx, roleRetry) {
				return
			}
			continue
		}
		select {
		case <-told:
		case <-ctx.Done():
		}
	}
}

const roleRetry = 250 * time.Millisecond

// changeRole asks another manager which role this node has, takes it over when
// it is not the present one, and makes Run return then.
func (m *Member) changeRole(ctx context.Context) {
	csr, err := m.identity.CSR()
	if err != nil {
		m.log.Error("take over the new role", "err", err)
		return
	}
	r, err := renewOver(m.managers)(ctx, api.RenewRequest{CSR: csr})
	switch {
	case errors.Is(err, api.ErrRemoved):
		m.log.Error("this node was removed from the cluster")
		m.end(ErrRemoved)
	case err != nil && ctx.Err() == nil:
		m.log.Info("ask for the new role, will try again", "err", err)
	case err != nil || r.Role == m.role:
	default:
		if err := m.adopt(r); err != nil {
			m.log.Error("take over the new role, will try again", "role", r.Role, "err", err)
			return
		}
		m.log.Info("this node has another role from now on", "was", m.role, "is", r.Role)
		m.end(ErrRoleChanged)
	}
}

// adopt writes what comes with a role: first the keys, which decide what the
// next Open makes of the folder, then the certificate.
func (m *Member) adopt(r api.RenewReply) error {
	if err := m.identity.Follows(r.Certificate); err != nil {
		return err
	}
	if err := m.keepKeys(r); err != nil {
		return err
	}
	return m.identity.Install(r.Certificate, r.Roots)
}

// keepKeys stores the keys of a role that differs from the present one.
func (m *Member) keepKeys(r api.RenewReply) error {
	if r.Role == m.role {
		return nil
	}
	k := keyring{Gossip: r.GossipKey, Joined: true}
	if r.Role == spec.RoleManager {
		k.Content, k.Data = r.ContentKey, r.DataKey
	}
	return writeKeyring(m.c.DataDir, k)
}

// SetCluster tells what the node's session said of the cluster.
func (m *Member) SetCluster(info api.ClusterInfo) {
	if m.port == nil {
		return
	}
	m.dir.setCluster(info)
	m.told.ring()
}

// Manager returns a worker's way to a manager. It sticks to one, and takes
// another, after a short pause by chance, when that one fails.
func (m *Member) Manager() http.RoundTripper {
	if m.managers == nil {
		return noWay{}
	}
	return m.managers
}

// noWay is the way of a member without a port.
type noWay struct{}

func (noWay) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, spec.Unavailablef("this member has no way to others")
}

// managers is a way to some manager other than this node.
type managers struct {
	m *Member

	mu  sync.Mutex
	now spec.NodeID // the one that is asked; empty is none yet
	// failed says when nodes did not do what was asked of them.
	failed map[spec.NodeID]time.Time
}

const (
	// The pause before another manager is asked.
	minPause, maxPause = 50 * time.Millisecond, 300 * time.Millisecond
	// shunTime is how long a manager that has failed is asked after the others.
	shunTime = 30 * time.Second
	// passTime is how long a manager may take to be connected to while there are
	// others: those whose hosts are gone say nothing, and a session that has to
	// get past several must not take longer than it may be silent.
	passTime = 500 * time.Millisecond
)

// RoundTrip sends the request to the manager that answered last, or to another
// when nobody answers there or when it cannot do anything now, since it may be
// cut off from the others. A request whose body cannot be read again goes to
// one only; the next request goes to another then.
func (w *managers) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	ids, known := w.candidates()
	var failed error
	var unable *http.Response
	for i := 0; i < len(ids); i++ {
		ids = w.prefer(ids, i)
		id := ids[i]
		if i > 0 {
			// Whoever knows managers that answer need not look for others.
			if unable != nil && !slices.Contains(known, id) || !again(r) || !wait(ctx, minPause+rand.N(maxPause-minPause)) {
				break
			}
			if r.GetBody != nil {
				body, err := r.GetBody()
				if err != nil {
					return nil, err
				}
				r = r.Clone(ctx)
				r.Body = body
			}
		}
		// Only the last one gets all the time that a dial may take.
		resp, err := w.m.port.transport(id).roundTripWithin(r, i < len(ids)-1 && again(r))
		switch {
		case err != nil:
			w.fail(id)
			failed = err
		case !fromManager(resp):
			resp.Body.Close()
			w.fail(id)
			failed = spec.Unavailablef("node %s is not a manager by its certificate", id)
		case resp.StatusCode == http.StatusMisdirectedRequest: // it is none (any more)
			resp.Body.Close()
			w.fail(id)
			failed = spec.Unavailablef("node %s is not a manager", id)
		case resp.StatusCode == http.StatusServiceUnavailable:
			w.fail(id)
			b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
			resp.Body.Close()
			if err != nil {
				failed = err
				break
			}
			resp.Body = io.NopCloser(bytes.NewReader(b))
			unable = resp
		default:
			w.stick(id)
			if resp.StatusCode != http.StatusSwitchingProtocols {
				resp.Body = &answer{resp.Body, ctx, func() { w.fail(id) }}
			}
			return resp, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	switch {
	case unable != nil:
		return unable, nil
	case failed != nil:
		return nil, failed
	}
	if r.Body != nil {
		r.Body.Close()
	}
	return nil, spec.Unavailablef("no manager of the cluster is known: start with --peer ADDR of one")
}

// fromManager reports whether an answer comes from a node that the cluster's
// authority has called a manager. What this way brings is obeyed, and where no
// manager is known any node is asked.
func fromManager(resp *http.Response) bool {
	if resp.TLS == nil {
		return false
	}
	c, ok := ca.PeerOf(*resp.TLS)
	return ok && c.Kind == ca.KindNode && c.Role == spec.RoleManager
}

// again reports whether a request can be sent a second time.
func again(r *http.Request) bool {
	return r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
}

// answer is the body of an answer. One that breaks off is as bad as none: the
// manager may be frozen, and would let the next request wait.
type answer struct {
	io.ReadCloser
	ctx   context.Context
	broke func()
}

func (a *answer) Read(b []byte) (int, error) {
	n, err := a.ReadCloser.Read(b)
	if err != nil && err != io.EOF && !errors.Is(a.ctx.Err(), context.Canceled) {
		a.broke()
	}
	return n, err
}

// prefer puts the manager that has answered another request meanwhile at place
// i, unless it was asked before.
func (w *managers) prefer(ids []spec.NodeID, i int) []spec.NodeID {
	w.mu.Lock()
	now := w.now
	w.mu.Unlock()
	if now == "" || slices.Contains(ids[:i], now) {
		return ids
	}
	rest := slices.DeleteFunc(slices.Clone(ids[i:]), func(id spec.NodeID) bool { return id == now })
	return append(append(ids[:i:i], now), rest...)
}

func (w *managers) stick(id spec.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = id
	delete(w.failed, id)
}

// fail makes the next request go to another manager.
func (w *managers) fail(id spec.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now == id {
		w.now = ""
	}
	if w.failed == nil {
		w.failed = map[spec.NodeID]time.Time{}
	}
	w.failed[id] = time.Now()
}

// candidates are the nodes to try: the one that answered last, then the
// managers, then nodes of which it is not known what they are, each by chance;
// those that have just failed come last. known are the managers among them.
func (w *managers) candidates() (ids, known []spec.NodeID) {
	if w.m.role == spec.RoleManager {
		known = managersOf(w.m.store.Snapshot().Nodes())
	}
	if info, ok := w.m.dir.cluster(); ok && len(known) == 0 {
		for _, p := range info.Managers {
			known = append(known, p.ID)
		}
	}
	var others []spec.NodeID
	for _, id := range w.m.dir.ids() {
		if !slices.Contains(known, id) {
			others = append(others, id)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.failed, func(_ spec.NodeID, at time.Time) bool { return time.Since(at) > shunTime })
	for _, some := range [][]spec.NodeID{known, others} {
		rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		ids = append(ids, some...)
	}
	// Managers that are known and gone must not hide the one that took their place.
	slices.SortStableFunc(ids, func(a, b spec.NodeID) int { return w.failed[a].Compare(w.failed[b]) })
	ids = slices.DeleteFunc(ids, func(id spec.NodeID) bool { return id == w.m.id })
	if i := slices.Index(ids, w.now); i > 0 {
		ids = slices.Insert(slices.Delete(ids, i, i+1), 0, w.now)
	}
	return ids, known
}

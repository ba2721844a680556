package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

const (
	// sendInterval is the least time between two rounds of documents.
	sendInterval = 50 * time.Millisecond
	// lookInterval is the least time between two looks at the state, of which
	// the first found nothing new for the node.
	lookInterval = 2 * time.Millisecond
	// aliveInterval is the longest silence of a session.
	aliveInterval = time.Second
)

// Sessions are the lives of nodes.
type Sessions interface {
	// Beat is a sign of life of one life of a node's daemon; remote is where
	// it comes from, "IP:port", or "" or "@" for a socket of this host. An error
	// of class spec.ErrConflict says that another instance is alive.
	Beat(ctx context.Context, n spec.NodeID, b api.Beat, remote string) error
	// Seen is a sign of life of a node by any other call.
	Seen(n spec.NodeID)
	// Alive takes what another manager knows of the nodes' lives.
	Alive(a api.Alive) api.AliveReply
}

// watches are the open sessions, so that those of a refused instance can be
// ended.
type watches struct {
	mu   sync.Mutex
	open map[*watch]struct{}
}

type watch struct {
	node     spec.NodeID
	instance string
	end      context.CancelFunc
}

func (o *watches) add(n *watch) (remove func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open == nil {
		o.open = map[*watch]struct{}{}
	}
	o.open[n] = struct{}{}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.open, n)
	}
}

func (o *watches) end(node spec.NodeID, instance string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := range o.open {
		if n.node == node && n.instance == instance {
			n.end()
		}
	}
}

// beat passes a sign of life on, and ends the sessions of an instance that is
// refused.
func (s *Server) beat(r *http.Request, n spec.NodeID, b api.Beat) error {
	err := s.Sessions.Beat(r.Context(), n, b, r.RemoteAddr)
	if errors.Is(err, spec.ErrConflict) {
		s.watches.end(n, b.Instance)
	}
	return err
}

// admit says whether a node may have a session, or a lease, now: it is a member by a state
// that is current, and its instance is not refused. Until a node has heard a
// manager that knows what is wanted it waits, so an old state must not do.
func (s *Server) admit(r *http.Request, n spec.NodeID, instance string) error {
	if err := s.current(r.Context()); err != nil {
		return err
	}
	if s.Store.Snapshot().Node(n) == nil {
		return removed(n)
	}
	if instance == "" {
		return nil
	}
	return s.beat(r, n, api.Beat{Instance: instance})
}

// leaderless is for how many looks in a row, aliveInterval apart, a manager may
// be without a leader until its sessions end: the nodes may find another
// manager that has one.
const leaderless = 3

// sessionWatch streams what a node must have: at first every document, then
// each one that changed. The clock of an unchanged document does not count.
// The stream ends when the node is removed, when its instance is refused, and
// when this manager has lost touch with the cluster.
func (s *Server) sessionWatch(w http.ResponseWriter, r *http.Request) error {
	node, instance := spec.NodeID(r.PathValue("node")), r.URL.Query().Get("instance")
	if err := s.admit(r, node, instance); err != nil {
		return err
	}
	ctx, end := context.WithCancel(r.Context())
	defer end()
	defer s.watches.add(&watch{node: node, instance: instance, end: end})()

	w.Header().Set("Content-Type", "application/x-ndjson")
	out := sessionWriter{enc: json.NewEncoder(w), flush: http.NewResponseController(w), sent: map[string][]byte{}}
	alive := time.NewTicker(aliveInterval)
	defer alive.Stop()
	alone := 0
	for {
		changed := s.Store.Watch()
		snap, turn := s.outline.look(s.Store)
		if snap.Node(node) == nil {
			return nil
		}
		sent := false
		if s.outline.changed(node, out.networks, out.turn) {
			var err error
			if sent, err = out.send(snap, node); err != nil {
				return sessionEnd(r, err)
			}
			out.turn = turn
		}
		interval := lookInterval
		if sent {
			interval = sendInterval
		}
		pause := time.NewTimer(interval)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Canceled
		}
		for waiting := true; waiting; {
			select {
			case <-changed:
				waiting = false
			case <-alive.C:
				if alone++; s.inTouch() {
					alone = 0
				}
				if alone >= leaderless {
					return nil
				}
				if err := out.line(api.Document{}); err != nil {
					return sessionEnd(r, err)
				}
			case <-ctx.Done():
				return context.Canceled
			}
		}
	}
}

func sessionEnd(r *http.Request, err error) error {
	if r.Context().Err() != nil {
		return context.Canceled
	}
	return err
}

// inTouch says whether the state here still follows a leader.
func (s *Server) inTouch() bool { return s.Peers.Leader() != "" }

// clusterInfo is what a node must know of its cluster; false before there is a
// certificate authority.
func clusterInfo(snap *store.Snapshot, node spec.NodeID) (api.ClusterInfo, bool) {
	a, n := snap.Authority(), snap.Node(node)
	if a == nil || n == nil {
		return api.ClusterInfo{}, false
	}
	c := api.ClusterInfo{ClusterID: snap.ClusterID(), Format: snap.Format(), Role: n.Role, Roots: a.RootsPEM(), Signer: a.Signer}
	for _, n := range snap.Nodes() {
		p := peerOf(n)
		c.Nodes = append(c.Nodes, p)
		if n.Role == spec.RoleManager {
			c.Managers = append(c.Managers, p)
		}
	}
	return c, true
}

type sessionWriter struct {
	enc   *json.Encoder
	flush *http.ResponseController
	sent  map[string][]byte // document key → its encoding without clock
	// turn of the outline, and the node's networks, when documents were last made.
	turn     uint64
	networks []spec.NetworkID
}

// send writes the documents that changed and reports whether there were any.
func (o *sessionWriter) send(snap *store.Snapshot, node spec.NodeID) (sent bool, err error) {
	live := map[string]bool{"wanted": true, "cluster": true}
	if c, ok := clusterInfo(snap, node); ok {
		fresh, err := o.changed("cluster", c, api.Document{Cluster: &c})
		if err != nil {
			return sent, err
		}
		sent = fresh
	}
	// Networks first: a task is to find the network it joins.
	w, networks := reconciler.Documents(snap, node)
	o.networks = w.Networks
	for _, n := range networks {
		bare, key := n, "network "+string(n.Network.ID)
		bare.Clock = spec.Clock{}
		live[key] = true
		fresh, err := o.changed(key, bare, api.Document{Network: &n})
		if err != nil {
			return sent, err
		}
		sent = sent || fresh
	}
	bare := w
	bare.Clock = spec.Clock{}
	fresh, err := o.changed("wanted", bare, api.Document{Wanted: &w})
	if err != nil {
		return sent, err
	}
	sent = sent || fresh
	for key := range o.sent {
		if !live[key] {
			delete(o.sent, key)
		}
	}
	if !sent {
		return false, nil
	}
	return true, o.flush.Flush()
}

// changed writes doc unless its bare form is what was sent last, and reports
// whether it did.
func (o *sessionWriter) changed(key string, bare any, doc api.Document) (bool, error) {
	b, err := json.Marshal(bare)
	if err != nil {
		return false, fmt.Errorf("encode %s: %w", key, err)
	}
	if bytes.Equal(o.sent[key], b) {
		return false, nil
	}
	o.sent[key] = b
	return true, o.enc.Encode(doc)
}

func (o *sessionWriter) line(d api.Document) error {
	if err := o.enc.Encode(d); err != nil {
		return err
	}
	return o.flush.Flush()
}

func (s *Server) sessionReport(w http.ResponseWriter, r *http.Request) error {
	var rep spec.Report
	if err := readJSON(w, r, &rep); err != nil {
		return err
	}
	if err := bound(&rep); err != nil {
		return err
	}
	if string(rep.Node) != r.PathValue("node") {
		return spec.Invalidf("report of node %s in the session of node %s", rep.Node, r.PathValue("node"))
	}
	if format := s.Store.Snapshot().Format(); rep.Info != nil { // the rest of the report must not be refused for what is too new
		if format < store.MTUFormat {
			rep.Info.MTU = 0
		}
		if format < store.AddressFormat {
			rep.Info.Subnets, rep.Info.Interfaces = "", ""
		}
	}
	if s.Store.Snapshot().Format() < store.RolloutFormat {
		rep.Fetched = nil
		for i := range rep.Tasks {
			rep.Tasks[i].Status.HealthySince = time.Time{} // likewise
		}
	}
	if _, err := s.propose(r.Context(), store.Command{Reports: &store.Reports{Reports: []spec.Report{rep}}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) sessionBeat(w http.ResponseWriter, r *http.Request) error {
	var in api.Beat
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if in.Instance == "" {
		return spec.Invalidf("beat: instance is empty")
	}
	if err := s.beat(r, spec.NodeID(r.PathValue("node")), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// sessionLease gives one life of a node's daemon time to run exclusive tasks.
// An instance that is refused gets none, and a node that is down in the state
// gets none either, for its tasks may have been replaced.
func (s *Server) sessionLease(w http.ResponseWriter, r *http.Request) error {
	id, instance := spec.NodeID(r.PathValue("node")), r.URL.Query().Get("instance")
	if instance == "" {
		return spec.Invalidf("lease: instance is empty")
	}
	if err := s.admit(r, id, instance); err != nil {
		return err
	}
	n := s.Store.Snapshot().Node(id)
	switch {
	case n == nil:
		return removed(id)
	case n.State != spec.NodeReady:
		return spec.Conflictf("node %s is %s: it gets no lease before it is ready", n.Name, n.State)
	}
	return writeJSON(w, api.Lease{For: spec.Duration(api.LeaseTime)})
}

func (s *Server) contentGet(w http.ResponseWriter, r *http.Request) error {
	id := spec.ContentID(r.PathValue("content"))
	c := s.content(id)
	if c == nil {
		// Another manager may have named it, and the state here lag behind.
		if err := s.current(r.Context()); err != nil {
			return err
		}
		if c = s.content(id); c == nil {
			return spec.NotFoundf("content %s is not in the state", id)
		}
	}
	data := c.Data
	if id.Sealed() {
		err := s.mayHave(r, id)
		if err == nil {
			data, err = spec.OpenContent(s.ContentKey, id, data)
		}
		if err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if _, err := w.Write(data); err != nil {
		return context.Canceled
	}
	return nil
}

// content returns a content that is complete, or nil.
func (s *Server) content(id spec.ContentID) *spec.Content {
	c := s.Store.Snapshot().Content(id)
	if c == nil || len(c.Data) != c.Size {
		return nil
	}
	return c
}

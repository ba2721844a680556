package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
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

// sessionWatch streams what a node must have: at first every document, then
// each one that changed. The clock of an unchanged document does not count.
func (s *Server) sessionWatch(w http.ResponseWriter, r *http.Request) error {
	node := spec.NodeID(r.PathValue("node"))
	if s.Store.Snapshot().Node(node) == nil {
		return spec.NotFoundf("node %s is not a member of this cluster", node)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := sessionWriter{enc: json.NewEncoder(w), flush: http.NewResponseController(w), sent: map[string][]byte{}}
	alive := time.NewTicker(aliveInterval)
	defer alive.Stop()
	for {
		changed := s.Store.Watch()
		sent, err := out.send(s.Store.Snapshot(), node)
		if err != nil {
			return sessionEnd(r, err)
		}
		interval := lookInterval
		if sent {
			interval = sendInterval
		}
		pause := time.NewTimer(interval)
		select {
		case <-pause.C:
		case <-r.Context().Done():
			pause.Stop()
			return context.Canceled
		}
		for waiting := true; waiting; {
			select {
			case <-changed:
				waiting = false
			case <-alive.C:
				if err := out.line(api.Document{}); err != nil {
					return sessionEnd(r, err)
				}
			case <-r.Context().Done():
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

type sessionWriter struct {
	enc   *json.Encoder
	flush *http.ResponseController
	sent  map[string][]byte // document key → its encoding without clock
}

// send writes the documents that changed and reports whether there were any.
func (o *sessionWriter) send(snap *store.Snapshot, node spec.NodeID) (sent bool, err error) {
	// Networks first: a task is to find the network it joins.
	live := map[string]bool{"wanted": true}
	for _, n := range reconciler.HostNetworks(snap, node) {
		bare, key := n, "network "+string(n.Network.ID)
		bare.Clock = spec.Clock{}
		live[key] = true
		fresh, err := o.changed(key, bare, api.Document{Network: &n})
		if err != nil {
			return sent, err
		}
		sent = sent || fresh
	}
	w := reconciler.Wanted(snap, node)
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
	if string(rep.Node) != r.PathValue("node") {
		return spec.Invalidf("report of node %s in the session of node %s", rep.Node, r.PathValue("node"))
	}
	if _, err := s.propose(r.Context(), store.Command{Reports: &store.Reports{Reports: []spec.Report{rep}}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) contentGet(w http.ResponseWriter, r *http.Request) error {
	id := spec.ContentID(r.PathValue("content"))
	c := s.Store.Snapshot().Content(id)
	if c == nil || len(c.Data) != c.Size {
		return spec.NotFoundf("content %s is not in the state", id)
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if _, err := w.Write(c.Data); err != nil {
		return context.Canceled
	}
	return nil
}

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
		if err := out.send(s.Store.Snapshot(), node); err != nil {
			return sessionEnd(r, err)
		}
		pause := time.NewTimer(sendInterval)
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

func (o *sessionWriter) send(snap *store.Snapshot, node spec.NodeID) error {
	// Networks first: a task is to find the network it joins.
	live := map[string]bool{"wanted": true}
	for _, n := range reconciler.HostNetworks(snap, node) {
		bare, key := n, "network "+string(n.Network.ID)
		bare.Clock = spec.Clock{}
		live[key] = true
		if err := o.changed(key, bare, api.Document{Network: &n}); err != nil {
			return err
		}
	}
	w := reconciler.Wanted(snap, node)
	bare := w
	bare.Clock = spec.Clock{}
	if err := o.changed("wanted", bare, api.Document{Wanted: &w}); err != nil {
		return err
	}
	for key := range o.sent {
		if !live[key] {
			delete(o.sent, key)
		}
	}
	return o.flush.Flush()
}

// changed writes doc unless its bare form is what was sent last.
func (o *sessionWriter) changed(key string, bare any, doc api.Document) error {
	b, err := json.Marshal(bare)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	if bytes.Equal(o.sent[key], b) {
		return nil
	}
	o.sent[key] = b
	return o.enc.Encode(doc)
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

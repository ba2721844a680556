package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Enroller gives out certificates.
type Enroller interface {
	// Join makes a host a node; remote is where it asks from, "IP:port".
	Join(ctx context.Context, r api.JoinRequest, remote string) (api.JoinReply, error)
	// Renew gives a node that is in the table a new certificate.
	Renew(ctx context.Context, c Caller, r api.RenewRequest) (api.RenewReply, error)
	Token(ctx context.Context, role spec.NodeRole, r api.TokenRequest) (api.Token, error)
	Client(ctx context.Context, name string, r api.ClientRequest) (api.Certificates, error)
	RotateCA(ctx context.Context) error
}

// Peers is this manager among the managers.
type Peers interface {
	// Forward and ReadIndex are the leader's; others answer with an error of
	// class spec.ErrUnavailable.
	Forward(ctx context.Context, entry []byte) (api.Forwarded, error)
	ReadIndex(ctx context.Context) (api.ReadIndex, error)
	// Leader is who leads as far as this manager knows; empty is nobody, also
	// when the manager itself has stopped. It is asked each second by every
	// session.
	Leader() spec.NodeID
	// MemberStatus does not block.
	MemberStatus() api.MemberStatus
	ClusterStatus(ctx context.Context) (api.ClusterStatus, error)
	Backup(ctx context.Context, w io.Writer) error
	// BackupKey is the key of backups in text.
	BackupKey() (string, error)
}

// Leaver takes this host out of the cluster. Leave returns when what was asked
// for has been done, short of the end of the daemon.
type Leaver interface {
	Leave(ctx context.Context, l api.Leave) error
}

// What somebody unknown may cost: maxStranger bounds what is sent, strangerTime
// how long that may take, and answerTime all that follows on the connection.
const (
	maxStranger  = 64 << 10
	strangerTime = 10 * time.Second
	answerTime   = time.Minute
)

func (s *Server) clusterJoin(w http.ResponseWriter, r *http.Request) error {
	var in api.JoinRequest
	r.Body = http.MaxBytesReader(w, r.Body, maxStranger)
	// A way that knows no deadlines is one within this host.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(strangerTime))
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(answerTime))
	out, err := s.Enroller.Join(r.Context(), in, r.RemoteAddr)
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (s *Server) clusterRenew(w http.ResponseWriter, r *http.Request) error {
	var in api.RenewRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	out, err := s.Enroller.Renew(r.Context(), callerOf(r), in)
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (s *Server) clusterToken(w http.ResponseWriter, r *http.Request) error {
	var in api.TokenRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	role := spec.NodeRole(r.PathValue("role"))
	if role != spec.RoleManager && role != spec.RoleWorker {
		return spec.Invalidf("role %q: want manager or worker", role)
	}
	if in.TTL < 0 {
		return spec.Invalidf("ttl=%s: want a duration above 0, or none", in.TTL)
	}
	out, err := s.Enroller.Token(r.Context(), role, in)
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (s *Server) clusterClient(w http.ResponseWriter, r *http.Request) error {
	var in api.ClientRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if in.TTL < 0 {
		return spec.Invalidf("ttl=%s: want a duration above 0, or none", in.TTL)
	}
	out, err := s.Enroller.Client(r.Context(), r.PathValue("name"), in)
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (s *Server) clusterRotate(w http.ResponseWriter, r *http.Request) error {
	if err := s.Enroller.RotateCA(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) clusterStatus(w http.ResponseWriter, r *http.Request) error {
	out, err := s.Peers.ClusterStatus(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

// started notes whether anything was written.
type started struct {
	http.ResponseWriter
	yes bool
}

func (w *started) Write(b []byte) (int, error) {
	w.yes = true
	return w.ResponseWriter.Write(b)
}

func (s *Server) clusterBackup(w http.ResponseWriter, r *http.Request) error {
	out := &started{ResponseWriter: w}
	w.Header().Set("Content-Type", "application/octet-stream")
	err := s.Peers.Backup(r.Context(), out)
	if err != nil && out.yes {
		if r.Context().Err() == nil {
			s.Logger.Error("backup broke off", "err", err)
		}
		panic(http.ErrAbortHandler) // so that the caller knows it is not whole
	}
	return err
}

func (s *Server) clusterKey(w http.ResponseWriter, _ *http.Request) error {
	key, err := s.Peers.BackupKey()
	if err != nil {
		return err
	}
	return writeJSON(w, api.Key{Key: key})
}

func (s *Server) clusterPropose(w http.ResponseWriter, r *http.Request) error {
	entry, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return spec.Invalidf("request is not understood: %v", err)
	}
	out, err := s.Peers.Forward(r.Context(), entry)
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (s *Server) clusterRead(w http.ResponseWriter, r *http.Request) error {
	out, err := s.Peers.ReadIndex(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (s *Server) clusterAlive(w http.ResponseWriter, r *http.Request) error {
	var in api.Alive
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	return writeJSON(w, s.Sessions.Alive(in))
}

func (s *Server) nodeMember(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, s.Peers.MemberStatus())
}

func (s *Server) nodeLeave(w http.ResponseWriter, r *http.Request) error {
	var in api.Leave
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := s.Leaver.Leave(r.Context(), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// findNode resolves a name or an ID.
func findNode(snap *store.Snapshot, ref string) (*spec.Node, error) {
	if n := snap.Node(spec.NodeID(ref)); n != nil {
		return n, nil
	}
	if n := snap.NodeNamed(ref); n != nil {
		return n, nil
	}
	return nil, spec.NotFoundf("node %q does not exist; `wherry node ls` lists the nodes", ref)
}

// maxRequestID leaves room for what is put behind it.
const maxRequestID = 100

func checkRequestID(id string) error {
	if len(id) > maxRequestID {
		return spec.Invalidf("request_id has %d bytes, want at most %d", len(id), maxRequestID)
	}
	return nil
}

// second is the request ID of the second command of a call.
func second(id string) string {
	if id == "" {
		return ""
	}
	return id + "/2"
}

// nodeUpdate changes what the user decides of a node, then its role. Either is
// harmless when repeated, so a call that broke off between them is, too.
func (s *Server) nodeUpdate(w http.ResponseWriter, r *http.Request) error {
	var in api.NodeUpdate
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := checkRequestID(in.RequestID); err != nil {
		return err
	}
	decides := in.Availability != nil || in.Labels != nil || in.StopPinned
	if !decides && in.Role == nil {
		return spec.Invalidf("node update: it changes nothing")
	}
	if err := checkLabels(in.Labels); err != nil {
		return err
	}
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := findNode(snap, r.PathValue("node"))
	if err != nil {
		return err
	}
	var out api.Written
	if decides {
		res, err := s.propose(r.Context(), store.Command{RequestID: in.RequestID, SetNode: &store.SetNode{
			ID: n.ID, Availability: in.Availability, Labels: in.Labels, StopPinned: in.StopPinned}})
		if err != nil {
			return err
		}
		out = api.Written{Index: res.Index, Changed: res.Changed}
	}
	if in.Role != nil {
		res, err := s.propose(r.Context(), store.Command{RequestID: second(in.RequestID), SetRole: &store.SetRole{ID: n.ID, Role: *in.Role}})
		if err != nil {
			return err
		}
		out = api.Written{Index: res.Index, Changed: out.Changed || res.Changed}
	}
	return writeJSON(w, out)
}

// maxLabel bounds a label's name and its value in bytes.
const maxLabel = 1024

func checkLabels(labels map[string]*string) error {
	var errs []error
	for name, value := range labels {
		switch {
		case name == "" || strings.ContainsAny(name, "= \t\n"):
			errs = append(errs, spec.Invalidf("label %q: want a name without space and =", name))
		case len(name) > maxLabel || value != nil && len(*value) > maxLabel:
			errs = append(errs, spec.Invalidf("label %.40q: longer than %d bytes", name, maxLabel))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) nodeDelete(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	request := q.Get("request_id")
	if err := checkRequestID(request); err != nil {
		return err
	}
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := findNode(snap, r.PathValue("node"))
	if err != nil && request == "" {
		return err
	}
	c := &store.RemoveNode{ID: spec.NodeID(r.PathValue("node")), Force: q.Get("force") == "true"}
	if err == nil {
		c.ID = n.ID
	}
	// A node that is not there may have been removed by this very request, whose
	// answer was lost: the state remembers.
	res, perr := s.propose(r.Context(), store.Command{RequestID: request, Author: q.Get("author"), RemoveNode: c})
	if err != nil && perr != nil {
		return err
	}
	if perr != nil {
		return perr
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}

// sessionLeave removes the node that calls.
func (s *Server) sessionLeave(w http.ResponseWriter, r *http.Request) error {
	c := &store.RemoveNode{ID: spec.NodeID(r.PathValue("node")), Force: true}
	if _, err := s.propose(r.Context(), store.Command{RemoveNode: c}); err != nil && !errors.Is(err, spec.ErrNotFound) {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// worker answers routes that only a manager can.
func (s *Server) worker(http.ResponseWriter, *http.Request) error {
	name := s.Name
	if name == "" {
		name = string(s.Node)
	}
	managers := s.Managers()
	if len(managers) == 0 {
		return api.Errorf(api.ErrNotManager, "node %s is a worker; ask a manager (it knows of none now)", name)
	}
	var list []string
	for _, m := range managers {
		list = append(list, fmt.Sprintf("%s (--host https://%s)", m.Name, m.Address))
	}
	return api.Errorf(api.ErrNotManager, "node %s is a worker; ask a manager: %s", name, strings.Join(list, ", "))
}

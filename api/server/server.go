package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Proposer is the way into the replicated log.
type Proposer interface {
	// Propose returns when the command is committed and applied, or with an
	// error of class spec.ErrUnavailable. What Apply said is in the result.
	Propose(ctx context.Context, c store.Command) (store.Result, error)
	// Linearizable returns when the local state holds every write that was
	// acknowledged before the call.
	Linearizable(ctx context.Context) error
}

// Resolver finds the digest that an image reference stands for.
type Resolver interface {
	// Resolve looks into the images of this node first, unless a fresh answer
	// is wanted, then asks the registry.
	Resolve(ctx context.Context, image, platform string, fresh bool) (digest string, err error)
}

// Nodes connects a manager with the node API of a node.
type Nodes interface {
	// Transport returns the way to a node; an error of class
	// spec.ErrUnavailable when there is none now.
	Transport(n spec.NodeID) (http.RoundTripper, error)
}

// Images are the images of this node.
type Images interface {
	List(ctx context.Context) ([]api.Image, error)
	Load(ctx context.Context, archive io.Reader) ([]api.Image, error)
	// Pull calls progress from time to time, from one goroutine.
	Pull(ctx context.Context, p api.PullImage, progress func(api.PullProgress)) (api.Image, error)
	Remove(ctx context.Context, ref string) error
}

// Tasks are the tasks that run on this node.
type Tasks interface {
	// Logs calls fn for each line in order.
	Logs(ctx context.Context, t spec.TaskID, o api.LogOptions, fn func(api.LogLine) error) error
	// Exec runs a command in the task's container.
	Exec(ctx context.Context, t spec.TaskID, r api.ExecRequest, streams api.ExecIO) (exitCode int, err error)
}

// Config is what a server needs. All fields but Logger and Now are required.
type Config struct {
	Store    *store.Store
	Proposer Proposer
	Resolver Resolver
	Nodes    Nodes
	Images   Images
	Tasks    Tasks
	// ContentKey names contents (spec.KeyedContentID).
	ContentKey []byte
	Node       spec.NodeID
	Version    string
	// Now is the clock; nil is time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Server answers the API.
type Server struct {
	Config
	handlers map[string]handler
}

// handler answers one request; an error that it returns becomes the answer, so
// it must not have written anything then.
type handler func(w http.ResponseWriter, r *http.Request) error

// New returns a server, or an error when a route lacks a handler or a rule.
func New(c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{Config: c}
	s.handlers = map[string]handler{
		"version":        s.version,
		"stack.list":     s.stackList,
		"stack.get":      s.stackGet,
		"stack.put":      s.stackPut,
		"stack.delete":   s.stackDelete,
		"stack.status":   s.stackStatus,
		"stack.plan":     s.stackPlan,
		"service.list":   s.serviceList,
		"service.get":    s.serviceGet,
		"service.scale":  s.serviceScale,
		"task.list":      s.taskList,
		"task.get":       s.taskGet,
		"task.logs":      s.toNode("logs"),
		"task.exec":      s.toNode("exec"),
		"node.list":      s.nodeList,
		"node.get":       s.nodeGet,
		"network.list":   s.networkList,
		"volume.list":    s.volumeList,
		"volume.delete":  s.volumeDelete,
		"event.list":     s.eventList,
		"image.list":     s.imageList,
		"image.load":     s.imageLoad,
		"image.pull":     s.imagePull,
		"image.delete":   s.imageDelete,
		"session.watch":  s.sessionWatch,
		"session.report": s.sessionReport,
		"content.get":    s.contentGet,
		"node.task.logs": s.nodeTaskLogs,
		"node.task.exec": s.nodeTaskExec,
	}
	if err := checkRoutes(api.Routes, s.handlers); err != nil {
		return nil, err
	}
	return s, nil
}

func checkRoutes(routes []api.Route, handlers map[string]handler) error {
	var errs []error
	seen := map[string]bool{}
	rules := []api.Rule{api.RuleAnyone, api.RuleOperator, api.RuleNode, api.RuleManager}
	for _, r := range routes {
		seen[r.Name] = true
		if handlers[r.Name] == nil {
			errs = append(errs, fmt.Errorf("route %s has no handler", r.Name))
		}
		if !slices.Contains(rules, r.Rule) {
			errs = append(errs, fmt.Errorf("route %s has no rule", r.Name))
		}
	}
	for name := range handlers {
		if !seen[name] {
			errs = append(errs, fmt.Errorf("handler %s has no route", name))
		}
	}
	return errors.Join(errs...)
}

// Handler answers peers who may use the given rules; api.RuleAnyone is always
// among them.
func (s *Server) Handler(rules ...api.Rule) http.Handler {
	mux := http.NewServeMux()
	for _, r := range api.Routes {
		h := s.handlers[r.Name]
		if r.Rule != api.RuleAnyone && !slices.Contains(rules, r.Rule) {
			h = refuse(r)
		}
		mux.HandleFunc(r.Pattern(), func(w http.ResponseWriter, req *http.Request) {
			if err := h(w, req); err != nil {
				s.writeError(w, r, err)
			}
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		s.writeError(w, api.Route{Name: "unknown"}, spec.NotFoundf("no such call: %s %s", req.Method, req.URL.Path))
	})
	return mux
}

// errForbidden answers 403; it is no class of package spec, since no caller can
// do anything about it.
var errForbidden = errors.New("not allowed")

func refuse(r api.Route) handler {
	return func(http.ResponseWriter, *http.Request) error {
		return fmt.Errorf("%s: %w: it is for the role %s", r.Name, errForbidden, r.Rule)
	}
}

func (s *Server) writeError(w http.ResponseWriter, r api.Route, err error) {
	status := api.ErrorStatus(err)
	switch {
	case errors.Is(err, errForbidden):
		status = http.StatusForbidden
	case errors.Is(err, context.Canceled):
		return // the caller has gone
	case status == http.StatusInternalServerError:
		s.Logger.Error("request failed", "route", r.Name, "err", err)
	}
	var body api.ErrorBody
	body.Error.Class, body.Error.Message = spec.ErrorClass(err), err.Error()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.Logger.Debug("answer not delivered", "route", r.Name, "err", err)
	}
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(append(b, '\n'))
	if err != nil {
		return context.Canceled // only a caller who has gone makes it fail
	}
	return nil
}

// maxBody bounds what one call may send: a stack with its contents.
const maxBody = 64 << 20

// readJSON decodes the body strictly: an unknown field is an error, so that a
// client newer than the daemon is told instead of half obeyed.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return spec.Invalidf("request is larger than %d MiB", maxBody>>20)
		}
		return spec.Invalidf("request is not understood: %v", err)
	}
	return nil
}

// snapshot returns a state that holds every acknowledged write, or with
// ?consistency=stale the local one. With ?index=N&wait=D it waits up to D for
// a state newer than N.
func (s *Server) snapshot(r *http.Request) (*store.Snapshot, error) {
	q := r.URL.Query()
	if q.Get("consistency") != "stale" {
		if err := s.Proposer.Linearizable(r.Context()); err != nil {
			return nil, err
		}
	}
	if q.Get("wait") == "" {
		return s.Store.Snapshot(), nil
	}
	after, err := strconv.ParseUint(q.Get("index"), 10, 64)
	if err != nil {
		return nil, spec.Invalidf("index=%q: want a log index", q.Get("index"))
	}
	wait, err := time.ParseDuration(q.Get("wait"))
	if err != nil || wait < 0 || wait > 10*time.Minute {
		return nil, spec.Invalidf("wait=%q: want a duration of at most 10m", q.Get("wait"))
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		changed := s.Store.Watch()
		snap := s.Store.Snapshot()
		if snap.Index() > after {
			return snap, nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			return snap, nil
		case <-r.Context().Done():
			return nil, context.Canceled
		}
	}
}

// propose commits a command and returns what Apply said of it.
func (s *Server) propose(ctx context.Context, c store.Command) (store.Result, error) {
	res, err := s.Proposer.Propose(ctx, c)
	if err != nil {
		return res, err
	}
	return res, res.Err
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, api.Version{Version: s.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Node: s.Node})
}

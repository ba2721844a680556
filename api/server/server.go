package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/singleflight"

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
	// Transport returns the way to a node, this one too; an error of class
	// spec.ErrUnavailable when there is none now. It gets requests for
	// http://node/…, some with an Upgrade, and streams them.
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

// Network is what this host leads traffic to.
type Network interface {
	// Withdrawn returns nil when the host leads no new traffic to any of the
	// addresses, and an error when ctx ends before.
	Withdrawn(ctx context.Context, addrs []spec.Address) error
	// Leads returns those that it may lead new traffic to now.
	Leads(addrs []spec.Address) []spec.Address
}

// Config is what a server needs. Logger, Now and Registry may be nil. A worker
// has Images, Tasks, Volumes, Network, Leaver, Doctor, Caller, Managers and Members; a manager
// has all but the last two.
type Config struct {
	// Store is nil on a worker.
	Store    *store.Store
	Proposer Proposer
	Resolver Resolver
	Nodes    Nodes
	Images   Images
	Tasks    Tasks
	Volumes  Volumes
	Network  Network
	Sessions Sessions
	Enroller Enroller
	Peers    Peers
	Leaver   Leaver
	// Doctor looks at this node.
	Doctor func(context.Context) []api.Check
	// Registry answers /v2/.
	Registry http.Handler
	// Caller says who calls, for Remote.
	Caller IdentifyFunc
	// Managers and Members are the managers and all nodes as a worker was last
	// told; empty when it was told nothing yet.
	Managers, Members func() []api.Peer
	// ContentKey names contents (spec.KeyedContentID).
	ContentKey []byte
	Node       spec.NodeID
	Name       string // of the node
	Version    string
	// Now is the clock; nil is time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// check names what is missing.
func (c *Config) check() error {
	have := map[string]bool{"Images": c.Images != nil, "Tasks": c.Tasks != nil, "Volumes": c.Volumes != nil, "Network": c.Network != nil, "Leaver": c.Leaver != nil, "Doctor": c.Doctor != nil, "Caller": c.Caller != nil, "Node": c.Node != ""}
	if c.Store == nil {
		have["Managers"], have["Members"] = c.Managers != nil, c.Members != nil
	} else {
		for name, ok := range map[string]bool{"Proposer": c.Proposer != nil, "Resolver": c.Resolver != nil, "Nodes": c.Nodes != nil,
			"Sessions": c.Sessions != nil, "Enroller": c.Enroller != nil, "Peers": c.Peers != nil} {
			have[name] = ok
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if !have[name] {
			errs = append(errs, fmt.Errorf("api server: %s is missing", name))
		}
	}
	return errors.Join(errs...)
}

// Server answers the API.
type Server struct {
	Config
	handlers  map[string]handler
	watches   watches
	freshness freshness
	outline   outline
	doctor    singleflight.Group
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
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Server{Config: c}
	// What works without the state, on a worker too.
	s.handlers = map[string]handler{
		"version":           s.version,
		"image.list":        s.onNode("", s.imageList),
		"image.load":        s.onNode("/load", s.imageLoad),
		"image.pull":        s.onNode("/pull", s.imagePull),
		"image.delete":      s.onNode("", s.imageDelete),
		"node.leave":        s.nodeLeave,
		"node.doctor":       s.nodeDoctor,
		"node.task.logs":    s.nodeTaskLogs,
		"node.task.exec":    s.nodeTaskExec,
		"node.image.list":   s.imageList,
		"node.image.load":   s.imageLoad,
		"node.image.pull":   s.imagePull,
		"node.image.delete": s.imageDelete,
		"node.withdrawn":    s.nodeWithdrawn,

		"node.volume.size":   s.nodeVolumeSize,
		"node.volume.export": s.nodeVolumeExport,
		"node.volume.import": s.nodeVolumeImport,
		"node.volume.give":   s.nodeVolumeGive,
		"registry":           s.registry,
	}
	for name, h := range map[string]handler{
		"stack.list":       s.stackList,
		"stack.get":        s.stackGet,
		"stack.put":        s.stackPut,
		"stack.delete":     s.stackDelete,
		"stack.status":     s.stackStatus,
		"stack.plan":       s.stackPlan,
		"why":              s.why,
		"rebalance.plan":   s.rebalancePlan,
		"rebalance":        s.rebalance,
		"stack.history":    s.stackHistory,
		"stack.rollback":   s.rollback,
		"service.list":     s.serviceList,
		"service.get":      s.serviceGet,
		"service.scale":    s.serviceScale,
		"service.rollback": s.rollback,
		"service.pause":    s.steer(store.SteerPause),
		"service.resume":   s.steer(store.SteerResume),
		"service.promote":  s.steer(store.SteerPromote),
		"service.restart":  s.steer(store.SteerRestart),
		"service.run":      s.steer(store.SteerRun),
		"task.list":        s.taskList,
		"task.get":         s.taskGet,
		"task.logs":        s.toTask("logs"),
		"task.exec":        s.toTask("exec"),
		"node.list":        s.nodeList,
		"node.get":         s.nodeGet,
		"node.leftovers":   s.nodeLeftovers,
		"node.update":      s.nodeUpdate,
		"node.delete":      s.nodeDelete,
		"network.list":     s.networkList,
		"network.get":      s.networkGet,
		"network.create":   s.networkCreate,
		"network.delete":   s.networkDelete,
		"volume.list":      s.volumeList,
		"volume.get":       s.volumeGet,
		"volume.create":    s.volumeCreate,
		"volume.move":      s.volumeMove,
		"volume.backup":    s.volumeData(false),
		"volume.restore":   s.volumeData(true),
		"volume.delete":    s.volumeDelete,
		"event.list":       s.eventList,
		"cluster.status":   s.clusterStatus,
		"cluster.backup":   s.clusterBackup,
		"cluster.key":      s.clusterKey,
		"cluster.token":    s.clusterToken,
		"cluster.client":   s.clusterClient,
		"cluster.rotate":   s.clusterRotate,
		"cluster.join":     s.clusterJoin,
		"cluster.renew":    s.clusterRenew,
		"cluster.propose":  s.clusterPropose,
		"cluster.read":     s.clusterRead,
		"cluster.alive":    s.clusterAlive,
		"session.watch":    s.sessionWatch,
		"session.report":   s.sessionReport,
		"session.beat":     s.sessionBeat,
		"session.lease":    s.sessionLease,
		"session.leave":    s.sessionLeave,
		"content.get":      s.contentGet,
		"node.member":      s.nodeMember,
	} {
		if c.Store == nil {
			h = s.worker
		}
		s.handlers[name] = h
	}
	for name, h := range s.dataHandlers() {
		if c.Store == nil {
			h = s.worker
		}
		s.handlers[name] = h
	}
	if err := checkRoutes(api.Routes, s.handlers); err != nil {
		return nil, err
	}
	return s, nil
}

func checkRoutes(routes []api.Route, handlers map[string]handler) error {
	var errs []error
	seen := map[string]bool{}
	for _, r := range routes {
		seen[r.Name] = true
		if handlers[r.Name] == nil {
			errs = append(errs, fmt.Errorf("route %s has no handler", r.Name))
		}
		if !slices.Contains(api.Rules, r.Rule) {
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

// Handler answers on a socket of this host those who may use the given rules;
// api.RuleAnyone is always among them. With api.RuleNode they are this node.
func (s *Server) Handler(rules ...api.Rule) http.Handler { return s.mux(s.local(rules)) }

// Remote answers those who come over TLS by who they are: a client with a
// certificate is an operator, a node is what the table of nodes says.
func (s *Server) Remote() http.Handler { return s.mux(s.remote) }

func (s *Server) mux(may access) http.Handler {
	mux := http.NewServeMux()
	for _, r := range api.Routes {
		h := s.handlers[r.Name]
		mux.HandleFunc(r.Pattern(), func(w http.ResponseWriter, req *http.Request) {
			c, err := may(req, r)
			if err == nil {
				err = h(w, req.WithContext(context.WithValue(req.Context(), callerKey{}, c)))
			}
			if err != nil {
				s.writeError(w, r, err)
			}
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		s.writeError(w, api.Route{Name: "unknown"}, spec.NotFoundf("no such call: %s %s", req.Method, req.URL.Path))
	})
	return mux
}

func (s *Server) writeError(w http.ResponseWriter, r api.Route, err error) {
	status := api.ErrorStatus(err)
	switch {
	case errors.Is(err, context.Canceled):
		return // the caller has gone
	case status == http.StatusInternalServerError:
		s.Logger.Error("request failed", "route", r.Name, "err", err)
	}
	var body api.ErrorBody
	body.Error.Class, body.Error.Message = api.ErrorClass(err), err.Error()
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
	return readBounded(w, r, v, maxBody)
}

// readBounded is readJSON for a body of at most so many bytes.
func readBounded(w http.ResponseWriter, r *http.Request, v any, most int64) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, most))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return spec.Invalidf("request is larger than %d KiB", most>>10)
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
	v := api.Version{Version: s.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
		Node: s.Node, Name: s.Name, Role: spec.RoleManager}
	if s.Store == nil {
		v.Role = spec.RoleWorker
	}
	return writeJSON(w, v)
}

package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// toTask passes a call about a task on to the node that runs it.
func (s *Server) toTask(verb string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		snap, err := s.snapshot(r)
		if err != nil {
			return err
		}
		t, err := findTask(snap, r.PathValue("task"))
		if err != nil {
			return err
		}
		if t.Node == "" {
			return spec.Conflictf("task %s has no node yet: %s", taskName(snap, t), t.Status.Reason)
		}
		n := snap.Node(t.Node)
		if n == nil {
			return spec.Unavailablef("task %s was on node %s, which is no longer in the cluster", taskName(snap, t), t.Node)
		}
		return s.toNode(w, r, n, "/v1/node/tasks/"+url.PathEscape(string(t.ID))+"/"+verb)
	}
}

// onNode passes a call about images on to the node that ?node= names; without
// it, or when it names this one, the answer comes from here.
func (s *Server) onNode(verb string, here handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		ref := r.URL.Query().Get("node")
		if ref == "" || ref == string(s.Node) || ref == s.Name {
			return here(w, r)
		}
		if s.Store == nil {
			return s.worker(w, r)
		}
		snap, err := s.snapshot(r)
		if err != nil {
			return err
		}
		n, err := findNode(snap, ref)
		if err != nil {
			return err
		}
		if n.ID == s.Node {
			return here(w, r)
		}
		return s.toNode(w, r, n, "/v1/node/images"+verb)
	}
}

// toNode passes a call on to the API of a node.
func (s *Server) toNode(w http.ResponseWriter, r *http.Request, n *spec.Node, path string) error {
	if n.State == spec.NodeDown {
		return spec.Unavailablef("node %s is down%s; what is on it can be reached when it is back", n.Name, since(n.DownSince))
	}
	tr, err := s.Nodes.Transport(n.ID)
	if err != nil {
		return err
	}
	var failed error
	proxy := httputil.ReverseProxy{
		Transport: tr, FlushInterval: -1,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL = &url.URL{Scheme: "http", Host: "node", Path: path, RawPath: path, RawQuery: r.URL.RawQuery}
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
		ErrorLog:     slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r)
	if failed != nil && r.Context().Err() != nil {
		return context.Canceled
	}
	if failed != nil {
		return spec.Unavailablef("node %s does not answer at %s: %v", n.Name, n.Address, failed)
	}
	return nil
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + t.UTC().Format(time.RFC3339)
}

func (s *Server) nodeTaskLogs(w http.ResponseWriter, r *http.Request) error {
	o, err := api.ParseLogOptions(r.URL.Query())
	if err != nil {
		return err
	}
	flush := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	if o.Follow {
		// The caller learns at once that the stream stands, also when the
		// container has nothing to say for a while.
		w.WriteHeader(http.StatusOK)
		if err := flush.Flush(); err != nil {
			return context.Canceled
		}
	}
	enc := json.NewEncoder(w)
	wrote := o.Follow
	err = s.Tasks.Logs(r.Context(), spec.TaskID(r.PathValue("task")), o, func(l api.LogLine) error {
		wrote = true
		if err := enc.Encode(l); err != nil {
			return err
		}
		if o.Follow {
			return flush.Flush()
		}
		return nil
	})
	if err != nil && wrote {
		if !errors.Is(err, context.Canceled) {
			s.Logger.Debug("log stream ended", "task", r.PathValue("task"), "err", err)
		}
		// The answer has begun; cutting the connection is the only way left to
		// say that it is not whole.
		panic(http.ErrAbortHandler)
	}
	return err
}

func (s *Server) nodeTaskExec(w http.ResponseWriter, r *http.Request) error {
	var req api.ExecRequest
	if err := json.Unmarshal([]byte(r.URL.Query().Get("request")), &req); err != nil {
		return spec.Invalidf("exec request is not understood: %v", err)
	}
	if len(req.Args) == 0 {
		return spec.Invalidf("exec: no command given")
	}
	if r.Header.Get("Upgrade") != api.ExecProtocol {
		return spec.Invalidf("exec: want an upgrade to %s", api.ExecProtocol)
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.ExecProtocol); err != nil {
		return context.Canceled
	}
	// After a hijack the request's context no longer ends with the connection.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer cancel(nil)

	out := api.NewFrameWriter(conn)
	stdin, resize := splitInput(rw.Reader, func(err error) { cancel(fmt.Errorf("exec: caller has gone: %w", err)) })
	streams := api.ExecIO{Stdout: out.Stream(api.StreamStdout), Stderr: out.Stream(api.StreamStderr), Resize: resize}
	if req.Stdin {
		streams.Stdin = stdin
	}
	code, err := s.Tasks.Exec(ctx, spec.TaskID(r.PathValue("task")), req, streams)
	stdin.CloseWithError(io.ErrClosedPipe)
	end := api.ExecEnd{ExitCode: code}
	if err != nil {
		end.Error, end.Class = err.Error(), api.ErrorClass(err)
	}
	b, err := json.Marshal(end)
	if err != nil {
		return fmt.Errorf("exec: encode end: %w", err)
	}
	if err := out.WriteFrame(api.StreamEnd, b); err != nil {
		s.Logger.Debug("exec caller has gone", "task", r.PathValue("task"), "err", err)
	}
	return nil
}

// splitInput reads the caller's frames until the connection ends, in a
// goroutine that ends with it, and then calls gone.
func splitInput(r *bufio.Reader, gone func(error)) (*io.PipeReader, <-chan [2]uint16) {
	pr, pw := io.Pipe()
	resize := make(chan [2]uint16, 1)
	go func() {
		defer close(resize)
		for {
			stream, p, err := api.ReadFrame(r)
			if err != nil {
				pw.CloseWithError(io.EOF)
				gone(err)
				return
			}
			switch {
			case stream == api.StreamStdin && len(p) == 0:
				pw.Close()
			case stream == api.StreamStdin:
				// A closed reader means that the process no longer reads: what
				// is typed then is dropped, as on a terminal.
				_, _ = pw.Write(p)
			case stream == api.StreamResize && len(p) == 4:
				size := [2]uint16{binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])}
				select { // only the newest size counts
				case <-resize:
				default:
				}
				resize <- size
			}
		}
	}()
	return pr, resize
}

func (s *Server) imageList(w http.ResponseWriter, r *http.Request) error {
	images, err := s.Images.List(r.Context())
	if err != nil {
		return err
	}
	if images == nil {
		images = []api.Image{}
	}
	return writeJSON(w, api.List[api.Image]{Items: images})
}

func (s *Server) imageLoad(w http.ResponseWriter, r *http.Request) error {
	images, err := s.Images.Load(r.Context(), r.Body)
	if err != nil {
		return err
	}
	return writeJSON(w, api.List[api.Image]{Items: images})
}

func (s *Server) imagePull(w http.ResponseWriter, r *http.Request) error {
	var in api.PullImage
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	send := func(p api.PullProgress) {
		// A caller who has gone ends the pull by the request's context.
		if enc.Encode(p) == nil {
			_ = flush.Flush()
		}
	}
	img, err := s.Images.Pull(r.Context(), in, send)
	if err != nil {
		send(api.PullProgress{Error: err.Error(), Class: api.ErrorClass(err)})
		return nil
	}
	send(api.PullProgress{Image: &img})
	return nil
}

func (s *Server) imageDelete(w http.ResponseWriter, r *http.Request) error {
	if err := s.Images.Remove(r.Context(), r.URL.Query().Get("image")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// maxAsk bounds the body of a question for addresses.
const maxAsk = 64 << 10

// nodeWithdrawn answers when this host leads new traffic to none of the
// addresses, or when the caller wants to wait no longer.
func (s *Server) nodeWithdrawn(w http.ResponseWriter, r *http.Request) error {
	var in api.Withdraw
	if err := readBounded(w, r, &in, maxAsk); err != nil {
		return err
	}
	switch {
	case len(in.Addresses) > api.MaxWithdrawAddrs:
		return spec.Invalidf("withdrawn: %d addresses, want at most %d", len(in.Addresses), api.MaxWithdrawAddrs)
	case in.Wait < 0 || in.Wait.D() > api.MaxWithdrawWait:
		return spec.Invalidf("withdrawn: wait=%q: want a duration of at most %s", in.Wait, api.MaxWithdrawWait)
	}
	ctx, cancel := context.WithTimeout(r.Context(), in.Wait.D())
	defer cancel()
	out := api.Withdrawn{Still: []spec.Address{}}
	if s.Network.Withdrawn(ctx, in.Addresses) != nil {
		if r.Context().Err() != nil {
			return context.Canceled
		}
		out.Still = append(out.Still, s.Network.Leads(in.Addresses)...)
	}
	return writeJSON(w, out)
}

// nodeDoctor looks at this node. One look serves all who ask meanwhile.
func (s *Server) nodeDoctor(w http.ResponseWriter, r *http.Request) error {
	look := s.doctor.DoChan("", func() (any, error) {
		return s.Doctor(context.WithoutCancel(r.Context())), nil
	})
	select {
	case got := <-look:
		checks, _ := got.Val.([]api.Check)
		return writeJSON(w, api.List[api.Check]{Items: append([]api.Check{}, checks...)})
	case <-r.Context().Done():
		return context.Canceled
	}
}

func (s *Server) registry(w http.ResponseWriter, r *http.Request) error {
	if s.Registry == nil {
		return spec.NotFoundf("this node serves no images")
	}
	s.Registry.ServeHTTP(w, r)
	return nil
}

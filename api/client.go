package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"wherry.dev/spec"
)

// DefaultHost is where a daemon listens on its own host.
const DefaultHost = "unix:///run/wherry/wherry.sock"

// ErrUnreachable says that no daemon answers at the client's host.
var ErrUnreachable = errors.New("daemon not reachable")

// Client calls a daemon. It is safe for concurrent use.
type Client struct {
	host string
	base string // of every URL
	node string // that image calls are for; empty is who answers
	tls  *tlsIdentity
	// dial opens a connection of HTTP/1.1, for exec; nil when there is no way.
	dial func(ctx context.Context) (net.Conn, error)
	http *http.Client
}

// NewClient returns a client for host, "unix:///path/to.sock". NewTLSClient is
// for a host elsewhere.
func NewClient(host string) (*Client, error) {
	if strings.HasPrefix(host, "https://") {
		return NewTLSClient(host, TLSFiles{})
	}
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok || path == "" {
		return nil, spec.Invalidf("host %q: want unix:///path/to/wherry.sock, or https://IP:PORT", host)
	}
	c := &Client{host: host, base: "http://wherry"}
	c.dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		// A list is asked for again and again while something is waited for.
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
	}}
	return c, nil
}

// NewNodeClient returns a client of one member for another, over a transport
// that knows the way: it gets requests for http://node/…. Exec is not for it.
func NewNodeClient(rt http.RoundTripper) *Client {
	return &Client{host: "the member", base: "http://node", http: &http.Client{Transport: rt}}
}

// Transport is the client's way to its daemon, for a proxy.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// At returns a client whose calls about images are for the named node, by way
// of the manager that is asked; empty is the node that answers.
func (c *Client) At(node string) *Client {
	d := *c
	d.node = node
	return &d
}

func (c *Client) images(q url.Values) url.Values {
	if c.node != "" {
		if q == nil {
			q = url.Values{}
		}
		q.Set("node", c.node)
	}
	return q
}

func (c *Client) unreachable(err error) error {
	if c.tls != nil {
		if wasCut(err) {
			err = c.refusal(err)
		}
		return c.tls.unreachable(c.host, err)
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return err
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w at %s: permission denied; use sudo, or add yourself to the group wherry", ErrUnreachable, c.host)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w at %s: no such socket; start it with `wherry daemon`, or name another one with --host or WHERRY_HOST", ErrUnreachable, c.host)
	}
	return fmt.Errorf("%w at %s: %v; is `wherry daemon` running?", ErrUnreachable, c.host, op.Err)
}

// request sends a request and returns the answer if its status is below 400;
// the caller closes its body.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, body io.Reader, contentType string) (*http.Response, error) {
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fmt.Errorf("call %s %s: %w", method, path, err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, c.unreachable(err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readError(resp)
}

func readError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var e ErrorBody
	if err != nil || json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
		return fmt.Errorf("daemon answered %s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return ErrorOfClass(e.Error.Class, e.Error.Message)
}

// call sends in (nil: no body) and decodes the answer into out (nil: dropped).
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	var ct string
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request %s: %w", path, err)
		}
		body, ct = bytes.NewReader(b), "application/json"
	}
	resp, err := c.request(ctx, method, path, query, body, ct)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("decode answer of %s %s: %w", method, path, err)
	}
	return nil
}

// Poll asks for an answer newer than Index, waiting at most Wait for it. The
// zero value asks for the state as it is now.
type Poll struct {
	Index uint64
	Wait  time.Duration
}

func (p Poll) query() url.Values {
	q := url.Values{}
	if p.Wait > 0 {
		q.Set("index", strconv.FormatUint(p.Index, 10))
		q.Set("wait", p.Wait.String())
	}
	return q
}

// Version asks the daemon who it is.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	return v, c.call(ctx, "GET", "/v1/version", nil, nil, &v)
}

// Stacks lists the stacks.
func (c *Client) Stacks(ctx context.Context) (l List[StackInfo], err error) {
	return l, c.call(ctx, "GET", "/v1/stacks", nil, nil, &l)
}

// Stack returns one stack with its document.
func (c *Client) Stack(ctx context.Context, name string) (s StackDetail, err error) {
	return s, c.call(ctx, "GET", "/v1/stacks/"+url.PathEscape(name), nil, nil, &s)
}

// PutStack applies a stack.
func (c *Client) PutStack(ctx context.Context, p PutStack) (w Written, err error) {
	return w, c.call(ctx, "PUT", "/v1/stacks/"+url.PathEscape(p.Stack.Name), nil, p, &w)
}

// RemoveStack removes a stack, with volumes its volumes as well.
func (c *Client) RemoveStack(ctx context.Context, name string, volumes bool, requestID string) (w Written, err error) {
	q := url.Values{"request_id": {requestID}}
	if volumes {
		q.Set("volumes", "true")
	}
	return w, c.call(ctx, "DELETE", "/v1/stacks/"+url.PathEscape(name), q, nil, &w)
}

// StackStatus returns how far a stack is; also of one that is being removed.
func (c *Client) StackStatus(ctx context.Context, name string, p Poll) (s StackStatus, err error) {
	return s, c.call(ctx, "GET", "/v1/stacks/"+url.PathEscape(name)+"/status", p.query(), nil, &s)
}

// Plan says what PutStack would do, and changes nothing.
func (c *Client) Plan(ctx context.Context, p PutStack) (pl Plan, err error) {
	return pl, c.call(ctx, "POST", "/v1/plan", nil, p, &pl)
}

// Services lists the services of a stack, or of all when stack is empty.
func (c *Client) Services(ctx context.Context, stack string) (l List[ServiceInfo], err error) {
	q := url.Values{}
	if stack != "" {
		q.Set("stack", stack)
	}
	return l, c.call(ctx, "GET", "/v1/services", q, nil, &l)
}

// Service returns one service.
func (c *Client) Service(ctx context.Context, stack, service string) (s ServiceDetail, err error) {
	return s, c.call(ctx, "GET", "/v1/services/"+url.PathEscape(stack)+"/"+url.PathEscape(service), nil, nil, &s)
}

// Scale sets the number of replicas of a service.
func (c *Client) Scale(ctx context.Context, stack, service string, s Scale) (w Written, err error) {
	return w, c.call(ctx, "POST", "/v1/services/"+url.PathEscape(stack)+"/"+url.PathEscape(service)+"/scale", nil, s, &w)
}

// History lists the revisions of a stack that are kept, oldest first.
func (c *Client) History(ctx context.Context, stack string) (l List[StackRevision], err error) {
	return l, c.call(ctx, "GET", "/v1/stacks/"+url.PathEscape(stack)+"/revisions", nil, nil, &l)
}

// RollbackStack takes a stack back to an older revision; with a service, that
// one alone.
func (c *Client) RollbackStack(ctx context.Context, stack, service string, r Rollback) (w Written, err error) {
	path := "/v1/stacks/" + url.PathEscape(stack) + "/rollback"
	if service != "" {
		path = "/v1/services/" + url.PathEscape(stack) + "/" + url.PathEscape(service) + "/rollback"
	}
	return w, c.call(ctx, "POST", path, nil, r, &w)
}

// Steer pauses the update of a service, goes on with it, goes on behind its
// canary, restarts its tasks, or runs a job once more: "pause", "resume",
// "promote", "restart" or "run".
func (c *Client) Steer(ctx context.Context, stack, service, action string, s Steer) (w Written, err error) {
	return w, c.call(ctx, "POST", "/v1/services/"+url.PathEscape(stack)+"/"+url.PathEscape(service)+"/"+url.PathEscape(action), nil, s, &w)
}

// TaskFilter selects tasks; empty fields select all.
type TaskFilter struct{ Stack, Service string }

// Why explains tasks that are not as they ought to be: of a stack, of a service
// as "stack/service" or "stack/service.SLOT", of a task by name or ID, or all when
// ref is empty.
func (c *Client) Why(ctx context.Context, ref string) (l List[spec.ServiceWhy], err error) {
	return l, c.call(ctx, "GET", "/v1/why", url.Values{"of": {ref}}, nil, &l)
}

// Moves proposes what makes the nodes more even and changes nothing.
func (c *Client) Moves(ctx context.Context, r Rebalance) (l List[spec.Move], err error) {
	q := url.Values{"stack": {r.Stack}, "max": {strconv.Itoa(r.Max)}}
	return l, c.call(ctx, "GET", "/v1/rebalance", q, nil, &l)
}

// Rebalance lets tasks move and returns which. What they are replaced by is decided
// when it is their turn.
func (c *Client) Rebalance(ctx context.Context, r Rebalance) (l List[spec.Move], err error) {
	return l, c.call(ctx, "POST", "/v1/rebalance", nil, r, &l)
}

// Tasks lists tasks, oldest first.
func (c *Client) Tasks(ctx context.Context, f TaskFilter, p Poll) (l List[TaskInfo], err error) {
	q := p.query()
	if f.Stack != "" {
		q.Set("stack", f.Stack)
	}
	if f.Service != "" {
		q.Set("service", f.Service)
	}
	return l, c.call(ctx, "GET", "/v1/tasks", q, nil, &l)
}

// Task returns one task by ID, name or NAME@ID.
func (c *Client) Task(ctx context.Context, ref string) (t TaskInfo, err error) {
	return t, c.call(ctx, "GET", "/v1/tasks/"+url.PathEscape(ref), nil, nil, &t)
}

// Nodes lists the nodes.
func (c *Client) Nodes(ctx context.Context) (l List[NodeInfo], err error) {
	return l, c.call(ctx, "GET", "/v1/nodes", nil, nil, &l)
}

// Node returns one node by name or ID.
func (c *Client) Node(ctx context.Context, ref string) (n NodeInfo, err error) {
	return n, c.call(ctx, "GET", "/v1/nodes/"+url.PathEscape(ref), nil, nil, &n)
}

// Networks lists the networks.
func (c *Client) Networks(ctx context.Context) (l List[NetworkInfo], err error) {
	return l, c.call(ctx, "GET", "/v1/networks", nil, nil, &l)
}

// Network returns one network by its name in the cluster, or by ID.
func (c *Client) Network(ctx context.Context, ref string, p Poll) (n NetworkDetail, err error) {
	return n, c.call(ctx, "GET", "/v1/networks/"+url.PathEscape(ref), p.query(), nil, &n)
}

// CreateNetwork makes a network that belongs to no stack.
func (c *Client) CreateNetwork(ctx context.Context, n CreateNetwork) (w Written, err error) {
	return w, c.call(ctx, "POST", "/v1/networks", nil, n, &w)
}

// RemoveNetwork removes one that nobody uses.
func (c *Client) RemoveNetwork(ctx context.Context, name, requestID string) (w Written, err error) {
	return w, c.call(ctx, "DELETE", "/v1/networks/"+url.PathEscape(name), url.Values{"request_id": {requestID}}, nil, &w)
}

// Events lists what happened after the event with the given number.
func (c *Client) Events(ctx context.Context, after uint64, p Poll) (l List[spec.Event], err error) {
	q := p.query()
	q.Set("after", strconv.FormatUint(after, 10))
	return l, c.call(ctx, "GET", "/v1/events", q, nil, &l)
}

// RecentEvents returns the newest n events, oldest first; Events goes on behind
// the last of them without a gap.
func (c *Client) RecentEvents(ctx context.Context, n int) (l List[spec.Event], err error) {
	return l, c.call(ctx, "GET", "/v1/events", url.Values{"tail": {strconv.Itoa(n)}}, nil, &l)
}

// Images lists the images of the node that answers.
func (c *Client) Images(ctx context.Context) (l List[Image], err error) {
	return l, c.call(ctx, "GET", "/v1/images", c.images(nil), nil, &l)
}

// LoadImages loads an OCI or Docker archive on the node that answers.
func (c *Client) LoadImages(ctx context.Context, archive io.Reader) (l List[Image], err error) {
	resp, err := c.request(ctx, "POST", "/v1/images/load", c.images(nil), archive, "application/x-tar")
	if err != nil {
		return l, err
	}
	defer resp.Body.Close()
	return l, json.NewDecoder(resp.Body).Decode(&l)
}

// PullImage pulls an image on the node that answers; progress is called for
// every line of it and may be nil.
func (c *Client) PullImage(ctx context.Context, p PullImage, progress func(PullProgress)) (Image, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return Image{}, fmt.Errorf("encode request: %w", err)
	}
	resp, err := c.request(ctx, "POST", "/v1/images/pull", c.images(nil), bytes.NewReader(b), "application/json")
	if err != nil {
		return Image{}, err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var l PullProgress
		if err := dec.Decode(&l); err != nil {
			return Image{}, fmt.Errorf("pull %s: the stream broke off: %w", p.Image, err)
		}
		switch {
		case l.Error != "":
			return Image{}, ErrorOfClass(l.Class, l.Error)
		case l.Image != nil:
			return *l.Image, nil
		case progress != nil:
			progress(l)
		}
	}
}

// RemoveImage removes an image from the node that answers.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.call(ctx, "DELETE", "/v1/images", c.images(url.Values{"image": {ref}}), nil, nil)
}

// Query encodes o for a URL.
func (o LogOptions) Query() url.Values {
	q := url.Values{"tail": {strconv.Itoa(o.Tail)}}
	if !o.Since.IsZero() {
		q.Set("since", o.Since.Format(time.RFC3339Nano))
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	return q
}

// ParseLogOptions is the inverse of LogOptions.Query.
func ParseLogOptions(q url.Values) (o LogOptions, err error) {
	o.Tail = -1
	if v := q.Get("tail"); v != "" {
		if o.Tail, err = strconv.Atoi(v); err != nil {
			return o, spec.Invalidf("tail=%q: want a number of lines", v)
		}
	}
	if v := q.Get("since"); v != "" {
		if o.Since, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return o, spec.Invalidf("since=%q: want a time such as 2026-01-02T15:04:05Z", v)
		}
	}
	o.Follow = q.Get("follow") == "true"
	return o, nil
}

// Logs calls fn for each line of a task's log, in order, until the log ends,
// fn fails or ctx is done.
func (c *Client) Logs(ctx context.Context, task string, o LogOptions, fn func(LogLine) error) error {
	resp, err := c.request(ctx, "GET", "/v1/tasks/"+url.PathEscape(task)+"/logs", o.Query(), nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10)); ; {
		var l LogLine
		if err := dec.Decode(&l); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read log of %s: %w", task, err)
		}
		if err := fn(l); err != nil {
			return err
		}
	}
}

// ExecIO are the caller's ends of an exec. Stdin may be nil.
type ExecIO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize delivers {width, height} of the terminal; may be nil.
	Resize <-chan [2]uint16
}

// Exec runs a command in a task's container and returns its exit code.
func (c *Client) Exec(ctx context.Context, task string, r ExecRequest, streams ExecIO) (int, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("encode exec request: %w", err)
	}
	if c.dial == nil {
		return 0, spec.Invalidf("exec: %s is called in a way that carries no exec", c.host)
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return 0, c.unreachable(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	path := "/v1/tasks/" + url.PathEscape(task) + "/exec?" + url.Values{"request": {string(b)}}.Encode()
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: wherry\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", path, ExecProtocol); err != nil {
		return 0, fmt.Errorf("start exec: %w", c.unreachable(err))
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return 0, fmt.Errorf("start exec: %w", c.unreachable(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return 0, readError(resp)
	}
	fw := NewFrameWriter(conn)
	if r.Stdin && streams.Stdin != nil {
		go func() {
			if _, err := io.Copy(fw.Stream(StreamStdin), streams.Stdin); err == nil {
				_ = fw.WriteFrame(StreamStdin, nil) // a broken connection shows on the reading side
			}
		}()
	}
	done := make(chan struct{})
	defer close(done)
	if streams.Resize != nil {
		go sendSizes(fw, streams.Resize, done)
	}
	for {
		stream, p, err := ReadFrame(br)
		if err != nil {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			return 0, fmt.Errorf("exec: the connection broke off: %w", err)
		}
		switch stream {
		case StreamStdout:
			_, err = streams.Stdout.Write(p)
		case StreamStderr:
			_, err = streams.Stderr.Write(p)
		case StreamEnd:
			var e ExecEnd
			if err := json.Unmarshal(p, &e); err != nil {
				return 0, fmt.Errorf("exec: bad last frame: %w", err)
			}
			if e.Error != "" {
				return e.ExitCode, ErrorOfClass(e.Class, e.Error)
			}
			return e.ExitCode, nil
		}
		if err != nil {
			return 0, fmt.Errorf("exec: write output: %w", err)
		}
	}
}

func sendSizes(fw *FrameWriter, sizes <-chan [2]uint16, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			p := []byte{byte(s[0] >> 8), byte(s[0]), byte(s[1] >> 8), byte(s[1])}
			if fw.WriteFrame(StreamResize, p) != nil {
				return
			}
		}
	}
}

// Report delivers a node's report; nil means that it has been committed.
func (c *Client) Report(ctx context.Context, r spec.Report) error {
	return c.call(ctx, "POST", "/v1/sessions/"+url.PathEscape(string(r.Node))+"/report", nil, r, nil)
}

// Content fetches a blob.
func (c *Client) Content(ctx context.Context, id spec.ContentID) ([]byte, error) {
	resp, err := c.request(ctx, "GET", "/v1/contents/"+url.PathEscape(string(id)), nil, nil, "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4*spec.MaxContent))
	if err != nil {
		return nil, fmt.Errorf("fetch content %s: %w", id, err)
	}
	return b, nil
}

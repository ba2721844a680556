package main

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"

	"wherry.dev/agent"
	"wherry.dev/agent/containerd"
	"wherry.dev/api"
	"wherry.dev/api/server"
	"wherry.dev/cluster"
	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// nodes knows the way to every node.
type nodes struct {
	member *cluster.Member
	own    *api.Client
}

func (n nodes) Transport(id spec.NodeID) (http.RoundTripper, error) {
	if id == n.member.Node() {
		return n.own.Transport(), nil
	}
	return n.member.Transport(id)
}

// imagePeers are the other nodes that live, which may have an image that this
// one lacks.
func imagePeers(m *cluster.Member, told *hearsay) func(context.Context) []containerd.Peer {
	return func(context.Context) []containerd.Peer {
		var out []containerd.Peer
		for _, p := range told.nodes() {
			if p.ID == m.Node() {
				continue
			}
			if t, err := m.Transport(p.ID); err == nil {
				out = append(out, containerd.Peer{Name: p.Name, Transport: t})
			}
		}
		return out
	}
}

// callerOf tells the server who a connection belongs to.
func callerOf(m *cluster.Member) server.IdentifyFunc {
	return func(cs *tls.ConnectionState) (server.Caller, bool) {
		c, ok := ca.PeerOf(*cs)
		return server.Caller{Kind: server.CallerKind(c.Kind), ID: c.ID, Role: c.Role, Cluster: c.Cluster, Key: c.Key, Expired: c.Expired}, ok
	}
}

// lastWord is the hearsay of a daemon that has just started: what an earlier
// life of it was told last, until a session says more.
func lastWord(info api.ClusterInfo, ok bool) *hearsay {
	h := &hearsay{}
	if ok {
		h.info.Store(&info)
	}
	return h
}

// enroller makes the member what the server wants.
type enroller struct{ *cluster.Member }

func (e enroller) Renew(ctx context.Context, c server.Caller, r api.RenewRequest) (api.RenewReply, error) {
	return e.Member.Renew(ctx, ca.Caller{Subject: ca.Subject{Kind: ca.Kind(c.Kind), ID: c.ID, Role: c.Role, Cluster: c.Cluster}, Key: c.Key, Expired: c.Expired}, r)
}

// fetch opens the archives of volumes that other nodes give to this one.
func fetch(way func(spec.NodeID) (http.RoundTripper, error)) func(context.Context, spec.VolumeTransfer) (io.ReadCloser, error) {
	return func(ctx context.Context, t spec.VolumeTransfer) (io.ReadCloser, error) {
		tr, err := way(t.Peer)
		if err != nil {
			return nil, err
		}
		return api.NewNodeClient(tr).GiveVolume(ctx, t.Volume)
	}
}

// tasks are the tasks of this host, for the node API.
type tasks struct {
	host    *agent.Agent
	runtime *containerd.Runtime
	dataDir string
}

func (t tasks) Logs(ctx context.Context, id spec.TaskID, o api.LogOptions, fn func(api.LogLine) error) error {
	over := func() bool { return !t.host.LogOpen(id) }
	return agent.ReadLogs(ctx, agent.LogDir(t.dataDir, id), agent.LogOptions{Tail: o.Tail, Since: o.Since, Follow: o.Follow, Done: over},
		func(l agent.LogLine) error {
			text := l.Text
			if !l.Partial {
				text += "\n"
			}
			return fn(api.LogLine{Time: l.Time, Stream: l.Stream, Log: text})
		})
}

func (t tasks) Exec(ctx context.Context, id spec.TaskID, r api.ExecRequest, s api.ExecIO) (int, error) {
	e := agent.Exec{Args: r.Args, Env: r.Env, User: r.User, Dir: r.Dir, TTY: r.TTY, Privileged: r.Privileged,
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr}
	sizes := make(chan agent.WindowSize, 1)
	e.Resize = sizes
	if r.Width > 0 && r.Height > 0 {
		sizes <- agent.WindowSize{Width: r.Width, Height: r.Height}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-s.Resize:
				if !ok {
					return
				}
				select {
				case sizes <- agent.WindowSize{Width: size[0], Height: size[1]}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return t.runtime.Exec(ctx, id, e)
}

// images are the images of this host.
type images struct{ runtime *containerd.Runtime }

func (i images) List(ctx context.Context) ([]api.Image, error) {
	list, err := i.runtime.ListImages(ctx)
	return apiImages(list), err
}

func (i images) Load(ctx context.Context, archive io.Reader) ([]api.Image, error) {
	list, err := i.runtime.Load(ctx, archive)
	return apiImages(list), err
}

func (i images) Pull(ctx context.Context, p api.PullImage, progress func(api.PullProgress)) (api.Image, error) {
	img, err := i.runtime.Pull(ctx, p.Image, containerd.PullOptions{Platform: p.Platform, Progress: func(pr containerd.PullProgress) {
		progress(api.PullProgress{Done: pr.Done, Total: pr.Total})
	}})
	return apiImage(img), err
}

func (i images) Remove(ctx context.Context, ref string) error { return i.runtime.RemoveImage(ctx, ref) }

func apiImages(list []containerd.Image) []api.Image {
	out := make([]api.Image, 0, len(list))
	for _, i := range list {
		out = append(out, apiImage(i))
	}
	return out
}

func apiImage(i containerd.Image) api.Image {
	return api.Image{Name: i.Name, Digest: i.Digest, Size: i.Size, Platforms: i.Platforms, Created: i.Created, InUse: i.Used}
}

// resolver finds digests by way of this host's images.
type resolver struct{ runtime *containerd.Runtime }

func (r resolver) Resolve(ctx context.Context, image, platform string, fresh bool) (string, error) {
	if !fresh {
		return r.runtime.Resolve(ctx, image, platform)
	}
	img, err := r.runtime.Pull(ctx, image, containerd.PullOptions{Platform: platform})
	return img.Digest, err
}

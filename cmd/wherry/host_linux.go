package main

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"time"

	"wherry.dev/agent"
	"wherry.dev/agent/containerd"
	"wherry.dev/api"
	"wherry.dev/cluster"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

// follow keeps a session with the manager and hands every document to the part
// of the host that it is for. It returns when ctx ends.
func follow(ctx context.Context, cl *api.Client, m *cluster.Member, network *overlay.Host, host *agent.Agent, log *slog.Logger) error {
	select {
	case <-m.Ready():
	case <-ctx.Done():
		return nil
	}
	networks := map[spec.NetworkID]spec.HostNetwork{}
	var known bool // Wanted has come, so networks is complete
	for {
		err := cl.Session(ctx, m.Node(), func(d api.Document) error {
			switch {
			case d.Network != nil:
				networks[d.Network.Network.ID] = *d.Network
			case d.Wanted != nil:
				known = true
				maps.DeleteFunc(networks, func(id spec.NetworkID, _ spec.HostNetwork) bool {
					return !slices.Contains(d.Wanted.Networks, id)
				})
			}
			if known && (d.Network != nil || d.Wanted != nil) {
				sorted := slices.Sorted(maps.Keys(networks))
				all := make([]spec.HostNetwork, 0, len(sorted))
				for _, id := range sorted {
					all = append(all, networks[id])
				}
				network.Set(all)
			}
			if d.Wanted != nil {
				host.Set(*d.Wanted)
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("session broke off", "err", err)
		select {
		case <-time.After(200 * time.Millisecond): // before the next try
		case <-ctx.Done():
			return nil
		}
	}
}

// nodes knows the way to the one node there is.
type nodes struct {
	id  spec.NodeID
	own *api.Client
}

func (n nodes) Transport(id spec.NodeID) (http.RoundTripper, error) {
	if id != n.id {
		return nil, spec.Unavailablef("node %s is not connected", id)
	}
	return n.own.Transport(), nil
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

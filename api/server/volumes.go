package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Volumes are the instances of volumes on this node.
type Volumes interface {
	// VolumeSize is what an instance takes; nothing when there is none.
	VolumeSize(ctx context.Context, id spec.VolumeID) (bytes, files int64, err error)
	// ExportVolume writes an archive of an instance.
	ExportVolume(ctx context.Context, id spec.VolumeID, w io.Writer) error
	// ImportVolume replaces an instance that nobody uses by an archive, as a whole
	// or not at all.
	ImportVolume(ctx context.Context, id spec.VolumeID, r io.Reader) error
	// GiveVolume writes an archive to a node that the instance is to be moved to.
	GiveVolume(ctx context.Context, id spec.VolumeID, peer spec.NodeID, w io.Writer) error
}

// sizeTime bounds how long a list of volumes waits for their sizes.
const sizeTime = 10 * time.Second

func (s *Server) volumeList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	l := api.List[api.VolumeInfo]{Index: snap.Index(), Items: s.volumeInfo(r, snap, snap.Volumes())}
	return writeJSON(w, l)
}

func (s *Server) volumeGet(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	v, err := findVolume(snap, r.PathValue("volume"))
	if err != nil {
		return err
	}
	return writeJSON(w, s.volumeInfo(r, snap, []*spec.Volume{v})[0])
}

// findVolume finds a volume by its cluster-wide name, or by its ID.
func findVolume(snap *store.Snapshot, ref string) (*spec.Volume, error) {
	if v := snap.VolumeNamed(ref); v != nil {
		return v, nil
	}
	if v := snap.Volume(spec.VolumeID(ref)); v != nil {
		return v, nil
	}
	return nil, spec.NotFoundf("there is no volume %s", ref)
}

// volumeInfo describes volumes, with ?size=true also what they take.
func (s *Server) volumeInfo(r *http.Request, snap *store.Snapshot, list []*spec.Volume) []api.VolumeInfo {
	users := volumeServices(snap)
	out := make([]api.VolumeInfo, len(list))
	for i, v := range list {
		out[i] = api.VolumeInfo{ID: v.ID, Name: v.Name, Stack: v.Stack, Anonymous: v.Anonymous, Removing: v.Removing, Shared: v.Spec.Shared(),
			Services: users[v.Name], InUse: len(snap.VolumeUsers(v.ID)) > 0, Options: v.Spec.DriverOpts, Labels: v.Spec.Labels, Nodes: []string{}}
		if v.Anonymous {
			out[i].Services = []string{spec.ServiceKey(v.Stack, v.Service)}
		} else if out[i].Services == nil {
			out[i].Services = []string{}
		}
		if v.Move != nil {
			out[i].Move = &api.VolumeMove{To: nodeName(snap, v.Move.To), Problem: v.Move.Problem}
		}
		for _, h := range v.Homes {
			if n := snap.Node(h); n != nil && !v.Spec.Shared() {
				out[i].Nodes = append(out[i].Nodes, n.Name)
			}
		}
	}
	if r.URL.Query().Get("size") == "true" {
		s.measure(r.Context(), snap, list, out)
	}
	return out
}

func nodeName(snap *store.Snapshot, id spec.NodeID) string {
	if n := snap.Node(id); n != nil {
		return n.Name
	}
	return string(id)
}

// volumeServices are the services that mount a volume, by its name.
func volumeServices(snap *store.Snapshot) map[string][]string {
	out := map[string][]string{}
	for _, svc := range snap.Services() {
		head := snap.Stack(svc.Stack)
		if head == nil {
			continue
		}
		rev := snap.StackRevision(svc.Stack, head.Revision)
		for _, m := range svc.Spec.Template.Mounts {
			if m.Type != spec.MountVolume || m.Source == "" || rev == nil {
				continue
			}
			name := rev.Spec.Volumes[m.Source].ClusterName(svc.Stack, m.Source)
			if !slices.Contains(out[name], svc.Key()) {
				out[name] = append(out[name], svc.Key())
			}
		}
	}
	for _, l := range out { // each on its own
		slices.Sort(l)
	}
	return out
}

// measure asks all nodes at once for the sizes of what they hold; each for one
// volume after the other.
func (s *Server) measure(ctx context.Context, snap *store.Snapshot, list []*spec.Volume, out []api.VolumeInfo) {
	ctx, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	type place struct{ volume, instance int }
	work := map[spec.NodeID][]place{}
	for i, v := range list {
		if v.Spec.Shared() {
			continue
		}
		for _, h := range v.Homes {
			if n := snap.Node(h); n != nil {
				work[h] = append(work[h], place{i, len(out[i].Instances)})
				out[i].Instances = append(out[i].Instances, api.VolumeInstance{Node: n.Name})
			}
		}
	}
	var wg sync.WaitGroup
	for node, places := range work { // each on its own
		wg.Go(func() {
			for _, p := range places {
				in := &out[p.volume].Instances[p.instance]
				size, err := s.sizeOn(ctx, snap.Node(node), list[p.volume].ID)
				in.Bytes, in.Files = size.Bytes, size.Files
				switch {
				case ctx.Err() != nil:
					in.Problem = "it takes too long to add it up"
				case err != nil:
					in.Problem = err.Error()
				}
			}
		})
	}
	wg.Wait()
}

func (s *Server) sizeOn(ctx context.Context, n *spec.Node, id spec.VolumeID) (api.VolumeSize, error) {
	if n.State == spec.NodeDown {
		return api.VolumeSize{}, spec.Unavailablef("node %s is down", n.Name)
	}
	tr, err := s.Nodes.Transport(n.ID)
	if err != nil {
		return api.VolumeSize{}, err
	}
	return api.NewNodeClient(tr).VolumeSize(ctx, id)
}

func (s *Server) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	var in api.CreateVolume
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := spec.ValidateVolume(in.Name, &in.Spec); err != nil {
		return err
	}
	cmd := &store.CreateVolume{Name: in.Name, Spec: in.Spec}
	if in.Node != "" {
		n, err := s.nodeNamed(r, in.Node)
		if err != nil {
			return err
		}
		cmd.Home = n.ID
	}
	return s.write(w, r, store.Command{RequestID: in.RequestID, Author: in.Author, CreateVolume: cmd})
}

// nodeNamed finds a node in a state that holds every acknowledged write.
func (s *Server) nodeNamed(r *http.Request, ref string) (*spec.Node, error) {
	if err := s.Proposer.Linearizable(r.Context()); err != nil {
		return nil, err
	}
	return findNode(s.Store.Snapshot(), ref)
}

func (s *Server) write(w http.ResponseWriter, r *http.Request, c store.Command) error {
	res, err := s.propose(r.Context(), c)
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}

func (s *Server) volumeMove(w http.ResponseWriter, r *http.Request) error {
	var in api.MoveVolume
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	n, err := s.nodeNamed(r, in.Node)
	if err != nil {
		return err
	}
	return s.write(w, r, store.Command{RequestID: in.RequestID, Author: in.Author,
		MoveVolume: &store.MoveVolume{Name: r.PathValue("volume"), To: n.ID, Stop: in.Stop}})
}

func (s *Server) volumeDelete(w http.ResponseWriter, r *http.Request) error {
	return s.write(w, r, store.Command{RequestID: r.URL.Query().Get("request_id"),
		RemoveVolumes: &store.RemoveVolumes{Names: []string{r.PathValue("volume")}}})
}

// instance finds the one instance that a call about the data of a volume means.
func (s *Server) instance(r *http.Request, restore bool) (*spec.Volume, *spec.Node, error) {
	snap, err := s.snapshot(r)
	if err != nil {
		return nil, nil, err
	}
	v, err := findVolume(snap, r.PathValue("volume"))
	if err != nil {
		return nil, nil, err
	}
	users := snap.VolumeUsers(v.ID)
	switch {
	case v.Removing:
		return nil, nil, spec.Conflictf("volume %s is being removed", v.Name)
	case v.Spec.Shared():
		return nil, nil, spec.Invalidf("volume %s has its data on no node but on %s: see to it there", v.Name, v.Spec.DriverOpts["device"])
	case restore && len(v.Spec.DriverOpts) > 0:
		return nil, nil, spec.Invalidf("volume %s is what driver_opts make of a device of its node: write to that, or into a task that mounts it", v.Name)
	case len(v.Spec.DriverOpts) > 0 && len(users) == 0:
		return nil, nil, spec.Conflictf("volume %s is mounted only while a task uses it", v.Name)
	case restore && v.Move != nil:
		return nil, nil, spec.Conflictf("volume %s is being moved", v.Name)
	case restore && len(users) > 0:
		return nil, nil, spec.Conflictf("volume %s is used by task %s: stop its users first, by \"wherry service scale %s=0\"", v.Name, taskName(snap, users[0]), spec.ServiceKey(users[0].Stack, users[0].Service))
	}
	home := ""
	if ref := r.URL.Query().Get("node"); ref != "" {
		n, err := findNode(snap, ref)
		if err != nil {
			return nil, nil, err
		}
		home = string(n.ID)
	}
	switch {
	case len(v.Homes) == 0 && !restore:
		return nil, nil, spec.Conflictf("volume %s has no data yet", v.Name)
	case len(v.Homes) == 0 && home == "":
		return nil, nil, spec.Conflictf("volume %s is on no node yet: name one", v.Name)
	case len(v.Homes) == 0:
		if _, err := s.propose(r.Context(), store.Command{MoveVolume: &store.MoveVolume{Name: v.Name, To: spec.NodeID(home)}}); err != nil {
			return nil, nil, err
		}
	case len(v.Homes) > 1 && home == "":
		return nil, nil, spec.Conflictf("volume %s has an instance on each of %d nodes: name one", v.Name, len(v.Homes))
	case home == "":
		home = string(v.Homes[0])
	case !slices.Contains(v.Homes, spec.NodeID(home)):
		return nil, nil, spec.Conflictf("volume %s is not on node %s but on %s", v.Name, nodeName(snap, spec.NodeID(home)), nodeName(snap, v.Homes[0]))
	}
	n := snap.Node(spec.NodeID(home))
	if n == nil {
		return nil, nil, spec.Conflictf("the only copy of volume %s was on node %s, which was removed from the cluster", v.Name, home)
	}
	return v, n, nil
}

func (s *Server) volumeData(restore bool) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		v, n, err := s.instance(r, restore)
		if err != nil {
			return err
		}
		return s.toNode(w, r, n, "/v1/node/volumes/"+url.PathEscape(string(v.ID))+"/data")
	}
}

func (s *Server) nodeVolumeSize(w http.ResponseWriter, r *http.Request) error {
	bytes, files, err := s.Volumes.VolumeSize(r.Context(), spec.VolumeID(r.PathValue("volume")))
	if err != nil {
		return err
	}
	return writeJSON(w, api.VolumeSize{Bytes: bytes, Files: files})
}

func (s *Server) nodeVolumeExport(w http.ResponseWriter, r *http.Request) error {
	return s.stream(w, r, func(out io.Writer) error {
		return s.Volumes.ExportVolume(r.Context(), spec.VolumeID(r.PathValue("volume")), out)
	})
}

func (s *Server) nodeVolumeGive(w http.ResponseWriter, r *http.Request) error {
	return s.stream(w, r, func(out io.Writer) error {
		return s.Volumes.GiveVolume(r.Context(), spec.VolumeID(r.PathValue("volume")), spec.NodeID(callerOf(r).ID), out)
	})
}

// stream sends an archive. When that fails after its beginning, the connection
// is cut, which is the only way left to say that it is not whole.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, write func(io.Writer) error) error {
	out := &begun{w: w}
	err := write(out)
	if err == nil || !out.begun {
		return err
	}
	if !errors.Is(err, context.Canceled) {
		s.Logger.Warn("archive of a volume is not whole", "volume", r.PathValue("volume"), "err", err)
	}
	panic(http.ErrAbortHandler)
}

// begun is a response that knows whether it has begun.
type begun struct {
	w     http.ResponseWriter
	begun bool
}

func (b *begun) Write(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.w.Header().Set("Content-Type", "application/zstd")
	}
	return b.w.Write(p)
}

func (s *Server) nodeVolumeImport(w http.ResponseWriter, r *http.Request) error {
	if err := s.Volumes.ImportVolume(r.Context(), spec.VolumeID(r.PathValue("volume")), r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

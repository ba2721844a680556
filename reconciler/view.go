package reconciler

import (
	"net/netip"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// view is a snapshot with the indexes that the passes need.
type view struct {
	snap *store.Snapshot
	now  time.Time
	// seen is what the present leader has seen itself.
	seen Seen

	all       []*spec.Task
	tasks     map[string][]*spec.Task // by key of the service, each by ID
	services  []*spec.Service
	byKey     map[string]*spec.Service // by key
	nodeList  []*spec.Node
	nodes     map[spec.NodeID]*spec.Node
	volumes   map[string]*spec.Volume            // by cluster-wide name
	networks  map[string]*spec.Network           // by cluster-wide name, as far as asked for
	heads     map[string]*spec.StackRevision     // newest revisions of stacks, by name, as far as asked for
	templates map[spec.RevisionID]*spec.Template // as far as asked for
}

func newView(s *store.Snapshot, now time.Time) *view {
	v := newGlance(s)
	v.now, v.all, v.services = now, s.Tasks(), s.Services()
	v.tasks, v.byKey, v.volumes = map[string][]*spec.Task{}, map[string]*spec.Service{}, map[string]*spec.Volume{}
	for _, t := range v.all {
		k := serviceKey(t)
		v.tasks[k] = append(v.tasks[k], t)
	}
	for _, x := range v.services {
		v.byKey[x.Key()] = x
	}
	for _, x := range s.Volumes() {
		v.volumes[x.Name] = x
	}
	return v
}

// newGlance returns a view without tasks, services and volumes, which costs no
// more than there are nodes: documents are made for every node at every change.
func newGlance(s *store.Snapshot) *view {
	v := &view{
		snap: s, nodeList: s.Nodes(), nodes: map[spec.NodeID]*spec.Node{},
		networks: map[string]*spec.Network{}, heads: map[string]*spec.StackRevision{},
		templates: map[spec.RevisionID]*spec.Template{},
	}
	for _, x := range v.nodeList {
		v.nodes[x.ID] = x
	}
	return v
}

// network returns the network with a cluster-wide name; nil when there is none.
func (v *view) network(name string) *spec.Network {
	n, ok := v.networks[name]
	if !ok {
		n = v.snap.NetworkNamed(name)
		v.networks[name] = n
	}
	return n
}

// stack returns what a stack declares; nil when there is none.
func (v *view) stack(name string) *spec.Stack {
	if r := v.head(name); r != nil {
		return &r.Spec
	}
	return nil
}

// head returns the newest revision of a stack; nil when there is none.
func (v *view) head(name string) *spec.StackRevision {
	r, ok := v.heads[name]
	if ok {
		return r
	}
	if row := v.snap.Stack(name); row != nil {
		r = v.snap.StackRevision(name, row.Revision)
	}
	v.heads[name] = r
	return r
}

func serviceKey(t *spec.Task) string { return spec.ServiceKey(t.Stack, t.Service) }

// template returns what a task runs; nil when its revision is not known.
func (v *view) template(id spec.RevisionID) *spec.Template {
	if t, ok := v.templates[id]; ok {
		return t
	}
	var t *spec.Template
	if r := v.snap.Revision(id); r != nil {
		t = &r.Template
	}
	v.templates[id] = t
	return t
}

// networkName returns the cluster-wide name of a stack's network.
func (v *view) networkName(stack, short string) string {
	if s := v.stack(stack); s != nil {
		return s.Networks[short].ClusterName(stack, short)
	}
	return spec.ScopedName(stack, short)
}

// volumeName returns the cluster-wide name of a stack's volume.
func (v *view) volumeName(stack, short string) string {
	if s := v.stack(stack); s != nil {
		return s.Volumes[short].ClusterName(stack, short)
	}
	return spec.ScopedName(stack, short)
}

// nodeUp reports whether a node exists and lives.
func (v *view) nodeUp(id spec.NodeID) bool {
	n := v.nodes[id]
	return n != nil && n.State == spec.NodeReady
}

// serves reports whether a task takes traffic: it is ready and its node lives.
func (v *view) serves(t *spec.Task) bool { return t.Ready() && v.nodeUp(t.Node) }

// holdsAddress reports whether the addresses of t are not to be given away. A
// lost task holds them as long as its node may still run the container: until
// the node has confirmed the end, which makes the task another than lost, or
// does not exist any more. The store applies the same rule.
func (v *view) holdsAddress(t *spec.Task) bool {
	return !t.Status.State.Terminal() || t.Status.State == spec.TaskLost && v.nodes[t.Node] != nil
}

// confirmWait is how long the row of a lost task waits for the confirmation of
// a node that is alive. A node that was reinstalled knows nothing to confirm.
const confirmWait = time.Minute

// mayReap says whether the row of a task that is over may go, and if not, from
// when on it may; the zero time means that only a change can tell.
func (v *view) mayReap(t *spec.Task) (ok bool, at time.Time) {
	if at, _ := v.mayRun(t); v.now.Before(at) {
		return false, at
	}
	if !v.holdsAddress(t) {
		return true, time.Time{}
	}
	if !v.nodeUp(t.Node) {
		return false, time.Time{}
	}
	at = t.Status.Since.Add(confirmWait)
	return !v.now.Before(at), at
}

// taskName returns the name of a task for people.
func (v *view) taskName(t *spec.Task) string { return spec.TaskName(t, v.nodeName(t.Node)) }

func (v *view) nodeName(id spec.NodeID) string {
	if n := v.nodes[id]; n != nil && n.Name != "" {
		return n.Name
	}
	return string(id)
}

// ipOf returns an address of an Address, without prefix length; ok is false when
// it has none of the family.
func ipOf(a spec.Address, six bool) (ip netip.Addr, ok bool) {
	text := a.IP
	if six {
		text = a.IP6
	}
	if text == "" {
		return ip, false
	}
	p, err := netip.ParsePrefix(text)
	return p.Addr(), err == nil
}

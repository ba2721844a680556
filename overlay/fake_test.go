//go:build linux

package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"

	"wherry.dev/spec"
)

// fakeKernel is a kernel that holds a State.
type fakeKernel struct {
	mu  sync.Mutex
	st  State
	log []string
	// fail gives errors to operations by their text.
	fail map[string]error
	// taken are ports that others hold.
	taken map[Claim]error
	// parents are the host's own interfaces.
	parents map[string]Parent
	// looking is called by observe between reading and returning.
	looking func()
	// applying is called before operations are done.
	applying func(ops []Op)
	// looks are the tasks that were looked into.
	looks []spec.TaskID
	dirty func()
}

func (k *fakeKernel) take() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.log
	k.log = nil
	return out
}

// damage changes the kernel behind the Host's back; with tell it announces it.
func (k *fakeKernel) damage(f func(State), tell bool) {
	k.mu.Lock()
	f(k.st)
	dirty := k.dirty
	k.mu.Unlock()
	if tell {
		dirty()
	}
}

func (k *fakeKernel) apply(ops []Op) []error {
	if k.applying != nil {
		k.applying(ops)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(ops))
	for i, o := range ops {
		if errs[i] = k.fail[o.String()]; errs[i] == nil {
			errs[i] = k.applyLocked(o)
		}
		if errs[i] == nil {
			k.log = append(k.log, o.String())
		}
	}
	return errs
}

func (k *fakeKernel) applyLocked(o Op) error {
	st := k.st
	switch x := o.Object.(type) {
	case *LinkChange:
		return k.linkLocked(o.Verb, x)
	case Program:
		set(st.Programs, x, o.Verb)
	case Addr:
		set(st.Addrs, x, o.Verb)
		if p, err := netip.ParsePrefix(x.IP); err == nil && o.Verb == Delete { // with its route
			maps.DeleteFunc(st.Routes, func(r Route, _ bool) bool { return r.Link == x.Link && r.Dst == p.Masked().String() })
		}
	case Route:
		set(st.Routes, x, o.Verb)
	case FDB:
		if _, ok := st.Links[LinkID{Name: x.Link}]; !ok {
			return errors.New("no such link")
		}
		if x.Dst != "" { // one for each address
			maps.DeleteFunc(st.FDB, func(f FDB, _ bool) bool { return f.Dst != "" && f.Link == x.Link && f.MAC == x.MAC })
		}
		set(st.FDB, x, o.Verb)
	case Neigh:
		if _, ok := st.Links[LinkID{Name: x.Link}]; !ok {
			return errors.New("no such link")
		}
		maps.DeleteFunc(st.Neighs, func(n Neigh, _ bool) bool { return n.Link == x.Link && n.IP == x.IP })
		set(st.Neighs, x, o.Verb)
	case Sysctl:
		st.Sysctls[x.Key] = x.Value
	case Claim:
		set(st.Claims, x, o.Verb)
	case TableChange:
		if o.Verb == Delete {
			delete(st.Tables, x.Table)
		} else {
			st.Tables[x.Table] = Table{Sets: map[string]Set{}, Chains: map[string]Chain{}}
		}
	case SetChange:
		if o.Verb == Delete {
			delete(st.Tables[x.Table].Sets, x.Set)
		} else {
			st.Tables[x.Table].Sets[x.Set] = Set{}
		}
	case Element:
		s := st.Tables[x.Table].Sets[x.Set]
		_, there := s[x.Key]
		switch {
		case o.Verb == Delete && !there, o.Verb == Add && there:
			return fmt.Errorf("element is there: %v", there)
		case o.Verb == Delete:
			delete(s, x.Key)
		default:
			s[x.Key] = x.Value
		}
	case *ChainChange:
		if o.Verb == Delete {
			delete(st.Tables[x.Table].Chains, x.Name)
		} else {
			st.Tables[x.Table].Chains[x.Name] = x.Chain
		}
	case Flow:
	default:
		return fmt.Errorf("operation %T is not known", x)
	}
	return nil
}

// cloneTables returns tables whose sets nothing else shares.
func cloneTables(tables map[TableID]Table) map[TableID]Table {
	out := map[TableID]Table{}
	for id, t := range tables {
		c := Table{Sets: map[string]Set{}, Chains: maps.Clone(t.Chains)}
		for s := range t.Sets {
			c.Sets[s] = maps.Clone(t.Sets[s])
		}
		out[id] = c
	}
	return out
}

func set[K comparable](m map[K]bool, key K, verb Verb) {
	if verb == Delete {
		delete(m, key)
	} else {
		m[key] = true
	}
}

// linkLocked behaves as the kernel in what matters: a pair comes and goes
// together, and what hangs on a link goes with it.
func (k *fakeKernel) linkLocked(verb Verb, c *LinkChange) error {
	st := k.st
	if verb == Delete || verb == Replace {
		peer := LinkID{}
		for id := range st.Links {
			if id.NS != "" && st.Links[c.ID].Peer == id {
				peer = id
			}
		}
		st.dropLinks(func(l LinkID) bool { return l == c.ID || peer != (LinkID{}) && l == peer })
		for id, l := range st.Links {
			if l.Master == c.ID.Name && id.NS == "" {
				l.Master, l.Port = "", Port{}
				st.Links[id] = l
				maps.DeleteFunc(st.FDB, func(f FDB, _ bool) bool { return f.Link == id.Name && f.Dst == "" })
			}
		}
		if verb == Delete {
			return nil
		}
	}
	if c.Want.Kind == kindMacvlan {
		own := st.Links[LinkID{Name: c.Want.Parent}]
		if p, theirs := k.parents[c.Want.Parent]; own.Kind != kindVLAN && (!theirs || p.Why != "") {
			return fmt.Errorf("make a device: %w", &parentError{c.Want.Parent, cmp.Or(p.Why, noInterface)})
		}
	}
	if m := c.Want.Master; m != "" {
		if _, ok := st.Links[LinkID{Name: m}]; !ok {
			return errNoBridge
		}
	}
	if _, ok := st.Links[c.ID]; ok && verb == Add {
		return os.ErrExist
	}
	st.Links[c.ID] = c.Want
	if peer := c.Want.Peer; verb != Change && peer != (LinkID{}) {
		st.Links[peer] = Link{Kind: kindVeth, MAC: c.Want.PeerMAC, MTU: c.Want.MTU, Up: true}
	}
	return nil
}

func (k *fakeKernel) observe(q query) (observation, error) {
	k.mu.Lock()
	o := observation{state: NewState(), host: q.host, inside: map[spec.TaskID]bool{}, parents: maps.Clone(k.parents)}
	for _, t := range q.inside {
		o.inside[t] = true
		if _, ok := k.st.Links[LinkID{t, "lo"}]; !ok {
			k.st.Links[LinkID{t, "lo"}] = Link{Kind: kindLoopback}
		}
	}
	o.state.merge(k.st)
	o.state.Tables = cloneTables(k.st.Tables)
	k.looks = append(k.looks, q.inside...)
	o.state.dropInside(func(t spec.TaskID) bool { return !o.inside[t] })
	if !q.host {
		o.state.Claims = map[Claim]bool{}
		maps.DeleteFunc(o.state.Tables, func(t TableID, _ Table) bool { return t.NS == "" })
		k.mu.Unlock()
		return o, nil
	}
	looking := k.looking
	k.mu.Unlock()
	if looking != nil {
		looking()
	}
	return o, nil
}

func (k *fakeKernel) claim(claims []Claim) map[Claim]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	refused := map[Claim]error{}
	for _, c := range claims {
		if err := k.taken[c]; err != nil {
			refused[c] = err
			delete(k.st.Claims, c)
		} else {
			k.st.Claims[c] = true
		}
	}
	return refused
}

func (k *fakeKernel) run(ctx context.Context, dirty func()) error {
	k.mu.Lock()
	k.dirty = dirty
	k.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (k *fakeKernel) close() {}

// fakeSpaces keeps no namespaces, only what is said of them.
type fakeSpaces struct {
	mu    sync.Mutex
	boxes map[spec.TaskID]spec.Sandbox
	gone  []spec.TaskID
}

func (f *fakeSpaces) load() (out []spec.Sandbox, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.boxes {
		out = append(out, s)
	}
	return out, nil
}

func (f *fakeSpaces) make(s spec.Sandbox) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[s.Task] = s
	return f.path(s.Task), nil
}

func (f *fakeSpaces) path(t spec.TaskID) string { return "/run/netns/" + string(t) }

func (f *fakeSpaces) exists(t spec.TaskID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.boxes[t]
	return ok
}

func (f *fakeSpaces) condemn(spec.TaskID) error { return nil }

func (f *fakeSpaces) remove(t spec.TaskID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.boxes, t)
	f.gone = append(f.gone, t)
	return nil
}

package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

var stackNames = []string{"shop", "blog"}

// use makes a random command of a person.
func (w *World) use() {
	name := stackNames[w.rng.IntN(len(stackNames))]
	var c store.Command
	switch n := w.rng.IntN(100); {
	case n < 44:
		c.PutStack = &store.PutStack{Stack: w.stack(name, false), KeepOthers: w.chance(20)}
	case n < 50:
		c.RollbackStack = &store.RollbackStack{Stack: name, Service: []string{"", "", "web"}[w.rng.IntN(3)]}
	case n < 53 && w.upgraded() && w.chance(60):
		c.MoveTasks = &store.MoveTasks{}
		for _, m := range reconciler.Rebalance(w.store.Snapshot(), "", 1+w.rng.IntN(5), w.clock()) {
			c.MoveTasks.Tasks = append(c.MoveTasks.Tasks, m.Task)
		}
	case n < 55:
		action := []store.SteerAction{store.SteerPause, store.SteerResume, store.SteerRestart, store.SteerRun, store.SteerPromote}[w.rng.IntN(5)]
		c.SteerService = &store.SteerService{Stack: name, Service: []string{"web", "db", "solo", "sums", "migrate"}[w.rng.IntN(5)], Action: action}
	case n < 62:
		c.ScaleService = &store.ScaleService{Stack: name, Service: []string{"web", "api", "sums"}[w.rng.IntN(3)], Replicas: w.rng.IntN(5)}
	case n < 70:
		c.RemoveStack = &store.RemoveStack{Name: name, Volumes: w.chance(50)}
	case n < 82:
		a := []spec.Availability{spec.NodeActive, spec.NodeDrain, spec.NodePaused}[w.rng.IntN(3)]
		c.SetNode = &store.SetNode{ID: w.hosts[w.rng.IntN(len(w.hosts))].id, Availability: &a, StopPinned: a == spec.NodeDrain && w.chance(30)}
	case n < 86:
		disk := []string{"ssd", "hdd"}[w.rng.IntN(2)]
		c.SetNode = &store.SetNode{ID: w.hosts[w.rng.IntN(len(w.hosts))].id, Labels: map[string]*string{"disk": &disk}}
	case n < 89:
		role := []spec.NodeRole{spec.RoleManager, spec.RoleWorker}[w.rng.IntN(2)]
		c.SetRole = &store.SetRole{ID: w.hosts[w.rng.IntN(len(w.hosts))].id, Role: role}
	case n < 93:
		w.member()
		return
	case n < 95:
		w.rotate()
		return
	case n < 97:
		c.CreateNetwork = &store.CreateNetwork{Name: "edge", Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}}
	case n < 98:
		c.RemoveNetwork = &store.RemoveNetwork{Name: "edge"}
	case n < 99:
		w.reroute()
		return
	default:
		c.RemoveVolumes = &store.RemoveVolumes{Names: []string{name + "_data"}}
	}
	if c.RemoveStack != nil && w.chance(30) && w.store.Snapshot().Format() >= store.AddressFormat {
		c.RemoveStack, c.MoveVolume = nil, &store.MoveVolume{Name: name + "_data", To: w.hosts[w.rng.IntN(len(w.hosts))].id, Stop: w.chance(80)}
	}
	res := w.apply(c)
	w.note("a user sends %s for %s: %v", c.Kind(), name, res.Err)
}

// member takes a host out of the cluster, or brings one in.
func (w *World) member() {
	switch {
	case len(w.left) > 0 && w.chance(40):
		i := w.rng.IntN(len(w.left))
		h := w.left[i]
		w.left = slices.Delete(w.left, i, i+1)
		w.enter(h, spec.RoleWorker)
	case len(w.hosts) < 6 && w.chance(50):
		w.join()
	default:
		i := w.rng.IntN(len(w.hosts))
		h := w.hosts[i]
		res := w.apply(store.Command{Time: w.clock(), RemoveNode: &store.RemoveNode{ID: h.id, Force: w.chance(70)}})
		w.note("a user removes %s: %v", h.name, res.Err)
		if res.Err == nil {
			w.hosts = slices.Delete(w.hosts, i, i+1)
			w.left = append(w.left, h)
		}
	}
}

// lastWill declares what can come true, so that the world may come to rest.
func (w *World) lastWill() {
	for _, name := range stackNames {
		switch w.rng.IntN(4) {
		case 0:
			w.apply(store.Command{RemoveStack: &store.RemoveStack{Name: name, Volumes: w.chance(50)}})
		default:
			stack := w.stack(name, true)
			if stack.Networks["edge"].External { // unless there is one
				w.apply(store.Command{CreateNetwork: &store.CreateNetwork{Name: "edge", Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}}})
			}
			res := w.apply(store.Command{PutStack: &store.PutStack{Stack: stack}})
			w.note("the last stack %s: %v", name, res.Err)
			if res.Err != nil { // its volumes are being removed: the old one may be broken
				w.apply(store.Command{RemoveStack: &store.RemoveStack{Name: name}})
			}
		}
	}
}

// stack draws a stack. A good one has no task that cannot start.
func (w *World) stack(name string, good bool) spec.Stack {
	s := spec.Stack{
		Name: name,
		Networks: map[string]spec.NetworkSpec{
			"default": {Driver: spec.DriverOverlay},
			"back":    {Driver: spec.DriverOverlay, Internal: true},
		},
		Volumes:  map[string]spec.VolumeSpec{"data": {}},
		Services: map[string]spec.ServiceSpec{},
	}
	if w.scarce && w.chance(50) {
		s.Networks["back"] = spec.NetworkSpec{Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: fmt.Sprintf("10.9.%d.0/29", w.rng.IntN(3))}}
	}
	image := func() string {
		if good || w.chance(70) {
			return fmt.Sprint("app:", w.rng.IntN(4))
		}
		return []string{"missing:1", "broken:1"}[w.rng.IntN(2)]
	}
	web := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "default", "back")}
	if w.chance(50) {
		n := 1 + w.rng.IntN(4)
		web.Replicas = &n
	}
	web.Ports = []spec.Port{{Target: 80, Protocol: "tcp", Mode: spec.PublishIngress}}
	web.Template.Mounts = []spec.Mount{{Type: spec.MountVolume, Target: "/cache"}}
	if w.chance(20) {
		web.Template.Restart.MaxAttempts = 1 + w.rng.IntN(2)
	}
	if w.chance(30) {
		web.Placement.Constraints = []string{"node.labels.disk!=hdd"}
	}
	if w.chance(30) {
		web.Placement.Spread = []string{"node.labels.disk"}
	}
	if w.chance(20) {
		web.EndpointMode = spec.EndpointDNSRR
	}
	if w.chance(15) { // it leaves a network, or comes back
		web.Template.Networks = web.Template.Networks[:1]
	}
	if w.chance(30) { // one stack has it, the others use it
		edge := spec.NetworkSpec{Driver: spec.DriverOverlay, Name: "edge", External: name != "shop"}
		s.Networks["edge"] = edge
		web.Template.Networks = append(web.Template.Networks, spec.Attachment{Network: "edge"})
	}
	s.Services["web"] = web
	db := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "back")}
	db.Template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}}
	db.Template.Resources.ReserveMemory = int64(w.rng.IntN(3)) << 29
	if w.upgraded() && w.chance(30) {
		db.Placement.Priority, db.Placement.Preempt = 1+w.rng.IntN(2), w.chance(70)
		db.Template.Resources.ReserveMemory = int64(1+w.rng.IntN(3)) << 29
	}
	s.Services["db"] = db
	if w.chance(60) {
		api := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "back")}
		api.DependsOn = []spec.Dependency{{Service: "db", Condition: spec.DependencyHealthy}}
		api.Ports = []spec.Port{{Target: 80, Protocol: "tcp", Mode: spec.PublishHost}}
		if w.chance(30) {
			api.Template.Restart.Condition = spec.RestartNone
		}
		s.Services["api"] = api
	}
	if w.chance(60) {
		solo := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "default")}
		solo.Template.Exclusive = true
		solo.Template.StopGrace = spec.Duration(stopGrace)
		if w.chance(40) {
			n := 1 + w.rng.IntN(2)
			solo.Replicas = &n
		}
		s.Services["solo"] = solo
	}
	if w.chance(50) { // side shares the network of head, and is with it wherever that is
		head := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "default")}
		side := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image())}
		side.Template.NetworkMode = spec.JoinMode("head")
		if w.chance(40) {
			head.Mode, side.Mode = spec.Global, spec.Global
		} else if w.chance(50) {
			n := 1 + w.rng.IntN(2)
			more := n + w.rng.IntN(2)
			side.Replicas, head.Replicas = &n, &more
		}
		if side.Mode == spec.Replicated && w.chance(30) {
			side.Placement.Constraints = []string{"node.labels.disk!=hdd"}
		}
		side.Template.Resources.ReserveMemory = int64(w.rng.IntN(3)) << 29
		s.Services["head"], s.Services["side"] = head, side
	}
	if w.chance(30) {
		// Both stacks want the port; one node has it once.
		s.Services["edge"] = spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "default"),
			Ports: []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp", Mode: spec.PublishHost}}}
	}
	if w.chance(40) {
		s.Services["agent"] = spec.ServiceSpec{Mode: spec.Global, Template: template(image(), "default")}
		if w.chance(50) {
			s.Networks["own"] = spec.NetworkSpec{Driver: spec.DriverBridge}
			agent := s.Services["agent"]
			agent.Template.Networks = append(agent.Template.Networks, spec.Attachment{Network: "own"})
			agent.Ports = []spec.Port{{Target: 514, Protocol: "udp", Mode: spec.PublishIngress}}
			s.Services["agent"] = agent
		}
	}
	if w.chance(40) { // it may be anywhere, and move
		n := 1 + w.rng.IntN(4)
		s.Services["free"] = spec.ServiceSpec{Mode: spec.Replicated, Replicas: &n, Template: template(image(), "default")}
	}
	w.address(&s, image())
	w.jobs(&s, image)
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		svc := s.Services[name]
		w.policies(&svc)
		s.Services[name] = svc
	}
	w.secrets(&s)
	return s
}

// upgraded reports whether stacks may have all that there is.
func (w *World) upgraded() bool { return w.store == nil || w.store.Snapshot().Format() == store.Format }

// policies draws how a service is updated.
func (w *World) policies(s *spec.ServiceSpec) {
	if !w.upgraded() {
		return
	}
	if w.chance(40) {
		s.Update = w.policy(s, spec.FailureRollback, spec.FailurePause, spec.FailureContinue)
	}
	if w.chance(40) {
		s.Rollback = w.policy(s, spec.FailurePause, spec.FailureContinue)
	}
	if w.chance(20) && s.Update.FailureAction != spec.FailureContinue {
		s.Canary = w.canary()
	}
	if w.chance(40) {
		s.ProgressDeadline = spec.Duration(30+w.rng.IntN(60)) * spec.Duration(time.Second)
	}
}

func (w *World) canary() spec.Canary {
	var c spec.Canary
	if w.chance(50) {
		c.Replicas = 1 + w.rng.IntN(3)
	} else {
		c.Weight = 1 + w.rng.IntN(99)
	}
	if w.chance(50) {
		c.Promote = spec.PromoteManual
	}
	return c
}

func (w *World) policy(s *spec.ServiceSpec, actions ...spec.FailureAction) spec.UpdateConfig {
	var u spec.UpdateConfig
	if w.chance(50) {
		n := w.rng.IntN(4)
		u.Parallelism = &n
	}
	if w.chance(30) {
		u.Delay = spec.Duration(w.rng.IntN(20)) * spec.Duration(time.Second)
	}
	if w.chance(50) {
		u.FailureAction = actions[w.rng.IntN(len(actions))]
	}
	if w.chance(30) {
		u.Monitor = spec.Duration(1+w.rng.IntN(9)) * spec.Duration(time.Second)
	}
	if w.chance(30) {
		u.MaxFailureRatio = float64(w.rng.IntN(5)) / 4
	}
	if w.chance(20) {
		u.Order = spec.StopFirst
	} else if w.chance(20) && s.NeverTogether() == "" {
		u.Order = spec.StartFirst
	}
	return u
}

func template(image string, networks ...string) spec.Template {
	t := spec.Template{Image: image, Restart: spec.Restart{Condition: spec.RestartAny}}
	for _, n := range networks {
		t.Networks = append(t.Networks, spec.Attachment{Network: n})
	}
	return t
}

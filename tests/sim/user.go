package sim

import (
	"fmt"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

var stackNames = []string{"shop", "blog"}

// use makes a random command of a person.
func (w *World) use() {
	name := stackNames[w.rng.IntN(len(stackNames))]
	var c store.Command
	switch n := w.rng.IntN(100); {
	case n < 50:
		c.PutStack = &store.PutStack{Stack: w.stack(name, false), KeepOthers: w.chance(20)}
	case n < 70:
		c.ScaleService = &store.ScaleService{Stack: name, Service: []string{"web", "api"}[w.rng.IntN(2)], Replicas: w.rng.IntN(5)}
	case n < 80:
		c.RemoveStack = &store.RemoveStack{Name: name, Volumes: w.chance(50)}
	case n < 90:
		a := []spec.Availability{spec.NodeActive, spec.NodeDrain, spec.NodePaused}[w.rng.IntN(3)]
		c.SetNode = &store.SetNode{ID: w.hosts[w.rng.IntN(len(w.hosts))].id, Availability: &a}
	case n < 95:
		disk := []string{"ssd", "hdd"}[w.rng.IntN(2)]
		c.SetNode = &store.SetNode{ID: w.hosts[w.rng.IntN(len(w.hosts))].id, Labels: map[string]*string{"disk": &disk}}
	default:
		c.RemoveVolumes = &store.RemoveVolumes{Names: []string{name + "_data"}}
	}
	res := w.apply(c)
	w.note("a user sends %s for %s: %v", c.Kind(), name, res.Err)
}

// lastWill declares what can come true, so that the world may come to rest.
func (w *World) lastWill() {
	for _, name := range stackNames {
		switch w.rng.IntN(4) {
		case 0:
			w.apply(store.Command{RemoveStack: &store.RemoveStack{Name: name, Volumes: w.chance(50)}})
		default:
			res := w.apply(store.Command{PutStack: &store.PutStack{Stack: w.stack(name, true)}})
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
		s.Networks["back"] = spec.NetworkSpec{Driver: spec.DriverOverlay, Subnet: fmt.Sprintf("10.9.%d.0/29", w.rng.IntN(3))}
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
	s.Services["web"] = web
	db := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "back")}
	db.Template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}}
	db.Template.Resources.ReserveMemory = int64(w.rng.IntN(3)) << 29
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
	if w.chance(40) {
		s.Services["agent"] = spec.ServiceSpec{Mode: spec.Global, Template: template(image(), "default")}
	}
	return s
}

func template(image string, networks ...string) spec.Template {
	t := spec.Template{Image: image, Restart: spec.Restart{Condition: spec.RestartAny}}
	for _, n := range networks {
		t.Networks = append(t.Networks, spec.Attachment{Network: n})
	}
	return t
}

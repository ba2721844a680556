package store

import (
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

func (w *part) changeTasks(p *spec.Part) error {
	for i := range p.Change {
		if err := w.changeTask(&p.Change[i]); err != nil {
			return err
		}
	}
	return nil
}

func (w *part) changeTask(c *spec.TaskChange) error {
	old := w.tasks.get(w.txn, idKey(c.Task))
	if old == nil {
		return spec.Conflictf("task %s is gone", c.Task)
	}
	if err := w.checkWith(c); err != nil {
		return err
	}
	next := *old
	if err := w.changeDesired(&next, c); err != nil {
		return err
	}
	if err := w.changeStatus(&next, c); err != nil {
		return err
	}
	if err := w.placeTask(old, &next, c); err != nil {
		return err
	}
	next.Version = w.index
	put(w.reducer, &w.tasks, next)
	w.taskEvent(old, &next, c.Why)
	w.touch(&next)
	return nil
}

func (w *part) changeDesired(t *spec.Task, c *spec.TaskChange) error {
	if c.Desired == "" {
		return nil
	}
	if c.Desired.Before(t.Desired) {
		return spec.Conflictf("task %s is meant to be %s, which cannot become %q", t.ID, t.Desired, c.Desired)
	}
	t.Desired = c.Desired
	return nil
}

// changeStatus changes what belongs to the agent of the task's node once the
// task is assigned. The reconciler may do so only where no agent can.
func (w *part) changeStatus(t *spec.Task, c *spec.TaskChange) error {
	if c.State == "" && c.Reason == "" {
		return nil
	}
	n := w.nodes.get(w.txn, textKey(t.Node))
	if n != nil && n.State == spec.NodeReady && t.Status.State != spec.TaskPending {
		return spec.Conflictf("task %s is on node %s, which is alive and tells its state itself", t.ID, n.Name)
	}
	if c.State != "" && c.State != t.Status.State {
		// Between its assignment and its end only an agent knows of a task.
		decided := c.State.Terminal() || c.State == spec.TaskAssigned && (c.Node != "" || t.Node != "")
		if !decided || !t.Status.State.Before(c.State) {
			return spec.Conflictf("task %s is %s, which cannot become %q", t.ID, t.Status.State, c.State)
		}
		t.Status.State, t.Status.Since = c.State, w.now
	}
	if c.Reason != "" {
		t.Status.Reason = c.Reason
	}
	return nil
}

// placeTask gives a pending task its node and what it needs there; a task that
// has been placed is never moved. A pending task of a global service has a node
// from the start, and is assigned by naming it again.
func (w *part) placeTask(old, t *spec.Task, c *spec.TaskChange) error {
	if c.Node == "" && c.Joins == "" && len(c.Addresses) == 0 && len(c.Volumes) == 0 {
		return nil
	}
	if old.Status.State != spec.TaskPending || t.Status.State.Terminal() || c.Node != "" && t.Node != "" && c.Node != t.Node {
		return spec.Conflictf("task %s is %s on node %q and is never moved", t.ID, t.Status.State, t.Node)
	}
	if c.Node != "" {
		t.Node = c.Node
		t.Status.Reason = c.Reason // why it was pending no longer holds
		if t.Status.State == spec.TaskPending {
			t.Status.State, t.Status.Since = spec.TaskAssigned, w.now
		}
		if err := w.checkNode(t); err != nil {
			return err
		}
	}
	if c.Joins != "" {
		t.Joins = c.Joins
		if err := w.checkJoins(t); err != nil {
			return err
		}
	}
	if len(c.Addresses) > 0 {
		t.Addresses = c.Addresses
		if err := w.checkAddresses(t); err != nil {
			return err
		}
	}
	if len(c.Volumes) > 0 {
		t.Volumes = c.Volumes
		return w.bindVolumes(t)
	}
	return nil
}

func (w *part) removeTasks(p *spec.Part) error {
	for _, id := range p.Remove {
		t := w.tasks.get(w.txn, idKey(id))
		if t == nil {
			return spec.Conflictf("task %s is gone", id)
		}
		if t.Status.State != spec.TaskPending && !t.Status.State.Terminal() {
			return spec.Conflictf("task %s is %s: its row goes when it is over", id, t.Status.State)
		}
		w.touch(t)
		drop(w.reducer, &w.tasks, t)
	}
	return nil
}

func (w *part) createTasks(p *spec.Part) error {
	for i := range p.Create {
		if err := w.createTask(p.Create[i]); err != nil {
			return err
		}
	}
	return nil
}

func (w *part) createTask(t spec.Task) error {
	name := spec.ServiceKey(t.Stack, t.Service)
	if w.services.get(w.txn, textsKey(t.Stack, t.Service)) == nil {
		return spec.Conflictf("service %s is gone", name)
	}
	rev := w.revisions.get(w.txn, textKey(t.Revision))
	if rev == nil || rev.Stack != t.Stack || rev.Service != t.Service {
		return spec.Conflictf("service %s has no revision %q", name, t.Revision)
	}
	if t.Slot < 0 {
		return spec.Invalidf("service %s: a task in slot %d", name, t.Slot)
	}
	if err := startStatus(&t); err != nil {
		return err
	}
	if t.Status.Since.IsZero() {
		t.Status.Since = w.now
	}
	t.ID, t.Created, t.Version = spec.TaskID(w.newID()), w.now, w.index
	if err := w.checkNode(&t); err != nil {
		return err
	}
	if err := w.checkJoins(&t); err != nil {
		return err
	}
	if err := w.checkAddresses(&t); err != nil {
		return err
	}
	if err := w.bindVolumes(&t); err != nil {
		return err
	}
	put(w.reducer, &w.tasks, t)
	w.touch(&t)
	return nil
}

// startStatus gives a new task the state and the desired state it begins with.
func startStatus(t *spec.Task) error {
	switch t.Desired {
	case "":
		t.Desired = spec.DesiredRunning
	case spec.DesiredRunning, spec.DesiredDraining, spec.DesiredStopped, spec.DesiredRemoved:
	default:
		return spec.Invalidf("a task cannot be meant to be %q", t.Desired)
	}
	switch {
	case t.Status.State == "" && t.Node == "":
		t.Status.State = spec.TaskPending
	case t.Status.State == "":
		t.Status.State = spec.TaskAssigned
	case t.Status.State == spec.TaskAssigned && t.Node == "":
		return spec.Invalidf("a task of %s is assigned to no node", spec.ServiceKey(t.Stack, t.Service))
	case t.Status.State != spec.TaskPending && t.Status.State != spec.TaskAssigned:
		return spec.Invalidf("a new task of %s cannot be %q", spec.ServiceKey(t.Stack, t.Service), t.Status.State)
	}
	return nil
}

func (w *part) checkNode(t *spec.Task) error {
	if t.Node != "" && w.nodes.get(w.txn, textKey(t.Node)) == nil {
		return spec.Conflictf("there is no node %q for a task of %s", t.Node, spec.ServiceKey(t.Stack, t.Service))
	}
	return nil
}

// checkAddresses refuses an address that another task or a service holds.
func (w *part) checkAddresses(t *spec.Task) error {
	for _, a := range t.Addresses {
		n := w.networks.get(w.txn, idKey(a.Network))
		if n == nil {
			return spec.Conflictf("there is no network %q for a task of %s", a.Network, spec.ServiceKey(t.Stack, t.Service))
		}
		for i, ip := range []string{a.IP, a.IP6} {
			if i > 0 && ip == "" {
				continue
			}
			value := addressValue(a.Network, ip)
			if value == nil || i > 0 && !strings.Contains(ip, ":") {
				return spec.Invalidf("network %s: %q is no %s with a prefix length", n.Name, ip, [...]string{"address", "IPv6 address"}[i])
			}
			if err := w.checkFree(n, ip, value, t.ID, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkFree refuses an address on a network that any but the task, or the
// service with the key, holds. value is its place in the indexes.
func (w *part) checkFree(n *spec.Network, ip string, value []byte, task spec.TaskID, service string) error {
	for other := range w.tasks.with(w.txn, byAddress, value) {
		if other.ID != task && w.holdsAddress(w.txn, other) {
			return spec.Conflictf("address %s on network %s is held by task %s", ip, n.Name, w.taskName(other))
		}
	}
	for other := range w.services.with(w.txn, byVIP, value) {
		if other.Key() != service {
			return spec.Conflictf("address %s on network %s is the virtual one of service %s", ip, n.Name, other.Key())
		}
	}
	return nil
}

// holdsAddress reports whether the addresses of a task are taken: until it is
// over, and after its node was lost until the node confirms the end or is
// removed.
func (t *tables) holdsAddress(txn *memdb.Txn, task *spec.Task) bool {
	if task.Status.State == spec.TaskLost {
		return t.nodes.get(txn, textKey(task.Node)) != nil
	}
	return !task.Status.State.Terminal()
}

// bindVolumes finds the volumes that a task names.
func (w *part) bindVolumes(t *spec.Task) error {
	t.Volumes = slices.Clone(t.Volumes)
	for i := range t.Volumes {
		v, err := w.usableVolume(t.Volumes[i].Name)
		if err != nil {
			return err
		}
		t.Volumes[i].ID = v.ID
	}
	return nil
}

// touch notes that the part changed a task of the service.
func (w *part) touch(t *spec.Task) {
	if key := spec.ServiceKey(t.Stack, t.Service); !slices.Contains(w.touched, key) {
		w.touched = append(w.touched, key)
	}
}

// bumpServices raises the version of services whose tasks changed: who planned
// from the older ones must look again.
func (w *part) bumpServices() {
	for _, key := range w.touched {
		stack, name, _ := spec.SplitServiceKey(key)
		s := w.services.get(w.txn, textsKey(stack, name))
		if s == nil || s.Version == w.index {
			continue
		}
		next := *s
		next.Version = w.index
		put(w.reducer, &w.services, next)
	}
}

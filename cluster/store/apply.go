package store

import (
	"cmp"
	"time"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

// reducer is one Apply at work. It is thrown away with its command.
type reducer struct {
	*tables
	db      *memdb.MemDB
	guarded bool
	// txn is the running attempt's.
	txn   *memdb.Txn
	meta  meta
	index uint64
	now   time.Time
	cmd   *Command
	res   Result
}

// Apply applies a command that was committed at index, which must grow from
// call to call. The result and the next state depend on the present state, the
// index and the command alone. A command that is refused changes no object;
// Result.Err then is of one of the classes of package spec.
//
// The command must not be modified afterwards.
func (s *Store) Apply(index uint64, c Command) Result {
	s.apply.Lock()
	defer s.apply.Unlock()
	n := s.cur.Load()
	if index <= n.meta.Index {
		return Result{Index: index, Err: spec.Invalidf("entry %d was applied already: the state is at %d", index, n.meta.Index)}
	}
	r := &reducer{tables: s.tables, db: s.db, guarded: s.guarded, meta: n.meta, index: index, cmd: &c, res: Result{Index: index}}
	r.run()
	r.meta.Index = index
	s.publish(&Snapshot{tables: s.tables, db: s.db.Snapshot(), meta: r.meta})
	return r.res
}

// run applies the command once: a repeat gets the first result.
func (r *reducer) run() {
	if err := r.checkEnvelope(); err != nil {
		r.res.Err = err
		return
	}
	id := r.cmd.RequestID
	if id == "" || !r.cmd.user() {
		r.dispatch()
		return
	}
	txn := r.db.Txn(false)
	if old := r.requests.get(txn, textKey(id)); old != nil {
		r.res = old.result()
		return
	}
	r.dispatch()
	r.remember(id)
}

func (r *reducer) checkEnvelope() error {
	if r.cmd.Kind() == "" {
		return spec.Invalidf("a command must have exactly one body")
	}
	if need := r.cmd.NeedsFormat(); need > r.meta.Format {
		return spec.Conflictf("%s needs format %d of the state, which is at %d until every manager runs a version that knows it: see \"wherry node ls\" and upgrade the managers", r.cmd.Kind(), need, r.meta.Format)
	}
	if len(r.cmd.RequestID) > 128 {
		return spec.Invalidf("the request ID is longer than 128 bytes")
	}
	r.now = r.cmd.Time.Round(0).UTC()
	if y := r.now.Year(); y < 0 || y > 9999 {
		return spec.Invalidf("the time of the command is out of range")
	}
	return nil
}

// dispatch applies the command. All but a plan stand or fall as a whole.
func (r *reducer) dispatch() {
	c := r.cmd
	if c.ApplyPlan != nil {
		r.applyPlan(c.ApplyPlan)
		return
	}
	err := r.attempt(func() error {
		switch {
		case c.Bootstrap != nil:
			return r.bootstrap(c.Bootstrap)
		case c.PutStack != nil:
			return r.putStack(c.PutStack)
		case c.RemoveStack != nil:
			return r.removeStack(c.RemoveStack)
		case c.ScaleService != nil:
			return r.scaleService(c.ScaleService)
		case c.RollbackStack != nil:
			return r.rollbackStack(c.RollbackStack)
		case c.MoveTasks != nil:
			return r.moveTasks(c.MoveTasks)
		case c.SteerService != nil:
			return r.steerService(c.SteerService)
		case c.PutContent != nil:
			return r.putContent(c.PutContent)
		case c.PutDatum != nil:
			return r.putDatum(c.PutDatum)
		case c.RemoveDatum != nil:
			return r.removeDatum(c.RemoveDatum)
		case c.RemoveVolumes != nil:
			return r.removeVolumes(c.RemoveVolumes)
		case c.CreateVolume != nil:
			return r.createVolume(c.CreateVolume)
		case c.MoveVolume != nil:
			return r.moveVolume(c.MoveVolume)
		case c.CreateNetwork != nil:
			return r.createNetwork(c.CreateNetwork)
		case c.RemoveNetwork != nil:
			return r.removeNetwork(c.RemoveNetwork)
		case c.SetNode != nil:
			return r.setNode(c.SetNode)
		case c.SetRole != nil:
			return r.setRole(c.SetRole)
		case c.RemoveNode != nil:
			return r.removeNode(c.RemoveNode)
		case c.SetAuthority != nil:
			return r.setAuthority(c.SetAuthority)
		case c.PutNode != nil:
			return r.putNode(c.PutNode)
		case c.SetNodeState != nil:
			return r.setNodeState(c.SetNodeState)
		default:
			r.reports(c.Reports)
			return nil
		}
	})
	if err != nil {
		r.res = Result{Index: r.index, Err: err}
	}
}

// attempt runs f in a transaction; when f fails, nothing has happened.
// Readers see none of it before Apply publishes the state.
func (r *reducer) attempt(f func() error) error {
	saved := r.meta
	r.txn = r.db.Txn(true)
	if err := f(); err != nil {
		r.txn.Abort()
		r.meta = saved
		return err
	}
	r.txn.Commit()
	return nil
}

// put stores v in place of the row with the same key.
func put[T any](r *reducer, t *table[T], v T) {
	if err := t.insert(r.txn, v, r.guarded); err != nil {
		panic("store: insert into " + t.name + ": " + err.Error())
	}
	r.res.Changed = true
}

func drop[T any](r *reducer, t *table[T], v *T) {
	t.remove(r.txn, v)
	r.res.Changed = true
}

// newID returns an identifier that was never used before.
func (r *reducer) newID() string {
	r.meta.Counter++
	return spec.MakeID(r.meta.Incarnation, r.meta.Counter)
}

// event appends to the diary and drops what is too old.
func (r *reducer) event(e spec.Event) {
	r.meta.Events++
	e.Seq, e.Index, e.Time = r.meta.Events, r.index, r.now
	put(r, &r.events, e)
	if e.Seq > spec.KeepEvents {
		if old := r.events.get(r.txn, numberKey(e.Seq-spec.KeepEvents)); old != nil {
			drop(r, &r.events, old)
		}
	}
}

// remember keeps the result for repeats. Refusals are kept too: a duplicate
// that arrives late must not succeed after its sender was told otherwise.
func (r *reducer) remember(id string) {
	row := request{ID: id, Index: r.res.Index, Revision: r.res.Revision, Changed: r.res.Changed}
	if r.res.Err != nil {
		row.ErrorClass, row.Error = spec.ErrorClass(r.res.Err), r.res.Err.Error()
	}
	res := r.res
	_ = r.attempt(func() error {
		r.meta.Requests++
		row.Seq = r.meta.Requests
		put(r, &r.requests, row)
		if row.Seq > KeepRequests {
			if old := r.requests.first(r.txn, bySeq, numberKey(row.Seq-KeepRequests)); old != nil {
				drop(r, &r.requests, old)
			}
		}
		return nil
	})
	r.res = res // bookkeeping is no change
}

func (q *request) result() Result {
	res := Result{Index: q.Index, Revision: q.Revision, Changed: q.Changed}
	if q.Error != "" {
		res.Err = spec.ErrorOfClass(q.ErrorClass, q.Error)
	}
	return res
}

// bootstrap begins a life of the state.
func (r *reducer) bootstrap(c *Bootstrap) error {
	switch {
	case c.ClusterID == "":
		return spec.Invalidf("bootstrap needs the ID of the cluster")
	case r.meta.ClusterID != "" && r.meta.ClusterID != c.ClusterID:
		return spec.Conflictf("the state belongs to cluster %s, not %s", r.meta.ClusterID, c.ClusterID)
	case c.Incarnation == 0:
		return spec.Invalidf("bootstrap needs an incarnation of at least 1")
	case c.Incarnation < r.meta.Incarnation:
		return spec.Conflictf("the state is at incarnation %d, which is above %d", r.meta.Incarnation, c.Incarnation)
	case c.Format < 0 || c.Format > Format:
		return spec.Invalidf("format %d is unknown", c.Format)
	case c.Format != 0 && c.Format < r.meta.Format:
		return spec.Conflictf("the state has format %d and cannot go back to %d", r.meta.Format, c.Format)
	case c.VXLANPort != 0 && r.meta.ClusterID != "" && c.VXLANPort != r.meta.VXLANPort:
		return spec.Conflictf("the port of networks between hosts was chosen when the cluster was formed and cannot be changed")
	case c.VXLANPort != 0 && max(c.Format, r.meta.Format) < AddressFormat:
		return spec.Conflictf("another port of networks between hosts needs format %d of the state", AddressFormat)
	}
	next := r.meta
	next.VXLANPort = cmp.Or(next.VXLANPort, c.VXLANPort)
	next.ClusterID = c.ClusterID
	if c.Format != 0 {
		next.Format = c.Format
	}
	if c.Incarnation > r.meta.Incarnation {
		// The log of the new life counts its terms from the start.
		next.Incarnation, next.Counter, next.Epoch = c.Incarnation, 0, 0
	}
	r.res.Changed = next != r.meta
	r.meta = next
	return nil
}

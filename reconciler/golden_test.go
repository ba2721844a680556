package reconciler

import (
	stdcmp "cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden plays the scripts of testdata/*.txtar: the comment of an archive
// says what it shows, "script" has one line per event, "want" what the passes
// answered, all other files are stacks.
//
//	node NAME [KEY=VALUE…]      a node; memory (MiB), cpus, arch, mtu, subnets, interfaces, address, format, or a label
//	put FILE | rm STACK [volumes] | scale STACK SERVICE N | back STACK[/SERVICE] [REVISION]
//	steer pause|resume|promote|restart|run STACK SERVICE | history STACK
//	mknet NAME | rmnet NAME     networks of no stack
//	plan                        make a plan, print and apply it
//	plan again                  likewise, and there may be another one to make
//	settle                      plan and let hosts obey until nothing moves; print the plans
//	report TASK STATE [health|REASON]    TASK is a name or an ID
//	crash TASK N                it runs again after N attempts that failed
//	drain|pause|activate|down|up NODE
//	drain NODE stop-pinned | remove NODE [force] | leftovers NODE
//	forget VOLUME…
//	format N                    from now on; in the first line instead of the newest
//	lead                        a new leader begins to lead now
//	wait DURATION | clock DURATION    the clock is set by that much
//	content ID… | secret NAME ID | files TASK KEY=ID… | reads NODE | uses NODE ID    see data
//	why STACK[/SERVICE[.PLACE]]
//	moves MAX | rebalance MAX   what would make the nodes more even; do it
//	fetched NODE [STACK SERVICE done|PROBLEM]    the node tells what became of the image of a service
//	status STACK | preview FILE|rm STACK|scale STACK SERVICE N | wanted NODE | networks NODE | used | tasks
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := emptyCluster(t)
			want := -1
			script := ""
			for i, f := range ar.Files {
				switch f.Name {
				case "script":
					script = string(f.Data)
				case "want":
					want = i
				default:
					c.files[f.Name] = f.Data
				}
			}
			if !strings.HasPrefix(script, "format ") {
				c.format(store.Format)
			}
			for _, line := range strings.Split(strings.TrimSpace(script), "\n") {
				c.do(line)
			}
			got := c.out.String()
			if *update {
				if want < 0 {
					ar.Files = append(ar.Files, txtar.File{Name: "want"})
					want = len(ar.Files) - 1
				}
				ar.Files[want].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want < 0 {
				t.Fatal("no want; run with -update")
			}
			if diff := cmp.Diff(string(ar.Files[want].Data), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// cluster is a store with a clock and obedient hosts.
type cluster struct {
	t     testing.TB
	store *store.Store
	now   time.Time
	since time.Time // the leader's
	files map[string][]byte
	out   strings.Builder
	again bool // the next plan may leave something to do
	// seen and elapsed are those of the leader since "lead", by a clock that
	// nobody sets.
	seen    *Sightings
	elapsed time.Duration
}

func newCluster(t testing.TB) *cluster {
	c := emptyCluster(t)
	c.format(store.Format)
	return c
}

// emptyCluster has no state yet, in whatever format.
func emptyCluster(t testing.TB) *cluster {
	return &cluster{t: t, store: store.New(), now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), files: map[string][]byte{}}
}

func (c *cluster) format(n int) {
	c.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "test", Incarnation: 1, Format: n}})
}

func (c *cluster) printf(format string, args ...any) { fmt.Fprintf(&c.out, format, args...) }

func (c *cluster) apply(cmd store.Command) store.Result {
	c.t.Helper()
	cmd.Time = c.now
	return c.store.Apply(c.store.Snapshot().Index()+1, cmd)
}

func (c *cluster) must(cmd store.Command) {
	c.t.Helper()
	if res := c.apply(cmd); res.Err != nil {
		c.t.Fatal(res.Err)
	}
}

func nodeID(name string) spec.NodeID { return spec.NodeID("id-" + name) }

func (c *cluster) addNode(name string, args ...string) {
	address := "192.0.2.1"
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "address="); ok {
			address = v
		}
	}
	c.must(store.Command{PutNode: &store.PutNode{ID: nodeID(name), Name: name, Address: address, Role: spec.RoleManager}})
	info := &spec.NodeInfo{OS: "linux", Arch: "amd64", NanoCPUs: 4e9, Memory: 4 << 30, Format: store.Format}
	labels := map[string]*string{}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		n, _ := strconv.ParseInt(v, 10, 64)
		switch k {
		case "memory":
			info.Memory = n << 20
		case "cpus":
			info.NanoCPUs = n * 1e9
		case "arch":
			info.Arch = v
		case "mtu":
			info.MTU = int(n)
		case "format":
			info.Format = int(n)
		case "subnets":
			info.Subnets = v
		case "interfaces":
			info.Interfaces = strings.ReplaceAll(v, ",", " ")
		case "address":
		default:
			labels[k] = &v
		}
	}
	c.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: nodeID(name), Info: info}}}})
	c.must(store.Command{SetNode: &store.SetNode{ID: nodeID(name), Labels: labels}})
}

func (c *cluster) stack(file string) spec.Stack {
	var s spec.Stack
	if err := json.Unmarshal(c.files[file], &s); err != nil {
		c.t.Fatalf("%s: %v", file, err)
	}
	return s
}

// do plays one line.
func (c *cluster) do(line string) {
	c.t.Helper()
	f := strings.Fields(line)
	if len(f) == 0 || strings.HasPrefix(line, "#") {
		return
	}
	c.printf("> %s\n", line)
	switch f[0] {
	case "node":
		c.addNode(f[1], f[2:]...)
	case "format":
		n, _ := strconv.Atoi(f[1])
		c.format(n)
	case "put", "rm", "scale", "back":
		if res := c.apply(c.write(f)); res.Err != nil {
			c.printf("error: %v\n", res.Err)
		}
	case "steer":
		cmd := store.Command{Author: "ann", SteerService: &store.SteerService{Action: store.SteerAction(f[1]), Stack: f[2], Service: f[3]}}
		if res := c.apply(cmd); res.Err != nil {
			c.printf("error: %v\n", res.Err)
		}
	case "history":
		for _, r := range c.store.Snapshot().StackRevisions(f[1]) {
			c.printf("  %d by %q %q %s %s\n", r.Number, r.Author, r.Message, stdcmp.Or(r.State, "updating"), r.Why)
		}
	case "plan":
		if c.again = len(f) > 1; c.again {
			defer func() { c.again = false }()
		}
		c.plan()
	case "settle":
		c.settle()
	case "report":
		c.report(f[1], spec.TaskState(f[2]), strings.Join(f[3:], " "))
	case "crash":
		n, _ := strconv.Atoi(f[2])
		c.crash(f[1], n)
	case "fetched":
		list := []spec.FetchStatus{}
		if len(f) > 2 {
			s := spec.FetchStatus{Revision: c.store.Snapshot().Service(f[2], f[3]).Revision, Done: f[4] == "done"}
			if !s.Done {
				s.Problem, s.Never = strings.Join(f[4:], " "), true
			}
			list = append(list, s)
		}
		c.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: nodeID(f[1]), Fetched: &list}}}})
	case "drain", "pause", "activate":
		a := map[string]spec.Availability{"drain": spec.NodeDrain, "pause": spec.NodePaused, "activate": spec.NodeActive}[f[0]]
		c.must(store.Command{SetNode: &store.SetNode{ID: nodeID(f[1]), Availability: &a, StopPinned: len(f) > 2}})
	case "remove":
		if res := c.apply(store.Command{RemoveNode: &store.RemoveNode{ID: nodeID(f[1]), Force: len(f) > 2}}); res.Err != nil {
			c.printf("error: %v\n", res.Err)
		}
	case "forget": // the volume
		if res := c.apply(store.Command{RemoveVolumes: &store.RemoveVolumes{Names: f[1:]}}); res.Err != nil {
			c.printf("error: %v\n", res.Err)
		}
	case "mknet":
		if res := c.apply(store.Command{CreateNetwork: &store.CreateNetwork{Name: f[1], Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}}}); res.Err != nil {
			c.printf("error: %v\n", res.Err)
		}
	case "rmnet":
		if res := c.apply(store.Command{RemoveNetwork: &store.RemoveNetwork{Name: f[1]}}); res.Err != nil {
			c.printf("error: %v\n", res.Err)
		}
	case "content", "secret", "files", "reads", "uses":
		c.data(f)
	case "lead":
		c.since = c.now
		c.seen = NewSightings(c.elapsed)
	case "clock":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			c.t.Fatal(err)
		}
		c.now = c.now.Add(d)
	case "leftovers":
		for _, l := range Leftovers(c.store.Snapshot(), nodeID(f[1]), c.now) {
			c.printf("  %s pinned=%t: %s\n", l.Name, l.Pinned, l.Reason)
		}
	case "down", "up":
		s := map[string]spec.NodeState{"down": spec.NodeDown, "up": spec.NodeReady}[f[0]]
		c.must(store.Command{SetNodeState: &store.SetNodeState{ID: nodeID(f[1]), State: s}})
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			c.t.Fatal(err)
		}
		c.now, c.elapsed = c.now.Add(d), c.elapsed+d
	case "status":
		st, ok := Status(c.store.Snapshot(), f[1], c.now)
		c.printf("%s\n", strings.TrimSpace(fmt.Sprintf("%s %v revision %d %s", st.State, ok, st.Revision, st.Message)))
		for _, s := range st.Services {
			count := fmt.Sprintf("%d/%d", s.Running, s.Desired)
			if s.Mode.Job() {
				count = fmt.Sprintf("%d completed and %d running of %d", s.Completed, s.Running, s.Desired)
			}
			c.printf("  %s %s %s update=%s %s\n", s.Name, count, s.State, s.Update.State, s.Message)
		}
	case "preview":
		if !slices.Contains([]string{"rm", "scale", "back"}, f[1]) {
			f[0] = "put"
		} else {
			f = f[1:]
		}
		p, err := NewPreview(c.store, c.write(f), c.now)
		if err != nil {
			c.printf("error: %v\n", err)
			return
		}
		c.printPreview(&p)
	case "wanted":
		c.printWanted(f[1])
	case "used":
		uses := Uses(c.store.Snapshot(), c.now)
		for _, n := range c.store.Snapshot().Networks() {
			c.printf("  %s of %v%s%s\n", n.Name, uses[n.ID].Services, join(", problem: ", uses[n.ID].Problem), join(", note: ", uses[n.ID].Note))
		}
	case "networks":
		for _, n := range HostNetworks(c.store.Snapshot(), nodeID(f[1])) {
			c.printNetwork(&n)
		}
	case "moves", "rebalance":
		n, err := strconv.Atoi(f[1])
		if err != nil {
			c.t.Fatal(err)
		}
		var ids []spec.TaskID
		for _, m := range Rebalance(c.store.Snapshot(), "", n, c.now) {
			c.printf("  %s from %s to %s\n", m.Name, m.From, m.To)
			ids = append(ids, m.Task)
		}
		if f[0] == "rebalance" {
			c.must(store.Command{MoveTasks: &store.MoveTasks{Tasks: ids}})
		}
	case "why":
		c.printWhy(f[1])
	case "tasks":
		for _, t := range c.store.Snapshot().Tasks() {
			c.printf("  %s\n", c.taskLine(t))
		}
	default:
		c.t.Fatalf("unknown line %q", line)
	}
}

// write is the command of a line that changes a stack.
func (c *cluster) write(f []string) store.Command {
	switch f[0] {
	case "put":
		return store.Command{PutStack: &store.PutStack{Stack: c.stack(f[1])}}
	case "back":
		stack, service, _ := strings.Cut(f[1], "/")
		to := uint64(0)
		if len(f) > 2 {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				c.t.Fatal(err)
			}
			to = uint64(n)
		}
		return store.Command{Author: "ann", RollbackStack: &store.RollbackStack{Stack: stack, Service: service, To: to}}
	case "rm":
		return store.Command{RemoveStack: &store.RemoveStack{Name: f[1], Volumes: len(f) > 2}}
	default:
		n, err := strconv.Atoi(f[3])
		if err != nil {
			c.t.Fatal(err)
		}
		return store.Command{ScaleService: &store.ScaleService{Stack: f[1], Service: f[2], Replicas: n}}
	}
}

// plan makes a plan, prints it, applies it, and demands that this was all.
func (c *cluster) plan() spec.Plan {
	c.t.Helper()
	p := c.planned()
	c.printPlan(&p)
	if p.Empty() {
		return p
	}
	res := c.apply(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}})
	for i, err := range res.Parts {
		if err != nil {
			c.t.Errorf("part %s: %v", p.Parts[i].Key, err)
		}
	}
	if again := c.planned(); !again.Empty() && !c.again && !goesBack(&p) {
		c.out.WriteString("a second plan is not empty:\n")
		c.printPlan(&again)
		c.t.Errorf("a second plan is not empty:\n%s", c.out.String())
	}
	return p
}

// planned is a plan of the present leader.
func (c *cluster) planned() spec.Plan {
	seen := Seen{Since: c.since}
	if c.seen != nil {
		c.seen.Look(c.store.Snapshot(), c.elapsed)
		seen.Stamps = c.seen.At(c.now, c.elapsed).Stamps
	}
	return PlanSeen(c.store.Snapshot(), c.now, seen)
}

// goesBack reports whether a plan declares something anew.
func goesBack(p *spec.Plan) bool {
	return slices.ContainsFunc(p.Parts, func(part spec.Part) bool { return part.Rollback != nil })
}

func (c *cluster) settle() {
	c.t.Helper()
	for range 100 {
		p := c.plan()
		moved := false
		for _, t := range c.store.Snapshot().Tasks() {
			switch {
			case t.Node == "" || t.Status.State.Terminal() || t.Status.State == spec.TaskPending:
			case t.Desired != spec.DesiredRunning:
				moved = c.tell(t, spec.TaskStatus{State: spec.TaskStopped}) || moved
			case !t.Ready():
				moved = c.tell(t, spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, Started: 1}) || moved
			}
		}
		if p.Empty() && !moved {
			return
		}
	}
	c.t.Fatal("does not settle")
}

func (c *cluster) tell(t *spec.Task, s spec.TaskStatus) bool {
	return c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: t.Node, Tasks: []spec.TaskReport{{Task: t.ID, Status: s}}}}}}).Changed
}

// report finds the newest task of a name that is not over.
func (c *cluster) report(name string, state spec.TaskState, rest string) {
	c.t.Helper()
	s := spec.TaskStatus{State: state, Since: c.now, Started: 1}
	switch {
	case state == spec.TaskRunning:
		s.Health = spec.HealthState(rest)
	case state == spec.TaskFailed:
		s.Attempts = []spec.Attempt{{Number: 1, Started: c.now, Ended: c.now, ExitCode: 1, LastLog: []string{rest}}}
		s.Reason = "exit 1"
	default:
		s.Reason = rest
	}
	for _, t := range slices.Backward(c.store.Snapshot().Tasks()) {
		if string(t.ID) == name || !t.Status.State.Terminal() && c.name(t) == name {
			if !c.tell(t, s) {
				c.t.Fatalf("the report of %s changed nothing", name)
			}
			return
		}
	}
	c.t.Fatalf("no task %s", name)
}

// crash reports that the newest task of a name runs again after n failures.
func (c *cluster) crash(name string, n int) {
	s := spec.TaskStatus{State: spec.TaskRunning, Since: c.now, Started: n + 1}
	for i := range n {
		s.Attempts = append(s.Attempts, spec.Attempt{Number: i + 1, Started: c.now, Ended: c.now, ExitCode: 2, LastLog: []string{"panic: no"}})
	}
	for _, t := range slices.Backward(c.store.Snapshot().Tasks()) {
		if c.name(t) == name && !t.Status.State.Terminal() {
			c.tell(t, s)
			return
		}
	}
	c.t.Fatalf("no task %s", name)
}

func (c *cluster) name(t *spec.Task) string {
	return spec.TaskName(t, strings.TrimPrefix(string(t.Node), "id-"))
}

func (c *cluster) taskLine(t *spec.Task) string {
	s := fmt.Sprintf("%s %s on %q %s/%s", t.ID, c.name(t), strings.TrimPrefix(string(t.Node), "id-"), t.Status.State, t.Desired)
	if t.Joins != "" {
		s += " joins " + string(t.Joins)
	}
	for _, a := range t.Addresses {
		s += join(" ", a.IP, a.IP6)
	}
	for _, b := range t.Volumes {
		s += " " + b.Name + ":" + b.Target
	}
	if !t.NotBefore.IsZero() {
		s += " not before " + t.NotBefore.Format("15:04:05.000")
	}
	if t.Status.Reason != "" {
		s += " (" + t.Status.Reason + ")"
	}
	return s
}

func (c *cluster) printPlan(p *spec.Plan) {
	for _, part := range p.Parts {
		c.printf("[%s]\n", part.Key)
		for _, r := range part.Reads {
			c.printf("  reads %s %s@%d\n", r.Kind, r.Key, r.Version)
		}
		for _, n := range part.Networks {
			c.printf("  number %s %s via %s vni %d%s%s\n", n.ID, n.Subnet, n.Gateway, n.VNI, join(" and ", n.Subnet6), join(" via ", n.Gateway6))
		}
		for _, v := range part.Volumes {
			c.printf("  volume %s of %s/%s\n", v.Name, v.Service, v.Slot)
		}
		for _, h := range part.Homes {
			c.printf("  home %s on %s\n", h.Name, h.Node)
		}
		for _, t := range part.Create {
			c.printf("  + %s\n", c.taskLine(&t))
		}
		for _, x := range part.Change {
			c.printf("  ~ %s\n", strings.TrimSpace(changeLine(&x)))
		}
		for _, id := range part.Remove {
			c.printf("  - %s\n", id)
		}
		if s := part.Service; s != nil {
			for _, port := range s.Ports {
				c.printf("  port %d for %d/%s %s\n", port.Published, port.Target, port.Protocol, port.Mode)
			}
			if s.VIPs != nil {
				c.printf("  vips %s\n", vipLine(*s.VIPs))
			}
			if s.Fetch != nil {
				c.printf("  fetch on %v\n", *s.Fetch)
			}
			if s.Update != nil {
				c.printf("  update %s %s\n", s.Update.State, s.Update.Message)
			}
		}
		if x := part.Stack; x != nil {
			c.printf("  revision %d %s %s\n", x.Revision, stdcmp.Or(x.State, "updating"), x.Why)
		}
		if x := part.Rollback; x != nil {
			c.printf("  back from revision %d to %d: service %s: %s [%s]\n", x.Revision, x.To, x.Service, x.Why, x.Log)
		}
		c.printf("%s", removals(&part))
	}
	if p.Empty() {
		c.printf("nothing to do\n")
	}
	if !p.Next.IsZero() {
		c.printf("next %s\n", p.Next.Format("15:04:05.000"))
	}
}

// join puts a separator before each text that is not empty.
func join(separator string, texts ...string) string {
	s := ""
	for _, t := range texts {
		if t != "" {
			s += separator + t
		}
	}
	return s
}

func vipLine(vips []spec.ServiceVIP) string {
	s := make([]string, 0, len(vips))
	for _, v := range vips {
		s = append(s, v.Address+join(" ", v.Address6)+" on "+string(v.Network))
	}
	return "[" + strings.Join(s, ", ") + "]"
}

func removals(p *spec.Part) string {
	s := ""
	for _, id := range p.RemoveNetworks {
		s += fmt.Sprintf("  remove network %s\n", id)
	}
	for _, id := range p.RemoveVolumes {
		s += fmt.Sprintf("  remove volume %s\n", id)
	}
	for range p.RemoveRevisions {
		s += "  remove revision\n"
	}
	for _, id := range p.RemoveContents {
		s += fmt.Sprintf("  remove content %s\n", id)
	}
	return s
}

func changeLine(x *spec.TaskChange) string {
	s := string(x.Task)
	for _, kv := range [][2]string{{"desired", string(x.Desired)}, {"state", string(x.State)}, {"node", string(x.Node)}, {"joins", string(x.Joins)}, {"with", string(x.With)}, {"reason", x.Reason}, {"why", x.Why}} {
		if kv[1] != "" {
			s += fmt.Sprintf(" %s=%q", kv[0], kv[1])
		}
	}
	for _, a := range x.Addresses {
		s += join(" ", a.IP, a.IP6)
	}
	return s
}

func (c *cluster) printPreview(p *Preview) {
	for _, x := range p.Changes {
		c.printf("  %s %s %s\n", x.Action, x.Kind, x.Name)
		if x.Action != "update" {
			continue
		}
		for _, f := range x.Fields {
			c.printf("    %s: %q -> %q\n", f.Path, f.Old, f.New)
		}
	}
	for _, x := range p.Tasks {
		c.printf("  %s task %s on %q: %s\n", x.Action, x.Name, x.Node, x.Why)
	}
	for _, n := range p.Notes {
		c.printf("  note: %s\n", n)
	}
	if len(p.Changes)+len(p.Tasks) == 0 {
		c.printf("  no changes\n")
	}
}

func (c *cluster) printWanted(node string) {
	w := Wanted(c.store.Snapshot(), nodeID(node))
	for _, t := range w.Tasks {
		c.printf("  task %s\n", c.taskLine(&t))
	}
	for _, id := range slices.Sorted(maps.Keys(w.Revisions)) {
		c.printf("  revision of %s\n", w.Revisions[id].Image)
	}
	for _, id := range w.Fetch {
		c.printf("  fetch %s\n", w.Revisions[id].Image)
	}
	for _, v := range w.Volumes {
		c.printf("  volume %s %s\n", v.ID, v.Name)
	}
	c.printf("  remove volumes %v keep logs %v networks %v\n", w.RemoveVolumes, w.KeepLogs, w.Networks)
}

func (c *cluster) printNetwork(n *spec.HostNetwork) {
	c.printf("  network %s %s %s%s host %d", n.Network.Name, n.Network.Subnet, n.Network.Gateway, join(" ", n.Network.Subnet6, n.Network.Gateway6), n.HostNumber)
	if n.MTU != 0 {
		c.printf(" mtu %d", n.MTU)
	}
	c.printf("\n")
	for _, e := range n.Tasks {
		c.printf("    task %s %s %s%s %s\n", e.Task, e.Name, e.IP, join(" ", e.IP6), e.MAC)
	}
	for _, h := range n.Hosts {
		c.printf("    host %d %s at %s\n", h.Number, h.Node, h.Address)
	}
	for _, e := range n.Remote {
		c.printf("    remote %s%s %s at host %d\n", e.IP, join(" ", e.IP6), e.MAC, e.Host)
	}
	for _, v := range n.VIPs {
		c.printf("    vip %s of %s to %v\n", v.Address, v.Owner, v.Targets)
	}
	for i, x := range n.Names {
		of := "" // told where it tells two of them apart
		if i > 0 && n.Names[i-1].Name == x.Name || i+1 < len(n.Names) && n.Names[i+1].Name == x.Name {
			of = " of " + x.Stack
		}
		c.printf("    name %s%s %v\n", x.Name, of, x.Addresses)
	}
	for _, p := range n.Ports {
		c.printf("    port %s:%d/%s of %s to %v\n", p.HostIP, p.Port, p.Protocol, p.Owner, p.Targets)
	}
}

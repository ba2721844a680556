package store

import (
	"fmt"
	"io"
	"testing"
	"time"

	"wherry.dev/spec"
)

// populate returns a store with n running tasks on 20 nodes, 100 per service.
func populate(tb testing.TB, n int) (s *Store, index uint64, reports []spec.Report) {
	s = newStore(false)
	apply := func(c Command) Result {
		index++
		c.Time = start
		res := s.Apply(index, c)
		if res.Err != nil {
			tb.Fatal(res.Err)
		}
		return res
	}
	nodes := make([]spec.NodeID, 20)
	for i := range nodes {
		nodes[i] = spec.NodeID(fmt.Sprintf("%016x", i))
		apply(Command{PutNode: &PutNode{ID: nodes[i], Name: fmt.Sprint("node", i), Role: spec.RoleWorker}})
	}
	for i := range n / 100 {
		apply(Command{PutStack: &PutStack{Stack: web(fmt.Sprint("stack", i), uint16(i+1))}})
		for _, err := range apply(Command{ApplyPlan: &ApplyPlan{Parts: []spec.Part{newPart(s.Snapshot(), i, nodes)}}}).Parts {
			if err != nil {
				tb.Fatal(err)
			}
		}
	}
	for _, id := range nodes {
		r := spec.Report{Node: id}
		for _, t := range s.Snapshot().TasksOn(id) {
			r.Tasks = append(r.Tasks, spec.TaskReport{Task: t.ID, Status: spec.TaskStatus{State: spec.TaskRunning, Since: start}})
		}
		reports = append(reports, r)
	}
	apply(Command{Reports: &Reports{Reports: reports}})
	return s, index, reports
}

// newPart creates the 100 tasks of a service.
func newPart(n *Snapshot, stack int, nodes []spec.NodeID) spec.Part {
	name := fmt.Sprint("stack", stack)
	svc := n.Service(name, "web")
	net := n.NetworkNamed(name + "_default").ID
	p := spec.Part{Reads: []spec.Read{{Kind: spec.KindService, Key: svc.Key(), Version: svc.Version}}}
	for slot := range 100 {
		p.Create = append(p.Create, spec.Task{
			Stack: name, Service: "web", Slot: slot + 1, Revision: svc.Revision, Node: nodes[slot%len(nodes)],
			Addresses: []spec.Address{{Network: net, IP: fmt.Sprintf("10.0.%d.%d/16", slot/250, slot%250+2), MAC: "02:00:00:00:00:01"}},
			Volumes:   []spec.VolumeBinding{{Target: "/data", Name: name + "_data"}},
		})
	}
	return p
}

// The budget: 40 µs per report at 10,000 tasks, so that a host of 1,000 tasks
// that comes back costs its manager 40 ms.
func BenchmarkReports(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint("tasks=", n), func(b *testing.B) {
			s, index, reports := populate(b, n)
			reports = reports[:1]
			tasks := reports[0].Tasks[:50]
			reports[0].Tasks = tasks
			pid := 0
			for b.Loop() {
				pid++
				for i := range tasks {
					tasks[i].Status.PID = pid
				}
				index++
				if res := s.Apply(index, Command{Time: start, Reports: &Reports{Reports: reports}}); !res.Changed {
					b.Fatal(res)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(tasks)), "ns/report")
		})
	}
}

// The budget: 80 µs per task at 10,000 tasks.
func BenchmarkCreate(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint("tasks=", n), func(b *testing.B) {
			s, index, _ := populate(b, n)
			s.Apply(index+1, Command{Time: start, PutStack: &PutStack{Stack: web("stack9999", 60000)}})
			var nodes []spec.NodeID
			for _, x := range s.Snapshot().Nodes() {
				nodes = append(nodes, x.ID)
			}
			c := Command{Time: start, ApplyPlan: &ApplyPlan{Parts: []spec.Part{newPart(s.Snapshot(), 9999, nodes)}}}
			for b.Loop() {
				if res := s.Clone().Apply(index+2, c); res.Parts[0] != nil {
					b.Fatal(res.Parts[0])
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*100), "ns/task")
		})
	}
}

// A write of one stack must not grow with the number of tasks: the two sizes
// take the same time.
func BenchmarkPutStack(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint("tasks=", n), func(b *testing.B) {
			s, index, _ := populate(b, n)
			for i := 0; b.Loop(); i++ {
				index++
				stack := edit(web("stack0", 1), "web", func(s *spec.ServiceSpec) { s.Template.User = fmt.Sprint(i) })
				if res := s.Apply(index, Command{Time: start.Add(time.Duration(i)), PutStack: &PutStack{Stack: stack}}); res.Err != nil {
					b.Fatal(res.Err)
				}
			}
		})
	}
}

func BenchmarkPersist(b *testing.B) {
	s, _, _ := populate(b, 10_000)
	for b.Loop() {
		if err := s.Persist(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTasks(b *testing.B) {
	s, _, _ := populate(b, 10_000)
	for b.Loop() {
		if len(s.Snapshot().Tasks()) != 10_000 {
			b.Fatal("tasks are missing")
		}
	}
}

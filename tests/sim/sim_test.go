package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

var (
	seeds    = flag.Uint64("seeds", 0, "number of seeds; the default is SIM_SEEDS, or 150")
	rollouts = flag.Int("rollouts", 200, "number of updates of TestRollouts, at least")
	seed     = flag.Uint64("seed", 0, "run this seed alone and print its history")
)

func TestHistories(t *testing.T) {
	if *seed != 0 {
		w := play(*seed)
		t.Log("\n" + strings.Join(w.Trace, "\n"))
		if w.Err() != nil {
			t.Fatal(w.Err())
		}
		return
	}
	// A history is one goroutine's; several of them may be under way.
	n, shards := count(t), uint64(runtime.GOMAXPROCS(0))
	for shard := range shards {
		t.Run(fmt.Sprint("shard", shard), func(t *testing.T) {
			t.Parallel()
			failed := 0
			for i := 1 + shard; i <= n; i += shards {
				if w := play(i); w.Err() != nil {
					t.Errorf("seed %d: %v\nagain: go test ./tests/sim -run TestHistories -seed %d -v", i, w.Err(), i)
					if failed++; failed == 5 {
						t.Fatalf("stopped after %d failures", failed)
					}
				}
			}
		})
	}
}

func count(t *testing.T) uint64 {
	if *seeds != 0 {
		return *seeds
	}
	s := os.Getenv("SIM_SEEDS")
	if s == "" {
		return 150
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("SIM_SEEDS=%q: want a number", s)
	}
	return n
}

func play(seed uint64) *World {
	w := New(seed)
	for range 30 + w.rng.IntN(150) {
		if w.Err() != nil {
			return w
		}
		w.Step()
	}
	w.Converge()
	return w
}

// TestLeases: hosts are cut off and come back all the time, and the leaders'
// clocks differ; nothing but one exclusive service runs.
func TestLeases(t *testing.T) {
	for n := uint64(1); n <= max(count(t)/2, 1); n++ {
		w := New(n)
		for len(w.hosts) < 3 {
			w.join()
		}
		two := 2
		solo := spec.ServiceSpec{Mode: spec.Replicated, Replicas: &two, Template: template("app:3")}
		solo.Template.Exclusive, solo.Template.StopGrace = true, spec.Duration(stopGrace)
		w.apply(store.Command{PutStack: &store.PutStack{Stack: spec.Stack{Name: "shop", Services: map[string]spec.ServiceSpec{"solo": solo}}}})
		for range 300 {
			w.storm()
		}
		if w.Err() != nil {
			t.Fatalf("seed %d: %v\n%s", n, w.Err(), strings.Join(w.Trace, "\n"))
		}
	}
}

// TestRollouts: updates with failures of tasks, hosts and leaders, in the middle of
// which people change their minds. -rollouts 1000 -v prints how they ended.
func TestRollouts(t *testing.T) {
	const perWorld = 5
	sum := newLedger()
	for n := uint64(1); sum.Called < *rollouts; n++ {
		if *seed != 0 {
			n = *seed
		}
		w := Rollouts(n, perWorld)
		if w.Err() != nil || *seed != 0 {
			t.Log("\n" + strings.Join(w.Trace, "\n"))
		}
		if w.Err() != nil {
			t.Fatalf("seed %d: %v\nagain: go test ./tests/sim -run TestRollouts -seed %d -v", n, w.Err(), n)
		}
		sum.Add(w.ledger)
		if *seed != 0 {
			break
		}
	}
	t.Log(sum)
	kinds := sum.Kinds()
	if len(sum.Ends) != sum.Called {
		t.Errorf("%d updates were called for and %d have an end", sum.Called, len(sum.Ends))
	}
	for _, kind := range []string{"completed", "rolled back", "paused: it failed", "paused: its canary waits for a person"} {
		if kinds[kind] == 0 && *seed == 0 {
			t.Errorf("no update ended so: %s", kind)
		}
	}
}

// TestReplay: a seed replays bit by bit.
func TestReplay(t *testing.T) {
	for n := uint64(1); n <= 5; n++ {
		a, b := play(n), play(n)
		if strings.Join(a.Trace, "\n") != strings.Join(b.Trace, "\n") {
			t.Fatalf("seed %d replays differently", n)
		}
	}
}

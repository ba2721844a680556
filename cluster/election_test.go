package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func init() { children["manager"] = managerChild }

// managerConfig is what a test tells the manager that it starts.
type managerConfig struct {
	Name, Listen string
	Join         *Join
}

// managerChild is a manager until it is killed. It says "token T" when it is
// ready, and "lead" whenever it leads.
func managerChild(dir string) error {
	var mc managerConfig
	b, err := os.ReadFile(filepath.Join(dir, "manager.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &mc); err != nil {
		return err
	}
	c := testConfig(filepath.Join(dir, "data"))
	c.NodeName, c.Listen, c.Advertise, c.Join, c.Heartbeat = mc.Name, mc.Listen, mc.Listen, mc.Join, 0
	c.Lead = func(ctx context.Context, _ uint64) error {
		fmt.Println("lead")
		<-ctx.Done()
		return nil
	}
	m, err := Open(context.Background(), c)
	if err != nil {
		return err
	}
	m.Serve(routes(m))
	go func() {
		<-m.Ready()
		fmt.Println("ready")
	}()
	return m.Run(context.Background())
}

// A leader that is killed is replaced soon: here the time until a write is
// accepted again is measured from outside, over a few rounds.
func TestKilledLeaderIsReplaced(t *testing.T) {
	const rounds = 3
	y := newMany(t)
	y.heartbeat = 0
	y.first("a")
	y.join("b", spec.RoleManager)
	var took []time.Duration
	for round := range rounds {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		dir := t.TempDir()
		b, err := json.Marshal(managerConfig{fmt.Sprint("k", round), addr, &Join{Addr: y.any().Address(), Token: y.token(spec.RoleManager)}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "manager.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := child("manager", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		said := func(what string) {
			for lines.Scan() {
				if lines.Text() == what {
					return
				}
			}
			t.Fatalf("the child ended before it said %q", what)
		}
		said("ready")
		y.voters(3)
		// It shall lead: the present leader gives up.
		r := y.live[y.leader()]
		id := y.node(fmt.Sprint("k", round))
		r.until("leadership of the child", func() bool {
			if r.Status().Leader {
				_ = r.transferTo(t.Context(), id)
			}
			return y.any().leader() == id
		})
		said("lead")
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		y.write(y.live["b"], "round", fmt.Sprint(round))
		took = append(took, time.Since(began).Round(time.Millisecond))
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Fatal(err)
		}
		res, err := y.any().Propose(t.Context(), store.Command{RequestID: fmt.Sprint("rm", round), RemoveNode: &store.RemoveNode{ID: id, Force: true}})
		if err = errors.Join(err, res.Err); err != nil {
			t.Fatal(err)
		}
		y.voters(2)
	}
	slices.Sort(took)
	t.Logf("killed leader to next write: %v", took)
	if worst := took[len(took)-1]; worst > 4*time.Second {
		t.Errorf("it took %s", worst)
	}
}

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestSharedNetwork: two stacks on one network, each on a host of its own. The
// one that uses it comes before the one that declares it, and goes on when that
// is gone.
func TestSharedNetwork(t *testing.T) {
	c := link(t, 2)
	first, second := c.Hosts[0].Name, c.Hosts[1].Name
	web := func(stack, node, networks, declared string) string {
		return fmt.Sprintf(`
name: %s
services:
  web:
    image: %s
    networks: [%s]
    stop_signal: SIGKILL
    deploy: {placement: {constraints: [node.hostname==%s]}}
networks: %s
`, stack, images.Serve, networks, node, declared)
	}
	shop := stack(t, web("shop", second, "default, edge", "{edge: {external: true}}"))
	infra := stack(t, web("infra", first, "edge", "{edge: {name: edge}}"))

	began := time.Now()
	r := c.Leader().Wherry("apply", "-f", shop, "--timeout", "60s")
	if r.Code != 1 || !strings.Contains(r.Stderr, "network edge does not exist") || time.Since(began) > 30*time.Second {
		t.Fatalf("apply without the network: exit %d after %s: %s", r.Code, time.Since(began), r.Stderr)
	}
	apply(t, c, infra)
	lab.Eventually(t, soon, "shop starts by itself", func() error { return serves(t, c, "shop/web", "shop/web") })
	edge := inspectNetwork(t, c, "edge")

	lab.Eventually(t, soon, "each stack finds its own and the other", func() error {
		from := func(stack, name string) string {
			ti := one(t, c.Leader(), stack+"/web")
			r, err := consult(space(c, ti), vip(t, space(c, ti), name)+":80")
			if err != nil {
				return err.Error()
			}
			return r.server
		}
		for _, x := range []struct{ from, name, to string }{
			{"shop", "web", "shop"}, {"infra", "web", "infra"}, {"shop", "infra_web", "infra"}, {"infra", "shop_web", "shop"},
		} {
			at := one(t, c.Leader(), x.to+"/web")
			if got := from(x.from, x.name); !slices.Contains(addresses(at), got) {
				return fmt.Errorf("%s is told by %s that %s is %s, want one of %v", x.from, got, x.name, x.to, addresses(at))
			}
		}
		return nil
	})

	// The owner goes. What it leaves is as it was.
	before := processes(t, c.Leader(), "shop")
	out := c.Leader().Wherry("rm", "infra")
	if out.Code != 0 || !strings.Contains(out.Stderr, "network edge stays as long as it is used by shop/web") {
		t.Errorf("rm of the owner: exit %d, %s", out.Code, out.Stderr)
	}
	if n := inspectNetwork(t, c, "edge"); n.State != api.NetworkKept || n.ID != edge.ID || n.Subnet != edge.Subnet {
		t.Errorf("the network became %+v", n)
	}
	if err := serves(t, c, "shop/web", "shop/web"); err != nil {
		t.Errorf("without the owner of its network: %v", err)
	}
	if r := c.Leader().Wherry("network", "rm", "edge"); r.Code != 1 || !strings.Contains(r.Stderr, "shop/web") {
		t.Errorf("rm of a network in use: exit %d, %s", r.Code, r.Stderr)
	}
	apply(t, c, infra)
	if n := inspectNetwork(t, c, "edge"); n.State != api.NetworkInUse || n.ID != edge.ID {
		t.Errorf("the network became %+v", n)
	}
	lab.Eventually(t, soon, "shop reaches the new infra", func() error { return serves(t, c, "shop/web", "infra/web") })
	same(t, c.Leader(), "shop", before)

	// One that is made by hand is removed by hand.
	c.Leader().Must("rm", "infra")
	c.Leader().Must("rm", "shop")
	lab.Eventually(t, soon, "the network is gone", func() error {
		if r := c.Leader().Wherry("network", "inspect", "edge"); r.Code == 0 {
			return fmt.Errorf("%s", r.Stdout)
		}
		return nil
	})
	c.Leader().Must("network", "create", "edge", "--subnet", "10.77.0.0/24", "--label", "a=b")
	if r := c.Leader().Wherry("network", "create", "other", "--subnet", "10.77.0.0/16"); r.Code != 1 || !strings.Contains(r.Stderr, "overlaps 10.77.0.0/24 of network edge") {
		t.Errorf("a network on the subnet of another: exit %d, %s", r.Code, r.Stderr)
	}
	apply(t, c, shop)
	if a := addresses(one(t, c.Leader(), "shop/web")); !slices.ContainsFunc(a, func(ip string) bool { return strings.HasPrefix(ip, "10.77.0.") }) {
		t.Errorf("shop is at %v", a)
	}
	c.Leader().Must("rm", "shop")
	c.Leader().Must("network", "rm", "edge")
}

// serves asks the service to from the task of the service from, by STACK_SERVICE.
func serves(t *testing.T, c *lab.Cluster, from, to string) error {
	l := tasks(t, c.Leader(), from)
	if len(l) != 1 {
		return fmt.Errorf("%s has %d tasks", from, len(l))
	}
	name := strings.Replace(to, "/", "_", 1)
	answer, _, err := space(c, l[0]).Lookup(lab.Resolver, name)
	if err != nil {
		return err
	}
	if len(answer) == 0 {
		return fmt.Errorf("%s is not found", name)
	}
	_, err = consult(space(c, l[0]), answer[0]+":80")
	return err
}

// addresses of a task, without prefix lengths.
func addresses(ti api.TaskInfo) []string {
	var out []string
	for _, a := range ti.Addresses {
		ip, _, _ := strings.Cut(a, "/")
		out = append(out, ip)
	}
	return out
}

func inspectNetwork(t *testing.T, c *lab.Cluster, name string) api.NetworkDetail {
	t.Helper()
	var l []api.NetworkDetail
	if err := json.Unmarshal([]byte(c.Leader().Must("network", "inspect", name)), &l); err != nil {
		t.Fatal(err)
	}
	return l[0]
}

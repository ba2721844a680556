//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestVXLANPort: a cluster that is made with another port for its networks uses
// it on every host, is as closed there, and cannot be given a third one.
func TestVXLANPort(t *testing.T) {
	l := lab.New(t)
	one := l.Host("host-1", "--vxlan-port", "4789")
	one.Start()
	load(t, one, images.Must(t, image, ""))
	two, three := l.Host("host-2"), l.Host("host-3")
	two.Join(one, "manager")
	three.Join(one, "worker")
	two.WaitReady()
	three.WaitReady()
	c := &lab.Cluster{Lab: l, Hosts: []*lab.Host{one, two, three}}
	apply(t, c, stack(t, `
name: shop
services:
  web:
    image: `+image+`
    command: ["sleep", "1000"]
    deploy: {mode: global}
`))
	web := members(t, c, "shop/web")
	lab.Eventually(t, 10*time.Second, "all reach each other", func() error { return allPairs(web) })
	for _, h := range c.Hosts {
		if r := h.Run("sh", "-c", "ip -d link show type vxlan; nft list ruleset"); !strings.Contains(r.Stdout, "dstport 4789") || strings.Contains(r.Stdout, "4478") {
			t.Errorf("%s has:\n%s", h.Name, r.Stdout)
		}
		healthy(t, h)
	}
	// That nobody else gets in is shown with the usual port; here it is enough
	// that the rules know this one.
	if r := one.Run("sh", "-c", "nft list ruleset | grep -A3 'set tunnels' | grep -c 4789"); strings.TrimSpace(r.Stdout) != "1" {
		t.Errorf("the rules know port %q: %s", r.Stdout, r.Stderr)
	}

	one.Stop()
	if r := one.Daemon(30*time.Second, "--vxlan-port", "4790"); r.Code != 1 || !strings.Contains(r.Stderr, "the networks of this cluster use UDP port 4789 since it was made") {
		t.Errorf("another port: exit %d: %s", r.Code, r.Stderr)
	}
	one.Start() // the flag of its first start does no harm
	three.Stop()
	if r := three.Daemon(30*time.Second, "--vxlan-port", "4789"); r.Code != 1 || !strings.Contains(r.Stderr, "this node is a worker; leave it out") {
		t.Errorf("on a worker: exit %d: %s", r.Code, r.Stderr)
	}
	three.Start()
	lab.Eventually(t, 10*time.Second, "all reach each other again", func() error { return allPairs(web) })
}

//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/tests/lab"
)

// TestAddressesOfTheFile: what a file says of the addresses of a network is what
// its containers have, and a subnet that the host uses itself is not given.
func TestAddressesOfTheFile(t *testing.T) {
	l, h := oneHost(t)
	h.Run("ip", "route", "add", "10.60.3.0/24", "dev", "lo") // another way, to nowhere
	file := func(version, subnet string) string {
		return stack(t, `
name: addr
services:
  db:
    image: `+image+`
    command: [sh, -c, "echo $$VERSION > /tmp/index.html; exec httpd -f -p 80 -h /tmp"]
    init: true
    environment: {VERSION: "`+version+`"}
    networks: {lan: {ipv4_address: 10.50.0.10, ipv6_address: "fd50::10", mac_address: "0a:00:00:00:00:0a", interface_name: lan0}}
  web:
    image: `+image+`
    command: [sleep, "1000"]
    init: true
    deploy: {replicas: 2}
    networks: [lan]
networks:
  lan:
    enable_ipv6: true
    driver_opts: {com.docker.network.driver.mtu: "1400"}
    ipam:
      config:
        - {subnet: `+subnet+`, gateway: 10.50.0.254, ip_range: 10.50.0.128/28, aux_addresses: {printer: 10.50.0.128}}
        - {subnet: "fd50::/64"}
`)
	}
	h.Must("apply", "-f", file("one", "10.50.0.0/24"))
	db := one(t, h, "addr/db")
	own := []string{"10.50.0.10/24", "fd50::10/64"}
	if !slices.Equal(db.Addresses, own) {
		t.Errorf("db has %v, want %v", db.Addresses, own)
	}
	inside := h.Must("exec", "addr/db", "--", "sh", "-c", "ip addr; ip route; ip -6 route")
	for _, want := range []string{"inet 10.50.0.10/24 ", "inet6 fd50::10/64 ", "default via 10.50.0.254 dev lan0", "default via fd50::1 dev lan0", "mtu 1400 ", "link/ether 0a:00:00:00:00:0a "} {
		if !strings.Contains(inside, want) {
			t.Errorf("inside of db there is no %q:\n%s", want, inside)
		}
	}
	chosen, kept := netip.MustParsePrefix("10.50.0.128/28"), netip.MustParseAddr("10.50.0.128")
	web := tasks(t, h, "addr/web")
	for _, ti := range web {
		if a := netip.MustParsePrefix(ti.Addresses[0]).Addr(); !chosen.Contains(a) || a == kept || len(ti.Addresses) != 2 {
			t.Errorf("%s has %v", ti.Name, ti.Addresses)
		}
	}
	from := h.TaskSpace(web[0].Name, string(web[0].ID))
	reach := func(version string) {
		t.Helper()
		for _, to := range []string{"10.50.0.10", "[fd50::10]"} {
			lab.Eventually(t, soon, "db answers at "+to, func() error {
				if r := from.Run("curl", "-sS", "-m", "5", "http://"+to+"/"); strings.TrimSpace(r.Stdout) != version {
					return fmt.Errorf("%+v", r)
				}
				return nil
			})
		}
	}
	reach("one")

	h.Must("apply", "-f", file("two", "10.50.0.0/24"))
	next := one(t, h, "addr/db")
	if next.ID == db.ID || !slices.Equal(next.Addresses, own) {
		t.Errorf("after the update task %s has %v", next.ID, next.Addresses)
	}
	reach("two")
	if r := h.Wherry("service", "scale", "addr/db=2"); r.Code != 3 || !strings.Contains(r.Stderr, "10.50.0.10") {
		t.Errorf("two tasks with one address: exit %d: %s", r.Code, r.Stderr)
	}
	var nets []api.NetworkInfo
	if err := json.Unmarshal([]byte(h.Must("network", "ls", "--format", "json")), &nets); err != nil || len(nets) != 1 || nets[0].Subnet != "10.50.0.0/24" ||
		nets[0].Gateway != "10.50.0.254" || nets[0].Subnet6 != "fd50::/64" || nets[0].Note != "" {
		t.Errorf("networks: %+v, %v", nets, err)
	}
	if out := h.Must("network", "ls"); !strings.Contains(out, "10.50.0.0/24,fd50::/64") {
		t.Errorf("network ls:\n%s", out)
	}
	h.Must("rm", "addr")
	usedByHost(t, h)
	onHostsNetwork(t, l, h)
}

// onHostsNetwork: tasks are machines of the network of the hosts, for which they
// need its interface.
func onHostsNetwork(t *testing.T, l *lab.Lab, h *lab.Host) {
	const lan = "10.123.0." // of the lab
	l.Plug("client")
	file := func(parent string) string {
		return stack(t, `
name: home
services:
  web:
    image: `+image+`
    command: [sh, -c, "echo at home > /tmp/index.html; exec httpd -f -p 80 -h /tmp"]
    init: true
    networks: {lan: {ipv4_address: `+lan+`130}}
networks:
  lan:
    driver: macvlan
    driver_opts: {parent: `+parent+`}
    ipam: {config: [{subnet: `+lan+`0/24, gateway: `+lan+`200, ip_range: `+lan+`128/27}]}
`)
	}
	const why = "1 node: has no interface eth9 for a macvlan network now"
	if r := h.Wherry("plan", "-f", file("eth9")); !strings.Contains(r.Stdout+r.Stderr, why) {
		t.Errorf("plan: exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	h.Must("apply", "-f", file("eth0"))
	lab.Eventually(t, soon, "a machine of the network reaches the task", func() error {
		if r := l.In("client", "curl", "-sS", "-m", "5", "http://"+lan+"130/"); strings.TrimSpace(r.Stdout) != "at home" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	if out := h.Must("exec", "home/web", "--", "nslookup", "web"); !strings.Contains(out, lan) {
		t.Errorf("its name: %s", out)
	}
	h.Must("rm", "home")
}

// usedByHost: a subnet that the host reaches by other ways is refused, with node
// and route, before and when the stack is applied.
func usedByHost(t *testing.T, h *lab.Host) {
	taken := stack(t, "name: taken\nservices: {s: {image: "+image+", command: [sleep, '1000'], init: true}}\n"+
		"networks: {default: {ipam: {config: [{subnet: 10.60.0.0/16}]}}}\n")
	const why = "subnet 10.60.0.0/16 overlaps 10.60.3.0/24, which node host-1 reaches by other ways"
	lab.Eventually(t, soon, "the node tells of its route", func() error {
		out, err := h.Try("node", "inspect", "host-1", "--format", "json")
		if err == nil && !strings.Contains(out, "10.60.3.0/24") {
			err = errors.New(out)
		}
		return err
	})
	if out := h.Wherry("plan", "-f", taken); !strings.Contains(out.Stdout+out.Stderr, why) {
		t.Errorf("plan does not say why: %s%s", out.Stdout, out.Stderr)
	}
	if r := h.Wherry("apply", "-f", taken, "--timeout", "3s"); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, why) {
		t.Errorf("apply: exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	h.Must("rm", "taken")
}

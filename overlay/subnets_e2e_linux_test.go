//go:build e2e

package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostSubnets: in a namespace of its own, routes, addresses and resolvers
// are told, and neither defaults, nor other tables, nor what is ours.
func TestHostSubnets(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.53\nnameserver 198.51.100.53\nnameserver 192.0.2.53\nnameserver fe80::1%lan0\nnameserver fd53::53\nsearch example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := resolvConfs
	resolvConfs = []string{conf, filepath.Join(t.TempDir(), "none")}
	defer func() { resolvConfs = before }()

	subnets := HostSubnets(testNode)
	if got := subnets(); got != "192.0.2.53/32,198.51.100.53/32,fd53::53/128" {
		t.Errorf("without links: %q", got)
	}
	sh(t, fmt.Sprintf(`set -e; ip link set lo up; ip addr add 198.51.100.7/32 dev lo
		ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up; ip addr add 192.0.2.7/24 dev lan0; ip addr add fd11::7/64 dev lan0 nodad
		ip route add default via 192.0.2.1; ip route add 0.0.0.0/1 via 192.0.2.1; ip -6 route add default via fd11::1
		ip route add 10.50.0.0/16 via 192.0.2.1; ip -6 route add fd12::/48 via fd11::1; ip route add blackhole 10.60.0.0/16
		ip route add 10.70.0.0/16 nexthop via 192.0.2.2 nexthop via 192.0.2.3
		ip route add 10.80.0.0/16 via 192.0.2.1 table 52
		ip link add wbr-1-1 type bridge; ip link set wbr-1-1 group %d; ip link set wbr-1-1 up; ip addr add 10.200.1.1/24 dev wbr-1-1; ip addr add fd99::1/64 dev wbr-1-1 nodad
		ip link add wbr-1-2 type bridge; ip link set wbr-1-2 group %d; ip link set wbr-1-2 up; ip addr add 10.200.2.1/24 dev wbr-1-2
		ip link add docker0 type bridge; ip link set docker0 up; ip addr add 172.17.0.1/16 dev docker0`, linkGroup(testNode), doomedGroup(testNode)))
	want := "10.50.0.0/16,10.70.0.0/16,172.17.0.0/16,192.0.2.0/24,198.51.100.7/32,198.51.100.53/32,fd11::/64,fd12::/48,fd53::53/128"
	if got := subnets(); got != want {
		t.Errorf("got  %s\nwant %s\n%s", got, want, sh(t, "ip route; ip -6 route; ip addr"))
	}
	sh(t, "set -e; ip link del docker0; ip route del 10.50.0.0/16")
	want = "10.70.0.0/16,192.0.2.0/24,198.51.100.7/32,198.51.100.53/32,fd11::/64,fd12::/48,fd53::53/128"
	if got := subnets(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

package store

import (
	"testing"

	"wherry.dev/spec"
)

// TestIPv6: addresses of both families are held alike, by tasks and services.
func TestIPv6(t *testing.T) {
	h := planned(t)
	h.must(putStack(web("blog", 81)))
	net, other := h.s.Snapshot().NetworkNamed("shop_default").ID, h.s.Snapshot().NetworkNamed("blog_default").ID
	base := map[spec.NetworkID]spec.NetworkNumbers{
		net:   {ID: net, Subnet: "10.1.0.0/24", Gateway: "10.1.0.1", VNI: 7},
		other: {ID: other, Subnet: "10.2.0.0/24", Gateway: "10.2.0.1", VNI: 8},
	}
	numbers := func(id spec.NetworkID, subnet, gateway string) spec.Part {
		n := base[id]
		n.Subnet6, n.Gateway6 = subnet, gateway
		return spec.Part{Networks: []spec.NetworkNumbers{n}}
	}
	h.mustPart(numbers(net, "fd00::/64", "fd00::1"))
	wantError(t, h.part(numbers(other, "fd00:0:0:0:1::/80", "fd00:0:0:0:1::1")), spec.ErrConflict, "fd00::1:0:0:0/80 overlaps fd00::/64 of network shop_default")
	wantError(t, h.part(numbers(other, "fd01", "fd01::1")), spec.ErrInvalid, `the subnet "fd01" is none`)
	wantError(t, h.part(numbers(other, "fd01::/64", "")), spec.ErrInvalid, `the gateway "" is no address`)
	wantError(t, h.part(numbers(other, "", "fd01::1")), spec.ErrInvalid, `the subnet "" is none`)
	h.mustPart(numbers(other, "fd01::/64", "fd01::1"))
	if n := h.s.Snapshot().Network(other); n.Subnet6 != "fd01::/64" || n.Gateway6 != "fd01::1" {
		t.Errorf("%+v", n)
	}
	h.mustPart(numbers(other, "", ""))
	if n := h.s.Snapshot().Network(other); n.Subnet6 != "" || n.Gateway6 != "" {
		t.Errorf("%+v", n)
	}

	task := func(slot int, ip, ip6 string) spec.Task {
		x := h.task("n1", slot, ip)
		x.Addresses[0].IP6 = ip6
		return x
	}
	create := func(x spec.Task) spec.Part { return spec.Part{Create: []spec.Task{x}} }
	h.mustPart(create(task(1, "10.1.0.2/24", "fd00::2/64")))
	wantError(t, h.part(create(task(2, "10.1.0.3/24", "fd00::2/64"))), spec.ErrConflict, "address fd00::2/64 on network shop_default is held by task shop.web.1")
	wantError(t, h.part(create(task(2, "10.1.0.3/24", "fd00::3"))), spec.ErrInvalid, "no IPv6 address with a prefix length")
	wantError(t, h.part(create(task(2, "10.1.0.3/24", "10.1.0.4/24"))), spec.ErrInvalid, "no IPv6 address with a prefix length")
	vip := func(ip, ip6 string) spec.Part {
		return vips("shop", spec.ServiceVIP{Network: net, Address: ip, Address6: ip6})
	}
	wantError(t, h.part(vip("10.1.0.9", "fd00::2")), spec.ErrConflict, "address fd00::2 on network shop_default is held by task shop.web.1")
	wantError(t, h.part(vip("10.1.0.9", "fd00::9/64")), spec.ErrInvalid, "no IPv6 address without a prefix length")
	wantError(t, h.part(vip("10.1.0.9", "10.1.0.10")), spec.ErrInvalid, "no IPv6 address without a prefix length")
	h.mustPart(vip("10.1.0.9", "fd00::9"))
	h.mustPart(vip("10.1.0.9", "fd00::9")) // its own is no obstacle
	wantError(t, h.part(create(task(2, "10.1.0.3/24", "fd00::9/64"))), spec.ErrConflict, "address fd00::9/64 on network shop_default is the virtual one of service shop/web")
	n := h.s.Snapshot()
	if len(n.TasksAt(net)) != 1 || len(n.ServicesAt(net)) != 1 {
		t.Errorf("%d tasks and %d services are on the network, each is to be found once", len(n.TasksAt(net)), len(n.ServicesAt(net)))
	}
}

// TestFixedAddress: a service with an address of its own has one task.
func TestFixedAddress(t *testing.T) {
	h := planned(t)
	h.must(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: 3}})
	fixed := edit(web("shop", 8080), "web", func(s *spec.ServiceSpec) { s.Template.Networks[0].IP = "10.1.0.8" })
	h.refuse(putStack(fixed), spec.ErrInvalid, "service shop/web is scaled to 3", "10.1.0.8", "scale it to 1 first")
	h.must(putStack(edit(fixed, "web", func(s *spec.ServiceSpec) { s.Replicas = ptr(1) })))
	h.refuse(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: 2}}, spec.ErrInvalid, "service shop/web cannot be scaled to 2", "10.1.0.8")
	h.must(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: 0}})
	h.must(putStack(web("shop", 8080)))
	h.must(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: 2}})
}

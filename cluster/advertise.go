package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wherry.dev/spec"
)

// advertisePoll is how often the host's addresses are looked at.
const advertisePoll = 2 * time.Second

// Addresses of documentation: a packet to them takes the default route. None
// is ever sent.
const (
	farAway4 = "192.0.2.1:9"
	farAway6 = "[2001:db8::1]:9"
)

// advertised returns the "IP:PORT" at which other nodes shall reach this one.
// flag is what a person said, "IP" or "IP:PORT", and is taken as it is; else
// it is the address that the default route sends from, else the only global
// address of the host, else 127.0.0.1, at which nobody else can. port is the
// port if flag does not say one.
func advertised(flag string, port int) (string, error) {
	if flag != "" {
		return parseAdvertise(flag, port)
	}
	routed := []netip.Addr{sourceTo("udp4", farAway4), sourceTo("udp6", farAway6)}
	var locals []hostAddress
	// Looking at all links takes long on a host of many, and is needed rarely.
	if !slices.ContainsFunc(routed, reachable) {
		var err error
		if locals, err = hostAddresses(); err != nil {
			return "", fmt.Errorf("find this host's address: %w; give it with --advertise IP", err)
		}
	}
	ip := chooseAddress(routed, locals)
	return netip.AddrPortFrom(ip, uint16(port)).String(), nil
}

// parseAdvertise reads "IP" or "IP:PORT".
func parseAdvertise(flag string, port int) (string, error) {
	at, err := netip.ParseAddrPort(flag)
	if err != nil {
		ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(flag, "["), "]"))
		if err != nil {
			return "", spec.Invalidf("advertise %q: want IP or IP:PORT, as 10.0.0.5 or [2001:db8::5]:4477", flag)
		}
		at = netip.AddrPortFrom(ip, uint16(port))
	}
	switch ip := at.Addr().Unmap(); {
	case ip.IsUnspecified(), ip.IsMulticast():
		return "", spec.Invalidf("advertise %q: other nodes cannot reach that address", flag)
	case ip.Zone() != "":
		return "", spec.Invalidf("advertise %q: an address of one link means nothing to other hosts", flag)
	case at.Port() == 0:
		return "", spec.Invalidf("advertise %q: the port must not be 0", flag)
	default:
		return netip.AddrPortFrom(ip, at.Port()).String(), nil
	}
}

// hostAddress is an address of one of the host's links.
type hostAddress struct {
	link string
	ip   netip.Addr
}

// chooseAddress picks from the sources of the default routes (invalid: there is
// none) and the host's addresses.
func chooseAddress(routed []netip.Addr, locals []hostAddress) netip.Addr {
	for _, ip := range routed {
		if ip.IsValid() && reachable(ip) {
			return ip
		}
	}
	for _, is4 := range []bool{true, false} {
		var found []netip.Addr
		for _, l := range locals {
			if l.ip.Is4() == is4 && reachable(l.ip) && !forContainers(l.link) && !slices.Contains(found, l.ip) {
				found = append(found, l.ip)
			}
		}
		if len(found) == 1 {
			return found[0]
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// reachable reports whether another host could have a way to the address.
func reachable(ip netip.Addr) bool { return ip.IsGlobalUnicast() && !ip.IsLinkLocalUnicast() }

// forContainers reports whether a link is one that joins containers or virtual
// machines to the host, by its name: ours, and the usual ones of others.
func forContainers(link string) bool {
	for _, prefix := range []string{"wbr-", "docker", "br-", "veth", "cni", "flannel", "virbr", "lxc", "lxdbr", "podman"} {
		if strings.HasPrefix(link, prefix) {
			return true
		}
	}
	return false
}

func hostAddresses() ([]hostAddress, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []hostAddress
	for _, link := range links {
		if link.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := link.Addrs()
		if err != nil { // it is gone by now
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, hostAddress{link.Name, p.Addr().Unmap()})
			}
		}
	}
	return out, nil
}

// sourceTo returns the address that the host would send from; invalid if it
// has no route.
func sourceTo(network, far string) netip.Addr {
	c, err := net.Dial(network, far)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// watchAdvertised calls changed whenever the address that advertised finds
// without a flag is another than before, at first than current. A host that
// has no address for a moment keeps its last one. It returns when ctx ends.
func watchAdvertised(ctx context.Context, current string, port int, changed func(string)) {
	watchAddress(ctx, advertisePoll, current, func() (string, error) { return advertised("", port) }, changed)
}

func watchAddress(ctx context.Context, every time.Duration, current string, find func() (string, error), changed func(string)) {
	for wait(ctx, every) {
		found, err := find()
		if err != nil || found == current {
			continue
		}
		if at, err := netip.ParseAddrPort(found); err != nil || at.Addr().IsLoopback() {
			continue
		}
		current = found
		changed(found)
	}
}

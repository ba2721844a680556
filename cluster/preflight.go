package cluster

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// preflightTime is how long others are waited for before this node starts.
const preflightTime = time.Second

// preflight asks, before this node takes part in anything, whether somebody
// else answers as this node at one of the addresses that are known of it: a
// copied disk would otherwise give one vote to two hosts. Addresses at which
// this host itself listens on the port are skipped, own is what it advertises.
// The error is of class ErrConflict. That nobody answers proves nothing, but
// is all that can be asked for.
func preflight(ctx context.Context, identity *ca.Identity, id spec.NodeID, known []string, own string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, preflightTime)
	defer cancel()
	locals, _ := net.InterfaceAddrs() // without them, more is asked
	var all sync.WaitGroup
	var mu sync.Mutex
	var other string
	for _, addr := range known {
		if addr == own || isLocal(addr, port, locals) {
			continue
		}
		all.Go(func() {
			conn, peer, _ := dialNode(ctx, identity, addr, "", protoHTTP2, func(c net.Conn) (net.Conn, error) { return c, nil })
			if conn != nil {
				conn.Close()
			}
			if peer == id {
				mu.Lock()
				defer mu.Unlock()
				other = addr
			}
		})
	}
	all.Wait()
	if other != "" {
		return spec.Conflictf("another host at %s uses the identity of this node, %s: stop one of the two, and if its data folder is a copy, start it with an empty one and let it join as a new node", other, id)
	}
	return nil
}

// isLocal reports whether an address is one of this host's own with the port.
func isLocal(addr string, port int, locals []net.Addr) bool {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || int(at.Port()) != port {
		return false
	}
	return slices.ContainsFunc(locals, func(l net.Addr) bool {
		p, err := netip.ParsePrefix(l.String())
		return err == nil && p.Addr().Unmap() == at.Addr().Unmap()
	})
}

package overlay

import (
	"maps"
	"net/netip"
	"strings"
	"sync"

	"wherry.dev/spec"
)

// endpoint is one end of a network.
type endpoint struct {
	network spec.NetworkID
	ip      netip.Addr
}

// endpointOf returns the endpoint of an IP address with or without prefix
// length; ok is false for what is none.
func endpointOf(network spec.NetworkID, ip string) (e endpoint, ok bool) {
	ip, _, _ = strings.Cut(ip, "/")
	a, err := netip.ParseAddr(ip)
	return endpoint{network, a.Unmap()}, err == nil
}

// targets are the endpoints that ports and VIPs of the documents lead to.
func targets(nets []spec.HostNetwork) map[endpoint]bool {
	out := map[endpoint]bool{}
	for _, n := range nets {
		for _, p := range n.Ports {
			for _, t := range p.Targets {
				if a, err := netip.ParseAddrPort(t); err == nil {
					out[endpoint{n.Network.ID, a.Addr().Unmap()}] = true
				}
			}
		}
		for _, v := range n.VIPs {
			for _, t := range v.Targets {
				if e, ok := endpointOf(n.Network.ID, t); ok {
					out[e] = true
				}
			}
		}
	}
	return out
}

// answers are the endpoints that names lead to.
func answers(tables []spec.NameTable) map[endpoint]bool {
	out := map[endpoint]bool{}
	for _, t := range tables {
		for _, n := range t.Names {
			for _, a := range n.Addresses {
				if e, ok := endpointOf(t.Network, a); ok {
					out[e] = true
				}
			}
		}
	}
	return out
}

// ledger knows what this host may lead traffic to: not what it was told last,
// but what the kernel and the DNS were brought to, and may have been brought to
// by attempts since that did not succeed.
type ledger struct {
	mu          sync.Mutex
	kernel, dns page
	less        chan struct{} // closed and replaced at each success
}

// page is the part of the ledger for one of those that lead.
type page struct {
	// known is false before the first success in the life of this process: an
	// earlier one may have led to anything.
	known bool
	to    map[endpoint]bool
	// change of what is wanted that the last success brought; the kernel's only.
	change uint64
}

func newLedger(dns bool) *ledger {
	return &ledger{dns: page{known: !dns}, less: make(chan struct{})}
}

// try notes that p is about to be brought to lead to these endpoints: from now
// on it may, in addition to what it led to before.
func (l *ledger) try(p *page, to map[endpoint]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !p.known {
		return
	}
	if p.to == nil {
		p.to = map[endpoint]bool{}
	}
	maps.Copy(p.to, to)
}

// succeed notes that p leads to these endpoints and nowhere else.
func (l *ledger) succeed(p *page, change uint64, to map[endpoint]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*p = page{known: true, to: to, change: change}
	close(l.less)
	l.less = make(chan struct{})
}

// current reports whether the kernel was brought to the documents of change, so
// that a further pass leads nowhere else.
func (l *ledger) current(change uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kernel.known && l.kernel.change == change
}

// leads reports whether traffic may be led to e.
func (l *ledger) leads(e endpoint) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.kernel.known || !l.dns.known || l.kernel.to[e] || l.dns.to[e]
}

// changed returns a channel that is closed when leads may answer otherwise.
func (l *ledger) changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.less
}

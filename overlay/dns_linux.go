package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"wherry.dev/spec"
)

// dnsSender hands resolvers and names to the DNS, always as a whole, and only
// when they changed or the DNS has not taken them yet.
type dnsSender struct {
	to DNS
	// mu orders the calls: a caller that waited for another finds its own
	// resolver sent already.
	mu   sync.Mutex
	sent *dnsTables // nil when the last call failed
	when time.Time
}

type dnsTables struct {
	resolvers []spec.Resolver
	tables    []spec.NameTable
}

// sendDNS returns when the DNS has everything that is known now. With force it
// is sent even if it is the same.
func (h *Host) sendDNS(ctx context.Context, force bool) error {
	d := &h.dns
	if d.to == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t := h.dnsTables()
	if !force && d.sent != nil && reflect.DeepEqual(*d.sent, t) {
		return nil
	}
	d.sent = nil
	names := answers(t.tables)
	h.led.try(&h.led.dns, names)
	if err := d.to.SetDNS(ctx, t.resolvers, t.tables); err != nil {
		return err
	}
	d.sent, d.when = &t, time.Now()
	h.led.succeed(&h.led.dns, 0, names)
	return nil
}

// refreshDNS sends the tables from the loop, which comes back if that fails.
func (h *Host) refreshDNS(ctx context.Context) {
	h.mu.Lock()
	known := h.known
	h.mu.Unlock()
	if !known {
		return
	}
	h.dns.mu.Lock()
	force := time.Since(h.dns.when) > dnsRefresh
	h.dns.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	if err := h.sendDNS(ctx, force); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		h.log.Warn("cannot hand the names to the DNS; trying again", "err", err)
	}
}

// dnsTables returns a resolver for every task that is on a network, and the
// names of all networks. A task whose networks are all internal asks nobody
// outside: a lookup is a way out as well.
func (h *Host) dnsTables() dnsTables {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := dnsTables{resolvers: []spec.Resolver{}, tables: []spec.NameTable{}}
	for _, n := range h.documentsLocked() {
		out.tables = append(out.tables, spec.NameTable{Network: n.Network.ID, Names: n.Names, Ports: n.NamedPorts})
	}
	host := hostResolvers("/etc/resolv.conf")
	for id, t := range h.tasks {
		if !t.ready || t.Mode != "" || len(t.Addresses) == 0 || !h.spaces.exists(id) {
			continue
		}
		r := spec.Resolver{Task: id, NetNS: h.spaces.path(id), Stack: t.Stack}
		outside := false
		for _, a := range t.Addresses {
			r.Networks = append(r.Networks, a.Network)
			outside = outside || !h.nets[a.Network].Network.Spec.Internal
		}
		switch {
		case !outside:
			r.Isolated = true // without servers, the host's would be asked
		case len(t.DNS) > 0:
			r.Upstream = t.DNS
		default:
			r.Upstream = host
		}
		out.resolvers = append(out.resolvers, r)
	}
	slices.SortFunc(out.resolvers, func(a, b spec.Resolver) int { return strings.Compare(string(a.Task), string(b.Task)) })
	return out
}

// hostResolvers returns the name servers of the host. Those on the loopback
// are good: they are asked from the host's namespace.
func hostResolvers(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil // a host without name servers resolves names of the cluster only
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

// networksFile is the last set of documents, in the run folder: a daemon that
// starts anew goes on with it before any manager has been reached.
func networksFile(runDir string) string { return filepath.Join(runDir, "networks.json") }

func saveNetworks(runDir string, nets []spec.HostNetwork) error {
	b, err := json.Marshal(nets)
	if err != nil {
		return fmt.Errorf("encode networks: %w", err)
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return err
	}
	tmp := networksFile(runDir) + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, networksFile(runDir))
}

// loadNetworks returns nothing when there is no file, or when a crash of the
// host left half of one: the documents come again.
func loadNetworks(runDir string) ([]spec.HostNetwork, error) {
	b, err := os.ReadFile(networksFile(runDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read networks: %w", err)
	}
	var nets []spec.HostNetwork
	if json.Unmarshal(b, &nets) != nil {
		return nil, nil
	}
	return nets, nil
}

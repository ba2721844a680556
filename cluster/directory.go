package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// peersFile keeps the directory, in the data folder.
const peersFile = "peers.json"

// The sources of addresses.
const (
	fromState   = "state"   // the table of nodes, or a manager's word of it
	fromSession = "session" // the node itself, to a manager
	fromGossip  = "gossip"  // the node itself, by way of any other
)

const (
	// maxAddresses is how many addresses are kept of a node: the newest, and
	// among them always what the state said last.
	maxAddresses = 4
	// saveDelay gathers changes into one write of the file.
	saveDelay = 500 * time.Millisecond
)

// directory knows where nodes can be reached. All of it is hints: who answers
// at an address proves by its certificate who it is. So a wrong address costs
// time and nothing else, and addresses are kept until newer ones push them out;
// what the state says of a node is never pushed out.
//
// Safe for concurrent use.
type directory struct {
	path string
	log  *slog.Logger
	// dirty has an element while there is something to save.
	dirty chan struct{}

	mu sync.Mutex
	// nodes maps each node to its addresses, the best first.
	nodes map[spec.NodeID][]string
	// told is what each source has said last of each node.
	told map[saying]string
	// seeds are addresses of nodes whose IDs are not known.
	seeds []string
	info  *api.ClusterInfo
}

type saying struct {
	id     spec.NodeID
	source string
}

// peers is the form of the directory's file.
type peers struct {
	// Cluster is what a session said last of the cluster.
	Cluster *api.ClusterInfo         `json:"cluster,omitempty"`
	Nodes   map[spec.NodeID][]string `json:"nodes"`
}

// openDirectory reads the file at path, if there is one. One that cannot be
// read is as good as none: its content comes back by and by. seeds are
// addresses that a person gave.
func openDirectory(path string, seeds []string, log *slog.Logger) *directory {
	d := &directory{
		path: path, log: log, dirty: make(chan struct{}, 1),
		nodes: map[spec.NodeID][]string{}, told: map[saying]string{}, seeds: slices.Clone(seeds),
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d
	}
	var p peers
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		log.Warn("known addresses of other nodes are lost, start with --peer ADDR if none is found", "file", path, "err", err)
		return d
	}
	d.info = p.Cluster
	for id, addrs := range p.Nodes {
		for _, a := range addrs {
			if goodAddress(a) && len(d.nodes[id]) < maxAddresses {
				d.nodes[id] = append(d.nodes[id], a)
			}
		}
	}
	return d
}

// goodAddress reports whether an address can be dialled at all.
func goodAddress(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	return err == nil && host != "" && port != "" && port != "0" && len(addr) < 300
}

// tell notes what a source says of a node's address. Only news counts: a
// source that repeats itself does not push back what was heard since.
func (d *directory) tell(id spec.NodeID, addr, source string) {
	if id == "" || !goodAddress(addr) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := saying{id, source}
	before, again := d.told[c]
	if before == addr {
		return
	}
	d.told[c] = addr
	// What a source says for the first time since the start may be older than
	// what the file says.
	if !again && slices.Contains(d.nodes[id], addr) {
		return
	}
	d.preferLocked(id, addr)
}

// learn notes which node has answered at an address.
func (d *directory) learn(id spec.NodeID, addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for other, addrs := range d.nodes {
		if i := slices.Index(addrs, addr); i >= 0 && other != id && i < len(addrs)-1 {
			d.nodes[other] = append(slices.Delete(addrs, i, i+1), addr)
			d.changedLocked()
		}
	}
	d.preferLocked(id, addr)
}

// preferLocked puts an address first.
func (d *directory) preferLocked(id spec.NodeID, addr string) {
	old := d.nodes[id]
	if len(old) > 0 && old[0] == addr {
		return
	}
	next := []string{addr}
	for _, a := range old {
		if a != addr && len(next) < maxAddresses {
			next = append(next, a)
		}
	}
	if word := d.told[saying{id, fromState}]; word != "" && !slices.Contains(next, word) {
		next = append(next[:min(len(next), maxAddresses-1)], word)
	}
	d.nodes[id] = next
	d.changedLocked()
}

func (d *directory) changedLocked() {
	select {
	case d.dirty <- struct{}{}:
	default:
	}
}

// find returns the addresses to try for a node, the best first; seeds of which
// nobody knows whose they are come last.
func (d *directory) find(id spec.NodeID) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append(slices.Clone(d.nodes[id]), d.strangersLocked()...)
}

// known returns the addresses of a node alone.
func (d *directory) known(id spec.NodeID) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.nodes[id])
}

// strangersLocked are the seeds that no node is known to answer at.
func (d *directory) strangersLocked() []string {
	var out []string
	for _, s := range d.seeds {
		taken := false
		for _, addrs := range d.nodes {
			taken = taken || len(addrs) > 0 && addrs[0] == s
		}
		if !taken {
			out = append(out, s)
		}
	}
	return out
}

// strangers returns the seeds that no node is known to answer at.
func (d *directory) strangers() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.strangersLocked()
}

// ids returns the nodes of which an address is known, in order.
func (d *directory) ids() []spec.NodeID {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []spec.NodeID
	for id := range d.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// setNodes notes the table of nodes as a whole: a node that is not in it has
// left the cluster, and its addresses are forgotten.
func (d *directory) setNodes(nodes []*spec.Node) {
	d.mu.Lock()
	live := map[spec.NodeID]bool{}
	for _, n := range nodes {
		live[n.ID] = true
	}
	for id := range d.nodes {
		if !live[id] {
			delete(d.nodes, id)
			d.changedLocked()
		}
	}
	for c := range d.told {
		if !live[c.id] {
			delete(d.told, c)
		}
	}
	d.mu.Unlock()
	for _, n := range nodes {
		d.tell(n.ID, n.Address, fromState)
	}
}

// setCluster notes what a session says of the cluster.
func (d *directory) setCluster(info api.ClusterInfo) {
	d.mu.Lock()
	d.info = &info
	d.changedLocked()
	d.mu.Unlock()
	for _, p := range info.Managers {
		d.tell(p.ID, p.Address, fromState)
	}
}

// cluster returns what was said last of the cluster, in this life or an
// earlier one; false if nothing was.
func (d *directory) cluster() (api.ClusterInfo, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.info == nil {
		return api.ClusterInfo{}, false
	}
	return *d.info, true
}

// run saves changes until ctx ends.
func (d *directory) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return d.save()
		case <-d.dirty:
		}
		wait(ctx, saveDelay)
		if err := d.save(); err != nil {
			d.log.Warn("cannot keep the addresses of other nodes", "err", err)
		}
	}
}

// save writes the file if it does not say the same already.
func (d *directory) save() error {
	d.mu.Lock()
	b, err := json.MarshalIndent(peers{Cluster: d.info, Nodes: d.nodes}, "", "  ")
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encode %s: %w", d.path, err)
	}
	b = append(b, '\n')
	if old, err := os.ReadFile(d.path); err == nil && string(old) == string(b) {
		return nil
	}
	if err := ca.WriteFile(d.path, b); err != nil {
		return fmt.Errorf("write %s: %w", d.path, err)
	}
	return nil
}

package store

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

// tables are all tables of the state. They hold no rows and never change.
type tables struct {
	stacks         table[spec.StackRow]      // by name
	stackRevisions table[spec.StackRevision] // by stack and number
	services       table[spec.Service]       // by stack and name
	tasks          table[spec.Task]          // by ID
	networks       table[spec.Network]       // by ID
	volumes        table[spec.Volume]        // by ID
	nodes          table[spec.Node]          // by ID
	authority      table[spec.Authority]     // one row
	revisions      table[spec.Revision]      // by ID
	contents       table[spec.Content]       // by ID
	data           table[spec.Datum]         // by kind and name
	events         table[spec.Event]         // by Seq
	requests       table[request]            // by ID
}

// request is the remembered result of a user's command.
type request struct {
	ID string `json:"id"`
	// Seq counts the requests, so that the oldest is known.
	Seq        uint64 `json:"seq"`
	Index      uint64 `json:"index"`
	ErrorClass string `json:"error_class,omitempty"`
	Error      string `json:"error,omitempty"`
	Revision   uint64 `json:"revision,omitempty"`
	Changed    bool   `json:"changed,omitempty"`
}

// The names of indexes.
const (
	byName     = "name"     // networks, volumes, nodes: cluster-wide name
	byStack    = "stack"    // networks, volumes: owning stack
	byService  = "service"  // tasks: stack and service
	byNode     = "node"     // tasks; services: nodes that are to fetch their images
	byAddress  = "address"  // tasks: network and IP, of either family
	byVolume   = "volume"   // tasks: volumes that are bound
	byPort     = "port"     // services: published port and protocol
	byVIP      = "vip"      // services: network and virtual IP, of either family
	byContent  = "content"  // stack revisions, volumes, revisions, services, data: contents they refer to
	bySeq      = "seq"      // requests
	byRemoving = "removing" // volumes that are being removed, or moved, or leave copies behind
)

func newTables() *tables {
	return &tables{
		stacks: table[spec.StackRow]{name: "stacks", key: func(s *spec.StackRow) []byte { return textKey(s.Name) }},
		stackRevisions: table[spec.StackRevision]{name: "stack_revisions",
			key: func(r *spec.StackRevision) []byte { return stackRevisionKey(r.Stack, r.Number) },
			indexes: []index[spec.StackRevision]{
				{name: byContent, values: func(r *spec.StackRevision) [][]byte { return contentValues(stackContents(&r.Spec)) }},
			}},
		services: table[spec.Service]{name: "services",
			key: func(s *spec.Service) []byte { return textsKey(s.Stack, s.Name) },
			indexes: []index[spec.Service]{
				{name: byPort, values: portValues},
				{name: byVIP, values: vipValues},
				{name: byContent, values: liveValues},
				{name: byNode, values: fetchValues},
			}},
		tasks: table[spec.Task]{name: "tasks",
			key: func(t *spec.Task) []byte { return idKey(t.ID) },
			indexes: []index[spec.Task]{
				{name: byService, values: func(t *spec.Task) [][]byte { return one(textsKey(t.Stack, t.Service)) }},
				{name: byNode, values: taskNodeValue},
				{name: byAddress, values: taskAddressValues},
				{name: byVolume, values: taskVolumeValues},
			}},
		networks: table[spec.Network]{name: "networks",
			key: func(n *spec.Network) []byte { return idKey(n.ID) },
			indexes: []index[spec.Network]{
				{name: byName, unique: true, values: func(n *spec.Network) [][]byte { return one(textKey(n.Name)) }},
				{name: byStack, values: func(n *spec.Network) [][]byte { return one(textsKey(n.Stack)) }},
			}},
		volumes: table[spec.Volume]{name: "volumes",
			key: func(v *spec.Volume) []byte { return idKey(v.ID) },
			indexes: []index[spec.Volume]{
				{name: byName, unique: true, values: func(v *spec.Volume) [][]byte { return one(textKey(v.Name)) }},
				{name: byStack, values: func(v *spec.Volume) [][]byte { return one(textsKey(v.Stack)) }},
				{name: byRemoving, values: volumeRemovingValue},
				{name: byContent, values: func(v *spec.Volume) [][]byte { return contentValues([]spec.ContentID{v.Spec.Seed}) }},
			}},
		nodes: table[spec.Node]{name: "nodes", key: func(n *spec.Node) []byte { return textKey(n.ID) },
			indexes: []index[spec.Node]{
				{name: byName, unique: true, values: func(n *spec.Node) [][]byte { return one(textKey(n.Name)) }},
			}},
		authority: table[spec.Authority]{name: "authority", since: 2, key: func(*spec.Authority) []byte { return authorityKey }},
		revisions: table[spec.Revision]{name: "revisions",
			key: func(r *spec.Revision) []byte { return textKey(r.ID) },
			indexes: []index[spec.Revision]{
				{name: byContent, values: func(r *spec.Revision) [][]byte { return contentValues(r.Template.Contents()) }},
			}},
		contents: table[spec.Content]{name: "contents", key: func(c *spec.Content) []byte { return textKey(c.ID) }},
		data: table[spec.Datum]{name: "data", since: 4, key: datumRowKey,
			indexes: []index[spec.Datum]{
				{name: byContent, values: func(d *spec.Datum) [][]byte { return contentValues([]spec.ContentID{d.Newest().Content}) }},
			}},
		events: table[spec.Event]{name: "events", key: func(e *spec.Event) []byte { return numberKey(e.Seq) }},
		requests: table[request]{name: "requests",
			key: func(r *request) []byte { return textKey(r.ID) },
			indexes: []index[request]{
				{name: bySeq, unique: true, values: func(r *request) [][]byte { return one(numberKey(r.Seq)) }},
			}},
	}
}

// authorityKey is the key of the only row of its table.
var authorityKey = []byte("authority")

// list returns every table in the order of a snapshot, which is fixed.
func (t *tables) list() []anyTable {
	return []anyTable{&t.stacks, &t.stackRevisions, &t.services, &t.tasks, &t.networks, &t.volumes,
		&t.nodes, &t.authority, &t.revisions, &t.contents, &t.data, &t.events, &t.requests}
}

// open returns an empty database.
func (t *tables) open() *memdb.MemDB {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, x := range t.list() {
		s.Tables[x.title()] = x.schema()
	}
	// A snapshot of a memdb is a database of its own that does not track which
	// watch channels a write touches; ours are made above it.
	return must(memdb.NewMemDB(s)).Snapshot()
}

func stackRevisionKey(stack string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(textsKey(stack), n)
}

func taskNodeValue(t *spec.Task) [][]byte {
	if t.Node == "" {
		return nil
	}
	return one(textsKey(string(t.Node)))
}

func taskAddressValues(t *spec.Task) [][]byte {
	if len(t.Addresses) == 0 {
		return nil
	}
	values := make([][]byte, 0, len(t.Addresses))
	for _, a := range t.Addresses {
		if v := addressValue(a.Network, a.IP); v != nil {
			values = append(values, v)
		}
		if v := addressValue(a.Network, a.IP6); v != nil {
			values = append(values, v)
		}
	}
	return values
}

// addressValue is the place of an address on its network; nil when either is
// not well formed.
func addressValue(network spec.NetworkID, ip string) []byte {
	k := idKey(network)
	p, err := netip.ParsePrefix(ip)
	if err != nil || k == nil {
		return nil
	}
	return appendIP(k, p.Addr())
}

// vipValue is the same place for a virtual address, which has no prefix length.
func vipValue(network spec.NetworkID, address string) []byte {
	k := idKey(network)
	ip, err := netip.ParseAddr(address)
	if err != nil || k == nil {
		return nil
	}
	return appendIP(k, ip)
}

func appendIP(k []byte, ip netip.Addr) []byte {
	a := ip.WithZone("").As16()
	return append(k, a[:]...)
}

func vipValues(s *spec.Service) [][]byte {
	var values [][]byte
	for _, v := range s.VIPs {
		for _, address := range []string{v.Address, v.Address6} {
			if value := vipValue(v.Network, address); value != nil {
				values = append(values, value)
			}
		}
	}
	return values
}

func taskVolumeValues(t *spec.Task) [][]byte {
	var values [][]byte
	for _, b := range t.Volumes {
		// A volume that is mounted twice has one entry.
		if v := idKey(b.ID); v != nil && !slices.ContainsFunc(values, func(w []byte) bool { return string(w) == string(v) }) {
			values = append(values, v)
		}
	}
	return values
}

// The values of byRemoving.
var removingVolume, movedVolume = []byte{1}, []byte{2}

func volumeRemovingValue(v *spec.Volume) [][]byte {
	switch {
	case v.Removing:
		return one(removingVolume)
	case v.Move != nil || len(v.Left) > 0:
		return one(movedVolume)
	}
	return nil
}

func fetchValues(s *spec.Service) [][]byte {
	var values [][]byte
	for _, n := range s.Fetch {
		values = append(values, textsKey(string(n)))
	}
	return values
}

func portValues(s *spec.Service) [][]byte {
	var values [][]byte
	for _, p := range publishedPorts(s) {
		v := portValue(&p)
		if !slices.ContainsFunc(values, func(w []byte) bool { return string(w) == string(v) }) {
			values = append(values, v)
		}
	}
	return values
}

func portValue(p *spec.Port) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 40), p.Published), textsKey(p.Protocol)...)
}

func contentValues(ids []spec.ContentID) [][]byte {
	var values [][]byte
	for _, id := range ids {
		if id != "" {
			values = append(values, textsKey(string(id)))
		}
	}
	return values
}

// datumRowKey is nil for what no command can have made.
func datumRowKey(d *spec.Datum) []byte {
	if len(d.Versions) == 0 {
		return nil
	}
	return datumKey(d.Kind, d.Name)
}

// liveValues are the contents that a service refers to outside of its template.
func liveValues(s *spec.Service) [][]byte {
	return contentValues(slices.Compact(slices.Sorted(maps.Values(s.Spec.Live))))
}

// stackContents returns the contents that a stack refers to, sorted, each once.
func stackContents(s *spec.Stack) []spec.ContentID {
	var ids []spec.ContentID
	for _, svc := range s.Services {
		ids = append(ids, svc.Template.Contents()...)
	}
	for _, kind := range spec.DatumKinds {
		for _, d := range s.Data(kind) {
			if d.Content != "" {
				ids = append(ids, d.Content)
			}
		}
	}
	for _, v := range s.Volumes {
		if v.Seed != "" && !v.External {
			ids = append(ids, v.Seed)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

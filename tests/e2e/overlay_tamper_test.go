//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wherry.dev/tests/lab"
)

// tampering: TAMPER times something of the network is broken at random, on a
// host or in a task, and each time all is as before within seconds. SEED
// repeats a run.
func tampering(t *testing.T, c *lab.Cluster) {
	n := count(t, "TAMPER", 20)
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("SEED=%q: want a number", v)
		}
	}
	t.Logf("SEED=%d TAMPER=%d", seed, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	// A virtual address and a published port, so that all tables have something.
	withPairs(t, c, "  v: {image: "+image+", command: [sleep, '7503'], stop_signal: SIGKILL, ports: ['8120:80'], deploy: {replicas: 2}}\n")
	defer withPairs(t, c, "")
	var hosts, inside []lab.Space
	for _, h := range c.Hosts {
		hosts = append(hosts, c.Space(h.Name))
	}
	for _, m := range members(t, c, "pairs/a", "pairs/v") {
		inside = append(inside, m.Space)
	}
	var times []time.Duration
	broken, failed := map[string]int{}, 0
	for tries := 0; len(times) < n; tries++ {
		if tries > 20*n {
			t.Fatalf("only %d of %d attempts broke something", len(times), tries)
		}
		where, onHost := inside[rng.IntN(len(inside))], rng.IntN(10) < 7
		if onHost {
			where = hosts[rng.IntN(len(hosts))]
		}
		before := kernelState(where, onHost)
		if before.err != nil {
			t.Fatal(before.err)
		}
		kind, line := before.damage(rng, onHost)
		if line == "" {
			continue // there is nothing of this kind
		}
		started := time.Now()
		if r := where.Run("sh", "-c", line); r.Code != 0 {
			t.Logf("%s: %s: %s", where.Name, line, strings.TrimSpace(r.Stderr))
			continue
		}
		var left []string
		took, err := until(t.Context(), 20*time.Second, started, func() error {
			left = before.diff(kernelState(where, onHost))
			if len(left) > 0 {
				return fmt.Errorf("%d differences", len(left))
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %s: %v:\n  %s", where.Name, line, err, strings.Join(left, "\n  "))
			if failed++; failed == 5 {
				t.Fatal("that is enough")
			}
		} else if took > 5*time.Second {
			t.Logf("%s: %s: repaired after %s", where.Name, line, short(took))
		}
		times = append(times, took)
		broken[kind]++
	}
	t.Logf("what was broken: %v", broken)
	figure(t, "tampering repaired", times, 0, 5*time.Second)
	lab.Eventually(t, soon, "all pairs reach each other", func() error { return allPairs(members(t, c, "pairs/a", "pairs/b")) })
}

// kernel is what matters of a namespace, as text; the order and the numbers
// that the kernel gives do not.
type kernel struct {
	lines  map[string]bool
	links  []netLink
	fdb    []entry
	neighs []neigh
	routes []route
	addrs  []addr
	tables []string // "family name"
	rules  []nftRule
	err    error
}

type netLink struct {
	Ifname, Address, Master, Ifalias string
	Flags                            []string
	Mtu                              int
	Linkinfo                         struct {
		InfoKind      string         `json:"info_kind"`
		InfoData      map[string]any `json:"info_data"`
		InfoSlaveData map[string]any `json:"info_slave_data"`
	}
}

type entry struct {
	Mac, Ifname, Dst, Master, State string
	Flags                           []string
}

type neigh struct{ Dst, Dev, Lladdr string }

type route struct {
	Type, Dst, Gateway, Dev string
	Metric                  int
}

type addr struct {
	Ifname   string
	AddrInfo []struct {
		Local     string
		Prefixlen int
		Scope     string
	} `json:"addr_info"`
}

// nftRule names a rule for one that wants to delete it.
type nftRule struct{ family, table, chain, handle string }

// kernelState looks at a namespace: on a host at what is ours, which has names
// that begin with w, in a task at everything.
func kernelState(s lab.Space, onHost bool) kernel {
	k := kernel{lines: map[string]bool{}}
	ours := func(name string) bool { return !onHost || strings.HasPrefix(name, "w") }
	get := func(v any, args ...string) {
		r := s.Run(args...)
		if r.Code != 0 {
			k.err = fmt.Errorf("%s: %v: %s", s.Name, args, r.Stderr)
			return
		}
		if strings.TrimSpace(r.Stdout) == "" {
			return
		}
		if err := json.Unmarshal([]byte(r.Stdout), v); err != nil {
			k.err = fmt.Errorf("%s: %v: %w: %s", s.Name, args, err, r.Stdout)
		}
	}
	get(&k.links, "ip", "-j", "-d", "link")
	get(&k.addrs, "ip", "-j", "addr")
	get(&k.routes, "ip", "-j", "-N", "route", "show", "table", "all")
	get(&k.neighs, "ip", "-j", "neigh", "show", "nud", "permanent")
	get(&k.fdb, "bridge", "-j", "fdb")
	add := func(format string, args ...any) { k.lines[fmt.Sprintf(format, args...)] = true }

	k.links = slices.DeleteFunc(k.links, func(l netLink) bool { return !ours(l.Ifname) })
	own := map[string]string{} // what a port has by itself is the kernel's choice
	for i, l := range k.links {
		own[l.Ifname] = l.Address
		if onHost && l.Linkinfo.InfoKind != "bridge" {
			l.Address = ""
			k.links[i] = l
		}
		add("link %s up=%v mtu=%d %s master=%s kind=%s %q %s %s", l.Ifname, slices.Contains(l.Flags, "UP"), l.Mtu, l.Address, l.Master,
			l.Linkinfo.InfoKind, l.Ifalias, pick(l.Linkinfo.InfoData, "id", "local", "local6", "port", "learning", "remote", "group"),
			pick(l.Linkinfo.InfoSlaveData, "state", "learning", "flood", "mcast_flood", "bcast_flood", "neigh_suppress", "locked", "hairpin", "isolated"))
	}
	for _, a := range k.addrs {
		for _, i := range a.AddrInfo {
			if ours(a.Ifname) && i.Scope != "link" {
				add("addr %s %s/%d", a.Ifname, i.Local, i.Prefixlen)
			}
		}
	}
	k.routes = slices.DeleteFunc(k.routes, func(r route) bool {
		return !ours(r.Dev) || r.Type != "" && r.Type != "unicast" || strings.Contains(r.Dst, ":")
	})
	for _, r := range k.routes {
		add("route %s via %s dev %s", r.Dst, r.Gateway, r.Dev)
	}
	k.neighs = slices.DeleteFunc(k.neighs, func(n neigh) bool { return !ours(n.Dev) })
	for _, n := range k.neighs {
		add("neigh %+v", n)
	}
	k.fdb = slices.DeleteFunc(k.fdb, func(e entry) bool {
		if e.Mac == own[e.Ifname] || strings.HasPrefix(e.Mac, "33:33:") {
			return true // the kernel's
		}
		return !ours(e.Ifname) || strings.HasPrefix(e.Mac, "01:00:5e:") ||
			!slices.Contains([]string{"permanent", "static"}, e.State) || e.Mac == "01:80:c2:00:00:00"
	})
	for _, e := range k.fdb {
		slices.Sort(e.Flags)
		add("fdb %+v", e)
	}
	k.nft(s, add)
	return k
}

// pick is some fields of a JSON object.
func pick(m map[string]any, names ...string) string {
	var out []string
	for _, n := range names {
		if v, ok := m[n]; ok {
			out = append(out, fmt.Sprintf("%s=%v", n, v))
		}
	}
	return strings.Join(out, " ")
}

var (
	nftElements = regexp.MustCompile(`(?s)elements = \{(.*?)\}`)
	nftHandle   = regexp.MustCompile(` # handle (\d+)$`)
)

// nft reads the rules. Elements of sets are in no order.
func (k *kernel) nft(s lab.Space, add func(string, ...any)) {
	r := s.Run("nft", "-n", "-s", "-a", "list", "ruleset")
	if r.Code != 0 {
		k.err = fmt.Errorf("%s: nft: %s", s.Name, r.Stderr)
		return
	}
	text := nftElements.ReplaceAllStringFunc(r.Stdout, func(e string) string {
		inner := nftElements.FindStringSubmatch(e)[1]
		var all []string
		for _, x := range strings.Split(inner, ",") {
			all = append(all, strings.Join(strings.Fields(x), " "))
		}
		slices.Sort(all)
		return "elements = { " + strings.Join(all, ", ") + " }"
	})
	var family, table, chain string
	place := 0
	for _, l := range strings.Split(text, "\n") {
		l = strings.TrimSpace(l)
		handle := ""
		if m := nftHandle.FindStringSubmatch(l); m != nil {
			handle, l = m[1], strings.TrimSuffix(l, m[0])
		}
		f := strings.Fields(l)
		switch {
		case len(f) == 0 || l == "}":
			continue
		case f[0] == "table" && len(f) >= 3:
			family, table, chain, place = f[1], f[2], "", 0
			k.tables = append(k.tables, family+" "+table)
		case (f[0] == "chain" || f[0] == "set" || f[0] == "map") && len(f) >= 2 && strings.HasSuffix(l, "{"):
			chain, place = f[0]+" "+f[1], 0
		case handle != "":
			k.rules = append(k.rules, nftRule{family, table, strings.TrimPrefix(chain, "chain "), handle})
		}
		place++
		// The order of rules matters, that of tables, chains and sets does not.
		add("nft %s %s %s %d: %s", family, table, chain, place, l)
	}
}

// diff lists what differs.
func (k kernel) diff(after kernel) []string {
	if after.err != nil {
		return []string{after.err.Error()}
	}
	var out []string
	for l := range k.lines {
		if !after.lines[l] {
			out = append(out, "- "+l)
		}
	}
	for l := range after.lines {
		if !k.lines[l] {
			out = append(out, "+ "+l)
		}
	}
	slices.Sort(out)
	return out
}

// damage chooses what to break, as a line for a shell; "" when there is nothing
// of the kind that was chosen.
func (k kernel) damage(rng *rand.Rand, onHost bool) (kind, line string) {
	kinds := map[string]func() string{
		"fdb": func() string {
			e, ok := anyOf(rng, k.fdb, func(entry) bool { return true })
			self := "master"
			if e.Dst != "" || slices.Contains(e.Flags, "self") {
				self = "self"
			}
			if !ok {
				return ""
			}
			how := []string{fmt.Sprintf("bridge fdb del %s dev %s %s", e.Mac, e.Ifname, self)}
			if e.Dst != "" {
				how = append(how,
					fmt.Sprintf("bridge fdb replace %s dev %s self permanent dst 10.123.0.99", e.Mac, e.Ifname),
					fmt.Sprintf("bridge fdb add 02:58:0a:09:09:09 dev %s self permanent dst 10.123.0.99", e.Ifname),
					fmt.Sprintf("bridge fdb del %s dev %s master; bridge fdb del %s dev %s self", e.Mac, e.Ifname, e.Mac, e.Ifname))
			}
			return how[rng.IntN(len(how))]
		},
		"neigh": func() string {
			n, ok := anyOf(rng, k.neighs, func(neigh) bool { return true })
			if !ok {
				return ""
			}
			return []string{
				fmt.Sprintf("ip neigh del %s dev %s", n.Dst, n.Dev),
				fmt.Sprintf("ip neigh replace %s dev %s lladdr 02:58:09:09:09:09 nud permanent", n.Dst, n.Dev),
			}[rng.IntN(2)]
		},
		"route": func() string {
			r, ok := anyOf(rng, k.routes, func(r route) bool { return r.Dev != "" && r.Dev != "lo" })
			if !ok {
				return ""
			}
			return fmt.Sprintf("ip route del %s dev %s", r.Dst, r.Dev)
		},
		"address": func() string {
			a, ok := anyOf(rng, k.addrs, func(a addr) bool {
				return (!onHost && a.Ifname != "lo" || strings.HasPrefix(a.Ifname, "w")) && len(a.AddrInfo) > 0 && a.AddrInfo[0].Scope == "global"
			})
			if !ok {
				return ""
			}
			return fmt.Sprintf("ip addr del %s/%d dev %s", a.AddrInfo[0].Local, a.AddrInfo[0].Prefixlen, a.Ifname)
		},
		"link": func() string {
			l, ok := anyOf(rng, k.links, func(netLink) bool { return true })
			if !ok {
				return ""
			}
			how := []string{"ip link set " + l.Ifname + " down"}
			if l.Ifname != "lo" {
				how = append(how, "ip link set "+l.Ifname+" mtu 1290", "ip link del "+l.Ifname)
			}
			if l.Master != "" {
				how = append(how, "ip link set "+l.Ifname+" nomaster")
			}
			return how[rng.IntN(len(how))]
		},
		"port flags": func() string {
			l, ok := anyOf(rng, k.links, func(l netLink) bool { return l.Master != "" })
			if !ok {
				return ""
			}
			flag := []string{"learning", "flood", "mcast_flood", "bcast_flood", "neigh_suppress", "locked", "hairpin", "isolated"}[rng.IntN(8)]
			to := "on"
			if l.Linkinfo.InfoSlaveData[flag] == true {
				to = "off"
			}
			return fmt.Sprintf("bridge link set dev %s %s %s", l.Ifname, flag, to)
		},
		"nft": func() string {
			if len(k.tables) == 0 {
				return ""
			}
			how := []string{"nft flush ruleset", "nft delete table " + k.tables[rng.IntN(len(k.tables))], "nft flush table " + k.tables[rng.IntN(len(k.tables))]}
			if r, ok := anyOf(rng, k.rules, func(nftRule) bool { return true }); ok {
				how = append(how, fmt.Sprintf("nft delete rule %s %s %s handle %s", r.family, r.table, r.chain, r.handle),
					fmt.Sprintf("nft insert rule %s %s %s counter drop", r.family, r.table, r.chain),
					fmt.Sprintf("nft flush chain %s %s %s", r.family, r.table, r.chain))
			}
			return how[rng.IntN(len(how))]
		},
	}
	names := slices.Sorted(maps.Keys(kinds))
	kind = names[rng.IntN(len(names))]
	return kind, kinds[kind]()
}

// anyOf is one of those that fit.
func anyOf[T any](rng *rand.Rand, all []T, fits func(T) bool) (T, bool) {
	var some []T
	for _, x := range all {
		if fits(x) {
			some = append(some, x)
		}
	}
	if len(some) == 0 {
		var none T
		return none, false
	}
	return some[rng.IntN(len(some))], true
}

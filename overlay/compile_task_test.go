//go:build linux

package overlay

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// services is the example with services on it, and a second task whose only
// network is internal.
func services() Input {
	in := example()
	in.Networks[0].Tasks = []spec.Endpoint{{Task: "1-10", Name: "shop.web.1", IP: "10.9.1.2/24"}, {Task: "1-14", Name: "shop.dns.1", IP: "10.9.1.3/24"}}
	in.Networks[0].Remote = []spec.RemoteEndpoint{{IP: "10.9.1.4", MAC: "02:58:0a:09:01:04", Host: 8}}
	in.Networks[0].VIPs = []spec.VIP{
		{Address: "10.9.1.200", Owner: "shop/web", Targets: []string{"10.9.1.3", "10.9.1.4"}},
		{Address: "10.9.1.201", Owner: "shop/none"},
	}
	in.Tasks = append(in.Tasks, spec.Sandbox{Task: "1-12", Name: "shop.in.1", Addresses: []spec.Address{
		{Network: "1-2", IP: "10.9.2.3/24", MAC: "02:58:0a:09:02:03"},
	}})
	return in
}

// TestTaskTables checks what Diff does about tables inside namespaces, and
// which connections it forgets.
func TestTaskTables(t *testing.T) {
	inet, edge := TableID{"1-10", familyInet, taskTableName}, TableID{"1-10", familyNetdev, taskTableName}
	keep := func(*Input) {}
	tests := []struct {
		name   string
		damage func(have State)
		change func(want *Input)
		want   string
	}{
		{"nothing", func(State) {}, keep, ""},
		{"table gone", func(s State) { delete(s.Tables, edge) }, keep, `add table 1-10/netdev wherry
add chain 1-10/netdev wherry egress
set chain 1-10/netdev wherry egress { meta mark != 0 @ll,16,32 set meta mark @ll,0,16 set 0x0257 }
`},
		{"another device", func(s State) {
			s.Tables[edge].Chains["egress"] = Chain{Hook: Hook{Type: "filter", Name: "egress", Device: "eth0"}, Rules: s.Tables[edge].Chains["egress"].Rules}
		}, keep, `replace chain 1-10/netdev wherry egress
set chain 1-10/netdev wherry egress { meta mark != 0 @ll,16,32 set meta mark @ll,0,16 set 0x0257 }
`},
		{"what is not ours in our table", func(s State) {
			s.Tables[inet].Chains["stranger"] = Chain{}
			s.Tables[inet].Sets[vip4.vips]["10.9.1.77"] = ""
		}, keep, `del element 1-10/inet wherry vips { 10.9.1.77 }
del chain 1-10/inet wherry stranger
`},
		{"a table of a task that is not known here", func(s State) {
			s.Tables[TableID{"1-99", familyInet, taskTableName}] = Table{}
		}, keep, ""},
		{"a table too many", func(s State) {
			s.Tables[TableID{"1-12", familyNetdev, taskTableName}] = Table{}
		}, keep, "del table 1-12/netdev wherry\n"},
		{"a target drains", func(State) {}, func(want *Input) { want.Networks[0].VIPs[0].Targets = []string{"10.9.1.4"} },
			dropped("10.9.1.200", 16, "10.9.1.3", "10.9.1.4") + `add element 1-10/inet wherry vip1 { 10.9.1.200 . 0 : 10.9.1.4 }
del flow 1-10/udp 10.9.1.200 to 10.9.1.3
`},
		{"an end is gone that was no target any more", func(s State) { s.Tables[hostTable(testNode)].Sets[setEnds]["10.9.1.9"] = "" }, keep,
			`del element wherry-00c0ffee ends { 10.9.1.9 }
del flow tcp to 10.9.1.9
del flow 1-10/tcp to 10.9.1.9
`},
		{"an end of another network is gone", func(s State) { s.Tables[hostTable(testNode)].Sets[setEnds]["10.9.7.9"] = "" }, keep,
			`del element wherry-00c0ffee ends { 10.9.7.9 }
del flow tcp to 10.9.7.9
`},
		{"the last target is dead", func(State) {}, func(want *Input) {
			want.Networks[0].VIPs[0].Targets, want.Networks[0].Remote = nil, nil
		}, "del element wherry-00c0ffee ends { 10.9.1.4 }\n" + dropped("10.9.1.200", 16, "10.9.1.3", "10.9.1.4") + `add element 1-10/inet wherry unserved { 10.9.1.200 }
del flow 1-10/udp 10.9.1.200 to 10.9.1.3,10.9.1.4
del flow tcp to 10.9.1.4
del flow 1-10/tcp to 10.9.1.4
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			have, want := Compile(services()), services()
			tt.damage(have)
			tt.change(&want)
			if diff := cmp.Diff(tt.want, opsText(Diff(have, Compile(want)))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// dropped are the operations that empty the slots of an address.
func dropped(vip string, slots int, targets ...string) string {
	var lines []string
	sets := emptyVIPs(true)
	serve(sets, spec.VIP{Address: vip, Targets: targets}, true)
	name := slotMap(vip4.slots, uint32(slots))
	if strings.Contains(vip, ":") {
		name = slotMap(vip6.slots, uint32(slots))
	}
	for key, value := range sets[name] {
		lines = append(lines, "del element 1-10/inet wherry "+name+" { "+element(key, value)+" }\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// Every rule of a task has an expression, every set that it names exists, and
// none of family netdev asks for a connection.
func TestTaskRulesNameSets(t *testing.T) {
	types := taskSetTypes()
	inet := vipChains(true)
	maps.Copy(inet, returnChains())
	for _, chains := range []map[string]Chain{inet, egressChains("eth0")} {
		for name, c := range chains {
			for _, r := range c.Rules {
				if len(exprs(r.terms)) == 0 || len(r.Text) > 200 {
					t.Errorf("chain %s: %q has no expressions or does not fit into a comment", name, r.Text)
				}
				if c.Hook.Device != "" && strings.Contains(r.Text, "ct ") {
					t.Errorf("chain %s: %q cannot be in family netdev", name, r.Text)
				}
				for _, term := range r.terms {
					if term.kind == termJump {
						if _, ok := chains[term.set]; !ok {
							t.Errorf("chain %s: %q jumps to nowhere", name, r.Text)
						}
					} else if _, ok := types[term.set]; term.set != "" && !ok {
						t.Errorf("chain %s: %q names no set", name, r.Text)
					}
				}
			}
		}
	}
	if b, err := encode(types["vip16"].key, "10.9.1.200 . 15"); err != nil || decode(types["vip16"].key, b) != "10.9.1.200 . 15" {
		t.Errorf("an element became %x, %v", b, err)
	}
}

func withVIP(index uint64, targets ...string) []spec.HostNetwork {
	nets := documents(index)
	nets[0].VIPs = []spec.VIP{{Address: "10.9.1.200", Owner: "shop/web", Targets: targets}}
	return nets
}

// A changed target is written without a look into the namespaces; damage there
// is found by the regular pass, and a failure makes the next pass look.
func TestHostRemembersInside(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		inet := TableID{"1-10", familyInet, taskTableName}
		looks := func() (n int) {
			b.k.mu.Lock()
			defer b.k.mu.Unlock()
			n, b.k.looks = len(b.k.looks), nil
			return n
		}
		target := func() string {
			b.k.mu.Lock()
			defer b.k.mu.Unlock()
			return b.k.st.Tables[inet].Sets["vip1"]["10.9.1.200 . 0"]
		}
		b.Set(withVIP(1, "10.9.1.3"))
		synctest.Wait()
		if _, err := b.Attach(context.Background(), example().Tasks[0]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := looks(); n > 0 || target() != "10.9.1.3" {
			t.Errorf("attach: %d looks, target %q", n, target())
		}
		b.Set(withVIP(2, "10.9.1.4"))
		synctest.Wait()
		if n := looks(); n > 0 || target() != "10.9.1.4" || b.Status().Applied["1-1"].Index != 2 {
			t.Errorf("change: %d looks, target %q, status %+v", n, target(), b.Status())
		}
		flows := slices.DeleteFunc(b.k.take(), func(op string) bool { return !strings.HasPrefix(op, "del flow 1-10") })
		if want := "del flow 1-10/udp 10.9.1.200 to 10.9.1.3"; !slices.Equal(flows, []string{want, want}) {
			t.Errorf("forgotten: %q", flows)
		}
		b.k.damage(func(s State) { delete(s.Tables[inet].Sets["vip1"], "10.9.1.200 . 0") }, false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := looks(); n == 0 || target() != "10.9.1.4" || b.Status().Repairs == 0 {
			t.Errorf("damage: %d looks, target %q", n, target())
		}
		// The link goes: what hangs on the new one is looked at.
		b.k.damage(func(s State) {
			s.dropLinks(func(l LinkID) bool { return l.Name == "w1-10-1" || l.Name == "eth1" })
			delete(s.Tables, TableID{"1-10", familyNetdev, taskTableName})
		}, true)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if _, ok := b.k.st.Tables[TableID{"1-10", familyNetdev, taskTableName}]; !ok || looks() == 0 {
			t.Errorf("after the link went:\n%s", b.k.st)
		}
		op := "add element 1-10/inet wherry vip1 { 10.9.1.200 . 0 : 10.9.1.5 }"
		b.k.mu.Lock()
		b.k.fail = map[string]error{op: errors.New("no luck")}
		b.k.mu.Unlock()
		b.Set(withVIP(3, "10.9.1.5"))
		synctest.Wait()
		if n := looks(); n == 0 || len(b.Status().Errors) == 0 {
			t.Errorf("failure: %d looks, status %+v", n, b.Status())
		}
		b.k.mu.Lock()
		b.k.fail = nil
		b.k.mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if target() != "10.9.1.5" {
			t.Errorf("target %q", target())
		}
	})
}

// A document that comes while a task is being attached, and which the loop
// therefore did not bring to that task, is brought to it right after.
func TestHostAttachDuringChange(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.Set(withVIP(1, "10.9.1.3"))
		synctest.Wait()
		var once sync.Once
		b.k.applying = func(ops []Op) {
			if slices.ContainsFunc(ops, func(o Op) bool { return tableOf(o).NS != "" }) {
				once.Do(func() {
					b.Set(withVIP(2, "10.9.1.4"))
					time.Sleep(time.Second) // the loop does what it can
				})
			}
		}
		if _, err := b.Attach(context.Background(), example().Tasks[0]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		sets := b.k.st.Tables[TableID{"1-10", familyInet, taskTableName}].Sets
		if got := sets["vip1"]["10.9.1.200 . 0"]; got != "10.9.1.4" || b.Status().Repairs > 0 {
			t.Errorf("target %q, %d repairs", got, b.Status().Repairs)
		}
	})
}

func TestWithoutIPv6(t *testing.T) {
	inside, other, host := LinkID{"1-10", "eth0"}, LinkID{"1-11", "eth0"}, LinkID{Name: "wbr-1-1"}
	denied := &os.SyscallError{Syscall: "sendto", Err: syscall.EACCES}
	ops := []Op{
		{Add, Addr{inside, "fd00::2/64"}}, {Add, Route{Link: inside, Dst: "::/0", Via: "fd00::1"}},
		{Add, Addr{other, "10.9.1.2/24"}}, {Add, Addr{other, "fd00::3/64"}}, {Add, Addr{host, "fd00::1/64"}},
	}
	errs := []error{denied, syscall.EHOSTUNREACH, denied, syscall.EINVAL, denied}
	if got, want := withoutIPv6(ops, errs), map[LinkID]bool{inside: true}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

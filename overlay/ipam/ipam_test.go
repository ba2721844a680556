package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wherry.dev/spec"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func TestSubnet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		start uint64
		used  []netip.Prefix
		want  string
	}{
		{"first", 0, nil, "10.200.0.0/24"},
		{"from", 5, nil, "10.200.5.0/24"},
		{"carry", 256, nil, "10.201.0.0/24"},
		{"last", 2047, nil, "10.207.255.0/24"},
		{"wrap", 2048 + 7, nil, "10.200.7.0/24"},
		{"taken", 5, prefixes("10.200.5.0/24", "10.200.6.128/25"), "10.200.7.0/24"},
		{"one address of a host", 5, prefixes("10.200.5.77/32", "fd00::/8"), "10.200.6.0/24"},
		{"under a large one", 0, prefixes("10.200.0.0/14"), "10.204.0.0/24"},
		{"wraps over taken", 2047, prefixes("10.207.255.0/24"), "10.200.0.0/24"},
		{"the other pool", 9, prefixes("10.0.0.0/8"), "172.24.9.0/24"},
		{"the other pool, in parts", 9, prefixes("10.200.0.0/14", "10.204.0.0/14", "172.24.9.0/28"), "172.24.10.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Subnet(Pools4(), SubnetBits, tt.start, tt.used)
			if err != nil || got.String() != tt.want {
				t.Errorf("got %v, %v, want %s", got, err, tt.want)
			}
			if _, in := Overlap(got, Pools4()); !in {
				t.Errorf("%v is outside of the pools", got)
			}
		})
	}
	_, err := Subnet(Pools4(), SubnetBits, 0, prefixes("10.0.0.0/8", "172.16.0.0/12"))
	if !errors.Is(err, spec.ErrUnavailable) || !strings.Contains(err.Error(), "10.200.0.0/13 and 172.24.0.0/13") {
		t.Errorf("used-up pools give %v", err)
	}
}

func TestSubnet6(t *testing.T) {
	pool := Pool6("one")
	if pool != Pool6("one") || pool == Pool6("other") || pool.Bits() != 48 || !netip.MustParsePrefix("fd00::/8").Overlaps(pool) || pool != pool.Masked() {
		t.Fatalf("the pool is %v", pool)
	}
	for start, want := range map[uint64]string{0: "0", 1: "1", 0xabcd: "abcd", 0x1_0003: "3"} {
		got, err := Subnet([]netip.Prefix{pool}, Subnet6Bits, start, prefixes("10.0.0.0/8"))
		if end := strings.TrimSuffix(got.String(), "::/64"); err != nil || !pool.Overlaps(got) || got.Bits() != 64 || want != "0" && !strings.HasSuffix(end, ":"+want) {
			t.Errorf("from %x: %v, %v, want it to end with %s::/64", start, got, err, want)
		}
	}
	first, _ := Subnet([]netip.Prefix{pool}, Subnet6Bits, 7, nil)
	if next, err := Subnet([]netip.Prefix{pool}, Subnet6Bits, 7, []netip.Prefix{first}); err != nil || next.Overlaps(first) {
		t.Errorf("behind %v: %v, %v", first, next, err)
	}
	if _, err := Subnet([]netip.Prefix{pool}, Subnet6Bits, 7, prefixes("fd00::/8")); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("a used-up pool gives %v", err)
	}
}

// TestNumbers: a whole pool of networks gets numbers of their own, and the
// next search after a removal does not return what was just given back.
func TestNumbers(t *testing.T) {
	pool := prefixes(Pool)
	var used []netip.Prefix
	for i := range uint64(2048) {
		p, err := Subnet(pool, SubnetBits, i*7, used)
		if err != nil {
			t.Fatal(i, err)
		}
		used = append(used, p)
	}
	if _, err := Subnet(pool, SubnetBits, 1, used); err == nil {
		t.Fatal("a 2,049th subnet was found")
	}
	a, _ := Subnet(pool, SubnetBits, 10, nil)
	b, _ := Subnet(pool, SubnetBits, 11, nil)
	if a == b {
		t.Error("a subnet is used again at once")
	}
}

func TestParseSubnet(t *testing.T) {
	for in, want := range map[string]string{
		"10.8.0.0/24": "10.8.0.0/24", "10.8.0.9/24": "10.8.0.0/24", "10.8.0.0/30": "10.8.0.0/30", "fd00::/64": "fd00::/64",
		"10.8.0.0/31": "", "10.8.0.0": "", "x": "", "": "",
	} {
		got, err := ParseSubnet(in)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("%q gives %v, %v", in, got, err)
		}
		if err != nil && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%q gives an error of another class: %v", in, err)
		}
	}
}

func TestVNI(t *testing.T) {
	none := func(uint32) bool { return false }
	for start, want := range map[uint64]uint32{0: 4096, 3: 4099, LastVNI - FirstVNI: LastVNI, LastVNI - FirstVNI + 1: FirstVNI} {
		if got, err := VNI(start, none); err != nil || got != want {
			t.Errorf("from %d: %d, %v, want %d", start, got, err, want)
		}
	}
	if got, _ := VNI(0, func(v uint32) bool { return v < 5000 }); got != 5000 {
		t.Errorf("got %d, want 5000", got)
	}
	if _, err := VNI(0, func(uint32) bool { return true }); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("used-up VNIs give %v", err)
	}
}

func TestMAC(t *testing.T) {
	for ip, want := range map[string]string{"10.200.1.2": "02:58:0a:c8:01:02", "255.0.16.1": "02:58:ff:00:10:01", "fd00::a:1:2:304": "02:58:00:02:03:04"} {
		if got := MAC(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s has %s, want %s", ip, got, want)
		}
	}
}

// space is a subnet with its first address as gateway.
func space(subnet string, reserved ...string) Space {
	p := netip.MustParsePrefix(subnet)
	s := Space{Subnet: p, Gateway: Gateway(p)}
	for _, a := range reserved {
		s.Reserved = append(s.Reserved, netip.MustParseAddr(a))
	}
	return s
}

func TestRange(t *testing.T) {
	ip := netip.MustParseAddr
	take := func(t *testing.T, r *Range, list ...string) {
		t.Helper()
		for _, want := range list {
			got, err := r.Take()
			if want == "" {
				if !errors.Is(err, spec.ErrUnavailable) {
					t.Errorf("got %v, %v, want none", got, err)
				}
			} else if err != nil || got != ip(want) {
				t.Errorf("got %v, %v, want %s", got, err, want)
			}
		}
	}
	t.Run("fills up", func(t *testing.T) {
		take(t, NewRange("n", space("10.0.0.0/29")), "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "", "")
	})
	t.Run("smallest", func(t *testing.T) {
		take(t, NewRange("n", space("10.0.0.0/30")), "10.0.0.2", "")
	})
	t.Run("goes round behind the newest", func(t *testing.T) {
		r := NewRange("n", space("10.0.0.0/29"))
		r.Hold(ip("10.0.0.2"))
		r.Rest(ip("10.0.0.5"))
		take(t, r, "10.0.0.6", "10.0.0.3", "10.0.0.4", "10.0.0.5", "") // the rested one comes last
	})
	t.Run("foreign addresses do not matter", func(t *testing.T) {
		r := NewRange("n", space("10.0.0.0/24"))
		r.Hold(ip("10.0.1.9"))
		take(t, r, "10.0.0.2")
	})
	t.Run("peek holds nothing", func(t *testing.T) {
		r := NewRange("n", space("10.0.0.0/24"))
		if a, err := r.Peek(); err != nil || a != ip("10.0.0.2") {
			t.Error(a, err)
		}
		take(t, r, "10.0.0.2")
	})
	t.Run("its own gateway", func(t *testing.T) {
		s := space("10.0.0.0/29")
		s.Gateway = ip("10.0.0.3")
		take(t, NewRange("n", s), "10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6", "")
	})
	t.Run("reserved addresses", func(t *testing.T) {
		r := NewRange("n", space("10.0.0.0/29", "10.0.0.2", "10.0.0.5"))
		take(t, r, "10.0.0.3", "10.0.0.4", "10.0.0.6", "")
		if !r.Free(ip("10.0.0.5")) || r.space.Chooses(ip("10.0.0.5")) {
			t.Error("who asks for a reserved address may not have it, or others may")
		}
	})
	t.Run("a part of the subnet", func(t *testing.T) {
		s := space("10.0.0.0/24", "10.0.0.65")
		s.Range = netip.MustParsePrefix("10.0.0.64/30")
		r := NewRange("n", s)
		r.Hold(ip("10.0.0.7")) // asked for: says nothing of how far the search is
		take(t, r, "10.0.0.64", "10.0.0.66", "10.0.0.67")
		if a, err := r.Take(); err == nil || !strings.Contains(err.Error(), "its range 10.0.0.64/30") {
			t.Error(a, err)
		}
	})
	t.Run("the ends of the subnet in a part", func(t *testing.T) {
		s := space("10.0.0.0/24")
		s.Gateway, s.Range = ip("10.0.0.9"), netip.MustParsePrefix("10.0.0.0/31")
		take(t, NewRange("n", s), "10.0.0.1", "")
		s.Range = netip.MustParsePrefix("10.0.0.254/31")
		take(t, NewRange("n", s), "10.0.0.254", "")
		s.Range = netip.MustParsePrefix("10.0.0.0/32")
		take(t, NewRange("n", s), "")
	})
	t.Run("IPv6", func(t *testing.T) {
		take(t, NewRange("n", space("fd00::/126")), "fd00::2", "fd00::3", "")
	})
	t.Run("a large subnet", func(t *testing.T) {
		r := NewRange("n", space("fd00::/64", "fd00::3", "fd00::6"))
		r.Hold(ip("fd00::ffff:ffff:ffff:fffe"))
		take(t, r, "fd00::ffff:ffff:ffff:ffff", "fd00::2", "fd00::4", "fd00::5", "fd00::7")
	})
	t.Run("the end of all addresses", func(t *testing.T) {
		r := NewRange("n", space("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"))
		r.Hold(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
		take(t, r, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "")
	})
}

func TestUsable(t *testing.T) {
	for _, c := range []struct {
		subnet, has, lacks string
	}{
		{"10.0.0.0/29", "10.0.0.2 10.0.0.6", "10.0.0.0 10.0.0.1 10.0.0.7 10.0.0.8 9.255.255.255 fd00::2"},
		{"10.0.0.5/30", "10.0.0.6", "10.0.0.4 10.0.0.5 10.0.0.7 10.0.0.2"},
		{"fd00::/126", "fd00::2 fd00::3", "fd00:: fd00::1 fd00::4 10.0.0.2"},
	} {
		for want, list := range map[bool]string{true: c.has, false: c.lacks} {
			for _, a := range strings.Fields(list) {
				s := space(c.subnet)
				if got := s.Usable(netip.MustParseAddr(a)); got != want {
					t.Errorf("%s has %s: %t", c.subnet, a, got)
				}
				if got := s.Chooses(netip.MustParseAddr(a)); got != want {
					t.Errorf("%s chooses %s: %t", c.subnet, a, got)
				}
			}
		}
	}
}

// TestChooses: what a range hands out is what its space says it would.
func TestChooses(t *testing.T) {
	s := space("10.0.0.0/26", "10.0.0.40", "10.0.0.9")
	s.Gateway, s.Range = netip.MustParseAddr("10.0.0.35"), netip.MustParsePrefix("10.0.0.32/27")
	r := NewRange("n", s)
	handed := map[netip.Addr]bool{}
	for a, err := r.Take(); err == nil; a, err = r.Take() {
		handed[a] = true
	}
	for a := netip.MustParseAddr("9.255.255.250"); a.Less(netip.MustParseAddr("10.0.0.80")); a = a.Next() {
		if s.Chooses(a) != handed[a] || r.chooses(a) != handed[a] {
			t.Errorf("%v: chosen %t and %t, handed out %t", a, s.Chooses(a), r.chooses(a), handed[a])
		}
	}
	if len(handed) != 29 { // 32 without the gateway, the reserved one and the broadcast address
		t.Errorf("%d addresses were handed out", len(handed))
	}
}

// TestLongUse: ten thousand lives of a task on a small network never meet an
// address that is held, never leak one, and none comes back before all others
// have been used.
func TestLongUse(t *testing.T) {
	const size = 61 // of a /26, without its ends and the gateway
	var held []netip.Addr
	last := map[netip.Addr]int{} // when an address was last taken
	for i := range 10_000 {
		r := NewRange("n", space("10.0.0.0/26"))
		for _, a := range held {
			r.Hold(a)
		}
		a, err := r.Take()
		if err != nil {
			t.Fatal(i, err)
		}
		if slices.Contains(held, a) {
			t.Fatalf("%v is given away twice", a)
		}
		if was, again := last[a]; again && i-was < size {
			t.Fatalf("%v comes back after %d of %d", a, i-was, size)
		}
		last[a] = i
		if held = append(held, a); len(held) > 40 {
			held = held[1:]
		}
	}
	if len(last) != size {
		t.Errorf("%d addresses were used of %d", len(last), size)
	}
}

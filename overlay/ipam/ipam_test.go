package ipam

import (
	"errors"
	"net/netip"
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
		{"under a large one", 0, prefixes("10.200.0.0/14"), "10.204.0.0/24"},
		{"wraps over taken", 2047, prefixes("10.207.255.0/24"), "10.200.0.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Subnet(tt.start, tt.used)
			if err != nil || got.String() != tt.want {
				t.Errorf("got %v, %v, want %s", got, err, tt.want)
			}
			if !netip.MustParsePrefix(Pool).Overlaps(got) {
				t.Errorf("%v is outside of the pool", got)
			}
		})
	}
	if _, err := Subnet(0, prefixes("10.0.0.0/8")); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("a used-up pool gives %v", err)
	}
}

// TestNumbers: a whole pool of networks gets numbers of their own, and the
// next search after a removal does not return what was just given back.
func TestNumbers(t *testing.T) {
	var used []netip.Prefix
	for i := range uint64(2048) {
		p, err := Subnet(i*7, used)
		if err != nil {
			t.Fatal(i, err)
		}
		used = append(used, p)
	}
	if _, err := Subnet(1, used); err == nil {
		t.Fatal("a 2,049th subnet was found")
	}
	a, _ := Subnet(10, nil)
	b, _ := Subnet(11, nil)
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

func TestRange(t *testing.T) {
	ip := netip.MustParseAddr
	take := func(t *testing.T, r *Range, want string) {
		t.Helper()
		got, err := r.Take()
		if want == "" {
			if !errors.Is(err, spec.ErrUnavailable) {
				t.Errorf("got %v, %v, want none", got, err)
			}
			return
		}
		if err != nil || got != ip(want) {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
	t.Run("fills up", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("10.0.0.0/29"))
		for _, want := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "", ""} {
			take(t, r, want)
		}
	})
	t.Run("smallest", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("10.0.0.0/30"))
		take(t, r, "10.0.0.2")
		take(t, r, "")
	})
	t.Run("goes round behind the newest", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("10.0.0.0/29"))
		r.Hold(ip("10.0.0.2"))
		r.Rest(ip("10.0.0.5"))
		take(t, r, "10.0.0.6")
		take(t, r, "10.0.0.3")
		take(t, r, "10.0.0.4")
		take(t, r, "10.0.0.5") // the rested one comes last
		take(t, r, "")
	})
	t.Run("foreign addresses do not matter", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("10.0.0.0/24"))
		r.Hold(ip("10.0.1.9"))
		take(t, r, "10.0.0.2")
	})
	t.Run("peek holds nothing", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("10.0.0.0/24"))
		if a, err := r.Peek(); err != nil || a != ip("10.0.0.2") {
			t.Error(a, err)
		}
		take(t, r, "10.0.0.2")
	})
	t.Run("IPv6", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("fd00::/126"))
		take(t, r, "fd00::2")
		take(t, r, "fd00::3")
		take(t, r, "")
	})
	t.Run("the end of all addresses", func(t *testing.T) {
		r := NewRange("n", netip.MustParsePrefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"))
		r.Hold(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
		take(t, r, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe")
		take(t, r, "")
	})
}

func TestHas(t *testing.T) {
	for _, c := range []struct {
		subnet, has, lacks string
	}{
		{"10.0.0.0/29", "10.0.0.2 10.0.0.6", "10.0.0.0 10.0.0.1 10.0.0.7 10.0.0.8 9.255.255.255 fd00::2"},
		{"10.0.0.5/30", "10.0.0.6", "10.0.0.5 10.0.0.7 10.0.0.2"},
		{"fd00::/126", "fd00::2 fd00::3", "fd00::1 fd00::4 10.0.0.2"},
	} {
		for want, list := range map[bool]string{true: c.has, false: c.lacks} {
			for _, s := range strings.Fields(list) {
				if got := Has(netip.MustParsePrefix(c.subnet), netip.MustParseAddr(s)); got != want {
					t.Errorf("%s has %s: %t", c.subnet, s, got)
				}
			}
		}
	}
}

// TestLongUse: ten thousand lives of a task on a small network never meet an
// address that is held, and never leak one.
func TestLongUse(t *testing.T) {
	var held []netip.Addr
	for i := range 10_000 {
		r := NewRange("n", netip.MustParsePrefix("10.0.0.0/26"))
		for _, a := range held {
			r.Hold(a)
		}
		a, err := r.Take()
		if err != nil {
			t.Fatal(i, err)
		}
		for _, b := range held {
			if a == b {
				t.Fatalf("%v is given away twice", a)
			}
		}
		if held = append(held, a); len(held) > 40 {
			held = held[1:]
		}
	}
}

package overlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestSubnetsText(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"none", "", ""},
		{"sorted, each once", "192.168.1.0/24 10.1.0.0/16 fd00::/64 10.1.0.0/16", "10.1.0.0/16,192.168.1.0/24,fd00::/64"},
		{"within others", "10.1.2.0/24 10.1.0.0/16 10.1.9.9/32 10.2.0.1/32 fd00:0:0:0:1::/80 fd00::/48", "10.1.0.0/16,10.2.0.1/32,fd00::/48"},
		{"bits of the host", "10.1.2.3/16", "10.1.0.0/16"},
		{"defaults by any name", "0.0.0.0/0 0.0.0.0/1 128.0.0.0/1 ::/0 2000::/3 8000::/1 10.0.0.0/8", "10.0.0.0/8"},
		{"what every host has", "127.0.0.53/32 127.0.0.0/8 169.254.0.0/16 fe80::/64 ff00::/8 ::1/128 224.0.0.0/8", ""},
	} {
		var list []netip.Prefix
		for _, s := range strings.Fields(tt.in) {
			list = append(list, netip.MustParsePrefix(s))
		}
		if got := subnetsText(list); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestManySubnets: a host with a route per machine tells wider ones, and never
// more than the managers take.
func TestManySubnets(t *testing.T) {
	var list []netip.Prefix
	for i := range 200 {
		list = append(list, netip.MustParsePrefix(fmt.Sprintf("10.1.%d.%d/32", i/100, i%100+1)), netip.MustParsePrefix(fmt.Sprintf("fd00::%x:%x/128", i/100, i)))
	}
	if got := subnetsText(list); got != "10.1.0.0/24,10.1.1.0/24,fd00::/64" {
		t.Error(got)
	}
	for i := range 300 {
		list = append(list, netip.MustParsePrefix(fmt.Sprintf("fd%02x:%x::/64", i%200, i)))
	}
	if got := subnetsText(list); len(strings.Split(got, ",")) != maxSubnets || len(got) > 4096 {
		t.Errorf("%d subnets, %d bytes", len(strings.Split(got, ",")), len(got))
	}
}

package spec

import (
	"slices"
	"testing"
)

func TestInterfaceNames(t *testing.T) {
	for _, tt := range [][2][]string{
		{nil, nil},
		{{"", "", ""}, {"eth0", "eth1", "eth2"}},
		{{"lan0", "", ""}, {"lan0", "eth0", "eth1"}},
		{{"eth1", "", ""}, {"eth1", "eth0", "eth2"}},
		{{"", "eth0", ""}, {"eth1", "eth0", "eth2"}},
	} {
		var list []Address
		for _, name := range tt[0] {
			list = append(list, Address{Interface: name})
		}
		if got := InterfaceNames(list); !slices.Equal(got, tt[1]) {
			t.Errorf("%q: %q, want %q", tt[0], got, tt[1])
		}
	}
}

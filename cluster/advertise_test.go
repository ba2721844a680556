package cluster

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestChooseAddress(t *testing.T) {
	ip := func(s string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		return netip.MustParseAddr(s)
	}
	for _, c := range []struct {
		name             string
		routed4, routed6 string
		locals           string // LINK=IP …
		want             string
	}{
		{"default route", "10.0.0.5", "2001:db8::5", "eth0=10.0.0.5 eth1=10.1.0.5", "10.0.0.5"},
		{"default route of IPv6 alone", "", "2001:db8::5", "lo=::1 eth0=2001:db8::5", "2001:db8::5"},
		{"no route, one address", "", "", "lo=127.0.0.1 lo=::1 eth0=10.0.0.5 eth0=fe80::1", "10.0.0.5"},
		{"no route, one address of each kind", "", "", "eth0=fd00::5 eth0=10.0.0.5", "10.0.0.5"},
		{"no route, IPv6 alone", "", "", "eth0=fd00::5 lo=127.0.0.1", "fd00::5"},
		{"no route, two addresses", "", "", "eth0=10.0.0.5 eth1=10.1.0.5", "127.0.0.1"},
		{"no route, two of IPv4 and one of IPv6", "", "", "eth0=10.0.0.5 eth1=10.1.0.5 eth0=fd00::5", "fd00::5"},
		{"the same address twice", "", "", "eth0=10.0.0.5 eth1=10.0.0.5", "10.0.0.5"},
		{"networks of containers do not count", "", "", "eth0=10.0.0.5 wbr-1-1=10.9.0.1 docker0=172.17.0.1 br-1f=172.18.0.1", "10.0.0.5"},
		{"a name that begins like one", "", "", "wbreth0=10.0.0.5", "10.0.0.5"},
		{"link-local only", "", "", "eth0=169.254.3.4 eth0=fe80::1", "127.0.0.1"},
		{"route to nowhere", "127.0.0.1", "", "eth0=10.0.0.5", "10.0.0.5"},
		{"nothing", "", "", "lo=127.0.0.1", "127.0.0.1"},
	} {
		var locals []hostAddress
		for _, l := range strings.Fields(c.locals) {
			link, addr, _ := strings.Cut(l, "=")
			locals = append(locals, hostAddress{link, ip(addr)})
		}
		if got := chooseAddress([]netip.Addr{ip(c.routed4), ip(c.routed6)}, locals); got != ip(c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAdvertiseFlag(t *testing.T) {
	for flag, want := range map[string]string{
		"10.0.0.5":             "10.0.0.5:4477",
		"10.0.0.5:99":          "10.0.0.5:99",
		"127.0.0.1":            "127.0.0.1:4477",
		"2001:db8::5":          "[2001:db8::5]:4477",
		"[2001:db8::5]":        "[2001:db8::5]:4477",
		"[2001:db8::5]:99":     "[2001:db8::5]:99",
		"::ffff:10.0.0.5":      "10.0.0.5:4477",
		"host":                 "want IP or IP:PORT",
		"host:4477":            "want IP or IP:PORT",
		"10.0.0.5:":            "want IP or IP:PORT",
		"10.0.0.5:x":           "want IP or IP:PORT",
		"10.0.0.5:70000":       "want IP or IP:PORT",
		"10.0.0.5:0":           "must not be 0",
		"0.0.0.0":              "cannot reach",
		"[::]:4477":            "cannot reach",
		"224.0.0.1":            "cannot reach",
		"fe80::1%eth0":         "means nothing to other hosts",
		"10.0.0.5, 10.0.0.6:1": "want IP or IP:PORT",
	} {
		got, err := advertised(flag, 4477)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%q: %q, want %q", flag, got, want)
		}
	}
}

func TestAdvertisedIsAnAddressOfThisHost(t *testing.T) {
	got, err := advertised("", 4477)
	if err != nil {
		t.Fatal(err)
	}
	at, err := netip.ParseAddrPort(got)
	if err != nil || at.Port() != 4477 {
		t.Fatalf("%q: %v", got, err)
	}
	locals, err := hostAddresses()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(locals, func(l hostAddress) bool { return l.ip == at.Addr() }) {
		t.Errorf("%s is none of %v", got, locals)
	}
}

func TestWatchAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		found := []string{"10.0.0.1:1", "", "127.0.0.1:1", "10.0.0.2:1", "10.0.0.2:1", "127.0.0.1:1", "10.0.0.2:1", "10.0.0.1:1"}
		var got []string
		ctx, stop := context.WithCancel(t.Context())
		watchAddress(ctx, 2*time.Second, "10.0.0.1:1", func() (string, error) {
			next := found[0]
			if found = found[1:]; len(found) == 0 {
				stop()
			}
			if next == "" {
				return "", errors.New("too many open files")
			}
			return next, nil
		}, func(addr string) { got = append(got, addr) })
		if !slices.Equal(got, []string{"10.0.0.2:1", "10.0.0.1:1"}) {
			t.Errorf("%q", got)
		}
	})
}

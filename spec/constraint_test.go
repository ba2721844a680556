package spec

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConstraint(t *testing.T) {
	tests := []struct {
		in   string
		want Constraint
	}{
		{"node.role==manager", Constraint{"node.role", ConstraintEqual, "manager"}},
		{" node.role != worker ", Constraint{"node.role", ConstraintNotEqual, "worker"}},
		{"Node.Hostname == web-1", Constraint{"node.hostname", ConstraintEqual, "web-1"}},
		{"node.labels.Disk.type==ssd", Constraint{"node.labels.Disk.type", ConstraintEqual, "ssd"}},
		{"NODE.LABELS.com.example/zone!=a b", Constraint{"node.labels.com.example/zone", ConstraintNotEqual, "a b"}},
		{"node.ip==10.0.0.0/24", Constraint{"node.ip", ConstraintEqual, "10.0.0.0/24"}},
		{"node.ip!=fd00::1", Constraint{"node.ip", ConstraintNotEqual, "fd00::1"}},
		{"node.platform.os==linux", Constraint{"node.platform.os", ConstraintEqual, "linux"}},
		{"node.platform.arch==arm64", Constraint{"node.platform.arch", ConstraintEqual, "arm64"}},
		{"node.id==0123456789abcdef", Constraint{"node.id", ConstraintEqual, "0123456789abcdef"}},
	}
	for _, tt := range tests {
		got, err := ParseConstraint(tt.in)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%q: %v %s", tt.in, err, diff)
			continue
		}
		again, err := ParseConstraint(got.String())
		if err != nil || again != got {
			t.Errorf("%q does not survive: %v %v", got, again, err)
		}
	}
	if name, ok := tests[3].want.Label(); !ok || name != "Disk.type" {
		t.Errorf("got label %q", name)
	}
	if _, ok := tests[0].want.Label(); ok {
		t.Error("node.role is no label")
	}
}

func TestParseConstraintRefuses(t *testing.T) {
	for _, s := range []string{
		"", "node.role", "node.role=manager", "node.role==", "==manager", "node.rle==manager", "node.role==boss", "node.ip==somewhere",
		"node.labels.==a", "node.labels==a", "node.labels.-a==b", "engine.labels.a==b", "node.role==a==b", "node.hostname!==a", "node.id==a'b",
	} {
		if c, err := ParseConstraint(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %+v, %v", s, c, err)
		}
	}
}

func TestParseSpread(t *testing.T) {
	for in, want := range map[string]string{"node.labels.zone": "node.labels.zone", " Node.Platform.Arch ": "node.platform.arch"} {
		if got, err := ParseSpread(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	if _, err := ParseSpread("zone"); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestParseSubnet(t *testing.T) {
	for in, want := range map[string]string{"10.1.2.3/24": "10.1.2.0/24", "172.20.0.0/16": "172.20.0.0/16", "10.0.0.0/8": "10.0.0.0/8", "192.168.1.8/29": "192.168.1.8/29"} {
		if got, err := ParseSubnet(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "10.0.0.1", "10.0.0.0/30", "10.0.0.0/7", "fd00::/64", "127.0.0.0/24", "224.0.0.0/24", "0.0.0.0/8", "10.0.0.0/33"} {
		if got, err := ParseSubnet(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

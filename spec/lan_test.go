package spec

import (
	"strings"
	"testing"
)

func TestParseParent(t *testing.T) {
	for _, tt := range []struct {
		name, base string
		vlan       uint16
	}{
		{"eth0", "", 0}, {"eth0.7", "eth0", 7}, {"bond0.4094", "bond0", 4094}, {"eth0.7.8", "eth0.7", 8}, {"br-lan", "", 0}, {"a234567890.1234", "a234567890", 1234},
		{"eth0.x", "", 0}, {"eth0.07", "", 0}, {"eth0.", "", 0}, {".7", "", 0},
	} {
		if base, vlan, err := ParseParent(tt.name); err != nil || base != tt.base || vlan != tt.vlan {
			t.Errorf("%s: %q, %d, %v", tt.name, base, vlan, err)
		}
	}
	for name, want := range map[string]string{
		"": "is not the name", ".": "is not the name", "..": "is not the name", "a/b": "is not the name", "a b": "is not the name", "a234567890123456": "is not the name",
		"eth0.0": "there is no VLAN 0", "eth0.4095": "there is no VLAN 4095",
	} {
		if _, _, err := ParseParent(name); ErrorClass(err) != "invalid" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestValidateLAN(t *testing.T) {
	type parts struct {
		lan NetworkSpec
		web ServiceSpec
	}
	for _, tt := range []struct {
		want string
		do   func(p *parts)
	}{
		{"", func(*parts) {}},
		{"", func(p *parts) { p.lan.Internal, p.lan.Gateway = true, "" }},
		{"", func(p *parts) { p.lan.Parent = "eth0.7" }},
		{"", func(p *parts) { p.web.Template.Networks[0].IP = "192.168.7.9" }}, // beside the range
		{"", func(p *parts) {
			p.web.Template.Networks = append([]Attachment{{Network: "app"}}, p.web.Template.Networks...)
			p.web.Ports = []Port{{Published: 80, Target: 80, Protocol: "tcp", Mode: PublishIngress}}
			p.web.Template.ExtraHosts = []string{"host=host-gateway"}
		}},
		{"", func(p *parts) {
			p.web.Template.Networks = append(p.web.Template.Networks, Attachment{Network: "app"})
			p.web.Template.ExtraHosts = []string{"host=host-gateway"}
		}},
		{"networks.lan.parent: needs the interface", func(p *parts) { p.lan.Parent = "" }},
		{"networks.lan.parent: \"eth0.5000\": there is no VLAN 5000", func(p *parts) { p.lan.Parent = "eth0.5000" }},
		{"networks.lan.parent: only a network with driver macvlan", func(p *parts) { p.lan.Driver = DriverOverlay }},
		{"networks.lan.subnet: needs the subnet", func(p *parts) { p.lan.Pool = Pool{} }},
		{"networks.lan.range: needs the part of 192.168.7.0/24", func(p *parts) { p.lan.Range = "" }},
		{"networks.lan.gateway: needs the router", func(p *parts) { p.lan.Gateway = "" }},
		{"networks.lan.ipv6: IPv6 of a macvlan network", func(p *parts) { p.lan.IPv6 = &Pool{} }},
		{"services.web.ports[0]: the tasks are on the network of eth0 with addresses of their own", func(p *parts) {
			p.web.Ports = []Port{{Published: 80, Target: 80, Protocol: "tcp", Mode: PublishHost}}
		}},
		{"services.web.ports[0]: the tasks are on the network of eth0", func(p *parts) { // it comes first
			p.web.Template.Networks = append(p.web.Template.Networks, Attachment{Network: "app"})
			p.web.Ports = []Port{{Target: 80, Protocol: "tcp", Mode: PublishIngress}}
		}},
		{"services.web.template.extra_hosts: host-gateway cannot be had", func(p *parts) { p.web.Template.ExtraHosts = []string{"host=host-gateway"} }},
	} {
		p := parts{
			NetworkSpec{Driver: DriverMacvlan, Parent: "eth0", Pool: Pool{Subnet: "192.168.7.0/24", Range: "192.168.7.128/26", Gateway: "192.168.7.1"}},
			ServiceSpec{Mode: Replicated, Template: Template{Image: "web", Restart: Restart{Condition: RestartAny}, Networks: []Attachment{{Network: "lan"}}}},
		}
		tt.do(&p)
		err := ValidateStack(&Stack{Name: "s", Services: map[string]ServiceSpec{"web": p.web}, Networks: map[string]NetworkSpec{"lan": p.lan, "app": {Driver: DriverOverlay}}})
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("refused: %v", err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")):
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

package spec

import (
	"errors"
	"strings"
	"testing"
)

func TestJoins(t *testing.T) {
	for mode, want := range map[string]string{"": "", "host": "", "none": "", "service:": "", "service:vpn": "vpn", "service:a.b": "a.b"} {
		if got := (&Template{NetworkMode: mode}).Joins(); got != want {
			t.Errorf("%q joins %q, want %q", mode, got, want)
		}
	}
	if got := (&Template{NetworkMode: JoinMode("vpn")}).Joins(); got != "vpn" {
		t.Errorf("got %q", got)
	}
}

func TestValidateJoins(t *testing.T) {
	stack := func(do func(vpn, app *ServiceSpec)) *Stack {
		vpn := ServiceSpec{Mode: Replicated, Template: Template{Image: "vpn", Restart: Restart{Condition: RestartAny}, Networks: []Attachment{{Network: "default"}}}}
		app := ServiceSpec{Mode: Replicated, Template: Template{Image: "app", Restart: Restart{Condition: RestartAny}, NetworkMode: JoinMode("vpn")}}
		do(&vpn, &app)
		return &Stack{Name: "s", Services: map[string]ServiceSpec{"vpn": vpn, "app": app}, Networks: map[string]NetworkSpec{"default": {Driver: DriverOverlay}}}
	}
	two, three := 2, 3
	for _, tt := range []struct {
		want string
		do   func(vpn, app *ServiceSpec)
	}{
		{"", func(_, _ *ServiceSpec) {}},
		{"", func(vpn, app *ServiceSpec) { vpn.Replicas, app.Replicas = &three, &two }},
		{"", func(vpn, app *ServiceSpec) { vpn.Mode, app.Mode = Global, Global }},
		{"", func(vpn, _ *ServiceSpec) { vpn.Template.Networks, vpn.Template.NetworkMode = nil, "none" }},
		{"", func(_, app *ServiceSpec) { app.Replicas = &three }}, // who knows to what vpn was scaled
		{`services.app.template.network_mode: there is no service "none"`, func(_, app *ServiceSpec) { app.Template.NetworkMode = JoinMode("none") }},
		{"network_mode: 3 tasks of this service share the network of 2 tasks of vpn", func(vpn, app *ServiceSpec) { vpn.Replicas, app.Replicas = &two, &three }},
		{"network_mode: service vpn is global and this one is replicated", func(vpn, _ *ServiceSpec) { vpn.Mode = Global }},
		{"network_mode: service vpn has the network of its host", func(vpn, _ *ServiceSpec) { vpn.Template.Networks, vpn.Template.NetworkMode = nil, "host" }},
		{"network_mode: the services share each other's network: app -> app", func(_, app *ServiceSpec) { app.Template.NetworkMode = JoinMode("app") }},
		{"network_mode: the services share each other's network: app -> vpn -> app", func(vpn, _ *ServiceSpec) { vpn.Template.Networks, vpn.Template.NetworkMode = nil, JoinMode("app") }},
		{"the services wait for each other: ", func(vpn, _ *ServiceSpec) {
			vpn.DependsOn = []Dependency{{Service: "app", Condition: DependencyStarted}}
		}},
		{"services.app.ports: a service with network mode service:vpn publishes no ports", func(_, app *ServiceSpec) {
			app.Ports = []Port{{Target: 80, Protocol: "tcp", Mode: PublishIngress}}
		}},
		{"services.app.template.networks: ", func(_, app *ServiceSpec) { app.Template.Networks = []Attachment{{Network: "default"}} }},
		{"services.app.template.hostname: it belongs to service vpn", func(_, app *ServiceSpec) { app.Template.Hostname = "x" }},
		{"services.app.template.dns: it belongs", func(_, app *ServiceSpec) { app.Template.DNS = []string{"192.0.2.1"} }},
		{"services.app.template.dns_search: it belongs", func(_, app *ServiceSpec) { app.Template.DNSSearch = []string{"x"} }},
		{"services.app.template.dns_options: it belongs", func(_, app *ServiceSpec) { app.Template.DNSOptions = []string{"ndots:2"} }},
		{"services.app.template.extra_hosts: it belongs", func(_, app *ServiceSpec) { app.Template.ExtraHosts = []string{"a=192.0.2.1"} }},
		{"services.app.template.domainname: it belongs", func(_, app *ServiceSpec) { app.Template.Domainname = "x" }},
	} {
		err := ValidateStack(stack(tt.do))
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
	chain := stack(func(_, _ *ServiceSpec) {})
	chain.Services["third"] = ServiceSpec{Mode: Replicated, Template: Template{Image: "x", Restart: Restart{Condition: RestartAny}, NetworkMode: JoinMode("app")}}
	if err := ValidateStack(chain); err == nil || !strings.Contains(err.Error(), "services.third.template.network_mode: service app has no network of its own: name vpn") {
		t.Errorf("a chain gives %v", err)
	}
}

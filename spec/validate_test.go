package spec

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func validStack() *Stack {
	replicas := 2
	mode := uint32(0o444)
	return &Stack{
		Name: "shop",
		Services: map[string]ServiceSpec{
			"web": {
				Mode: Replicated, Replicas: &replicas,
				Template: Template{
					Image: "docker.io/library/nginx:1", Digest: "sha256:" + strings.Repeat("0", 64), Platform: "linux/arm64/v8",
					Env: map[string]string{"A": "b"}, Hostname: "web-1", WorkingDir: "/srv", StopSignal: "SIGTERM", StopGrace: Duration(time.Second),
					Mounts: []Mount{
						{Type: MountVolume, Source: "data", Target: "/data", Subpath: "a/b"},
						{Type: MountVolume, Target: "/anonymous"},
						{Type: MountBind, Source: "/srv", Target: "/srv", Propagation: "rslave"},
						{Type: MountTmpfs, Target: "/tmp", Size: 1 << 20},
						{Type: MountContent, Target: "/etc/conf", Content: PlainContentID(nil), Mode: &mode},
					},
					Networks: []Attachment{{Network: "default", Aliases: []string{"www.shop"}}},
					DNS:      []string{"10.0.0.1"}, ExtraHosts: []string{"a=::1", "b=host-gateway"},
					Health:    &HealthCheck{Test: []string{"CMD", "true"}, Interval: Duration(time.Second), Timeout: Duration(time.Second), Retries: 1},
					Restart:   Restart{Condition: RestartAny},
					Resources: Resources{NanoCPUs: 1e9, Memory: 64 << 20, MemorySwap: -1, Pids: -1, Cpuset: "0-2,4", OOMScoreAdj: -500},
					Ulimits:   map[string]Ulimit{"nofile": {1, 2}, "core": {-1, -1}}, Sysctls: map[string]string{"net.core.somaxconn": "1"},
					CapAdd: []string{"CAP_NET_ADMIN"}, CapDrop: []string{"ALL"}, PIDMode: "host", IPCMode: "host",
					Devices: []Device{{"/dev/a", "/dev/b", "rw"}}, Log: LogSpec{MaxSize: 1, MaxFiles: 1},
				},
				Placement: Placement{Constraints: []string{"node.role==manager"}, Spread: []string{"node.labels.zone"}, MaxPerNode: 1},
				Ports: []Port{
					{Published: 80, Target: 80, Protocol: "tcp", Mode: PublishIngress},
					{Published: 80, Target: 80, Protocol: "udp", Mode: PublishHost, HostIP: "127.0.0.1"},
				},
				DependsOn: []Dependency{{Service: "db", Condition: DependencyHealthy}, {Service: "gone", Condition: DependencyStarted, Optional: true}},
			},
			"db": {Mode: Global, Template: Template{Image: "db", NetworkMode: "host", Restart: Restart{Condition: RestartNone}}},
		},
		Networks: map[string]NetworkSpec{"default": {Driver: DriverOverlay}, "ext": {External: true, Name: "other"}},
		Volumes:  map[string]VolumeSpec{"data": {DriverOpts: map[string]string{"type": "nfs"}}, "seeded": {Seed: KeyedContentID(nil, nil)}},
	}
}

func TestValidateStackAccepts(t *testing.T) {
	if err := ValidateStack(validStack()); err != nil {
		t.Fatal(err)
	}
}

// TestValidateStackRefuses breaks one thing after the other.
func TestValidateStackRefuses(t *testing.T) {
	web := func(f func(*ServiceSpec)) func(*Stack) {
		return func(s *Stack) {
			svc := s.Services["web"]
			f(&svc)
			s.Services["web"] = svc
		}
	}
	mount := func(m Mount) func(*Stack) {
		return web(func(s *ServiceSpec) { s.Template.Mounts = append(s.Template.Mounts, m) })
	}
	port := func(p Port) func(*Stack) { return web(func(s *ServiceSpec) { s.Ports = append(s.Ports, p) }) }
	tests := []struct {
		want string // path and part of the message
		do   func(*Stack)
	}{
		{"name: the name", func(s *Stack) { s.Name = "Shop" }},
		{"name: the name", func(s *Stack) { s.Name = strings.Repeat("a", 64) }},
		{"services: a stack needs", func(s *Stack) { s.Services = nil }},
		{"services.a/b: the name", func(s *Stack) { s.Services["a/b"] = s.Services["db"] }},
		{"services...: the name", func(s *Stack) { s.Services[".."] = s.Services["db"] }},
		{"services.web.mode:", web(func(s *ServiceSpec) { s.Mode = "" })},
		{"services.web.endpoint_mode:", web(func(s *ServiceSpec) { s.EndpointMode = "none" })},
		{"services.web.replicas: a global", web(func(s *ServiceSpec) { s.Mode = Global })},
		{"services.web.replicas: must", web(func(s *ServiceSpec) { n := -1; s.Replicas = &n })},
		{"services.web.replicas: must", web(func(s *ServiceSpec) { n := MaxReplicas + 1; s.Replicas = &n })},
		{"services.web.template.image:", web(func(s *ServiceSpec) { s.Template.Image = " " })},
		{"services.web.template.digest:", web(func(s *ServiceSpec) { s.Template.Digest = "latest" })},
		{"services.web.template.platform:", web(func(s *ServiceSpec) { s.Template.Platform = "linux" })},
		{"services.web.template.env:", web(func(s *ServiceSpec) { s.Template.Env = map[string]string{"A=B": ""} })},
		{"services.web.template.hostname:", web(func(s *ServiceSpec) { s.Template.Hostname = "a b" })},
		{"services.web.template.working_dir:", web(func(s *ServiceSpec) { s.Template.WorkingDir = "srv" })},
		{"services.web.template.labels:", web(func(s *ServiceSpec) { s.Template.Labels = map[string]string{"": "x"} })},
		{"mounts[5].target: /data is already", mount(Mount{Type: MountTmpfs, Target: "/data"})},
		{"mounts[5].target: \"x\"", mount(Mount{Type: MountTmpfs, Target: "x"})},
		{"mounts[5].target: \"/\"", mount(Mount{Type: MountTmpfs, Target: "/"})},
		{"mounts[5].target: \"/a/../b\"", mount(Mount{Type: MountTmpfs, Target: "/a/../b"})},
		{"mounts[5].source: the volume", mount(Mount{Type: MountVolume, Source: "none", Target: "/x"})},
		{"mounts[5].subpath:", mount(Mount{Type: MountVolume, Source: "data", Target: "/x", Subpath: "../x"})},
		{"mounts[5].source: \"./a\"", mount(Mount{Type: MountBind, Source: "./a", Target: "/x"})},
		{"mounts[5].propagation:", mount(Mount{Type: MountBind, Source: "/a", Target: "/x", Propagation: "no"})},
		{"mounts[5].source: a tmpfs", mount(Mount{Type: MountTmpfs, Source: "/a", Target: "/x"})},
		{"mounts[5].size:", mount(Mount{Type: MountTmpfs, Target: "/x", Size: -1})},
		{"mounts[5].content:", mount(Mount{Type: MountContent, Target: "/x", Content: "abc"})},
		{"mounts[5].type:", mount(Mount{Target: "/x"})},
		{"mounts[5].mode:", mount(Mount{Type: MountTmpfs, Target: "/x", Mode: new(uint32(1 << 20))})},
		{"template.network_mode:", web(func(s *ServiceSpec) { s.Template.NetworkMode, s.Template.Networks = "bridge", nil })},
		{"template.networks: a service", web(func(s *ServiceSpec) { s.Template.NetworkMode = "none" })},
		{"services.web.ports: a service", web(func(s *ServiceSpec) { s.Template.NetworkMode, s.Template.Networks = "host", nil })},
		{"networks[0]: the network", web(func(s *ServiceSpec) { s.Template.Networks[0].Network = "none" })},
		{"networks[1]: the network", web(func(s *ServiceSpec) { s.Template.Networks = append(s.Template.Networks, s.Template.Networks[0]) })},
		{"networks[0].aliases:", web(func(s *ServiceSpec) { s.Template.Networks[0].Aliases = []string{"a b"} })},
		{"template.dns_search:", web(func(s *ServiceSpec) { s.Template.DNSSearch = []string{"a b"} })},
		{"template.dns_search:", web(func(s *ServiceSpec) { s.Template.DNSSearch = []string{".."} })},
		{"template.dns_options:", web(func(s *ServiceSpec) { s.Template.DNSOptions = []string{"rotate\nnameserver 192.0.2.1"} })},
		{"template.dns:", web(func(s *ServiceSpec) { s.Template.DNS = []string{"dns.example"} })},
		{"template.extra_hosts:", web(func(s *ServiceSpec) { s.Template.ExtraHosts = []string{"a"} })},
		{"health.test:", web(func(s *ServiceSpec) { s.Template.Health.Test = []string{"true"} })},
		{"health.interval:", web(func(s *ServiceSpec) { s.Template.Health.Interval = -1 })},
		{"health.start_period:", web(func(s *ServiceSpec) { s.Template.Health.StartPeriod = -1 })},
		{"health.retries:", web(func(s *ServiceSpec) { s.Template.Health.Retries = -1 })},
		{"restart.condition:", web(func(s *ServiceSpec) { s.Template.Restart.Condition = "always" })},
		{"restart.delay:", web(func(s *ServiceSpec) { s.Template.Restart.Delay = -1 })},
		{"restart.max_attempts:", web(func(s *ServiceSpec) { s.Template.Restart.MaxAttempts = -1 })},
		{"template.stop_signal:", web(func(s *ServiceSpec) { s.Template.StopSignal = "SIG TERM" })},
		{"template.stop_grace:", web(func(s *ServiceSpec) { s.Template.StopGrace = -1 })},
		{"resources.nano_cpus:", web(func(s *ServiceSpec) { s.Template.Resources.NanoCPUs = -1 })},
		{"resources.memory:", web(func(s *ServiceSpec) { s.Template.Resources.Memory = 1 })},
		{"resources.memory_swap:", web(func(s *ServiceSpec) { s.Template.Resources.MemorySwap = 1 })},
		{"resources.memory_swap: needs", web(func(s *ServiceSpec) { s.Template.Resources.Memory, s.Template.Resources.MemorySwap = 0, 1 })},
		{"resources.pids:", web(func(s *ServiceSpec) { s.Template.Resources.Pids = -2 })},
		{"resources.cpu_period:", web(func(s *ServiceSpec) { s.Template.Resources.CPUPeriod = 1 })},
		{"resources.cpu_quota:", web(func(s *ServiceSpec) { s.Template.Resources.CPUQuota = 1 })},
		{"resources.cpuset:", web(func(s *ServiceSpec) { s.Template.Resources.Cpuset = "a" })},
		{"resources.oom_score_adj:", web(func(s *ServiceSpec) { s.Template.Resources.OOMScoreAdj = 1001 })},
		{"ulimits.nofile:", web(func(s *ServiceSpec) { s.Template.Ulimits["nofile"] = Ulimit{2, 1} })},
		{"template.sysctls:", web(func(s *ServiceSpec) { s.Template.Sysctls = map[string]string{"../x": "1"} })},
		{"template.cap_add:", web(func(s *ServiceSpec) { s.Template.CapAdd = []string{"net_admin"} })},
		{"template.cap_drop:", web(func(s *ServiceSpec) { s.Template.CapDrop = []string{"CAP_FLY"} })},
		{"template.ulimits: there is no limit", web(func(s *ServiceSpec) { s.Template.Ulimits = map[string]Ulimit{"open": {1, 1}} })},
		{"template.security_opt[0]:", web(func(s *ServiceSpec) { s.Template.SecurityOpt = []string{"seccomp=x.json"} })},
		{"template.pid_mode:", web(func(s *ServiceSpec) { s.Template.PIDMode = "x" })},
		{"template.ipc_mode:", web(func(s *ServiceSpec) { s.Template.IPCMode = "x" })},
		{"template.devices[0]:", web(func(s *ServiceSpec) { s.Template.Devices[0].Permissions = "x" })},
		{"log.max_size:", web(func(s *ServiceSpec) { s.Template.Log.MaxSize = -1 })},
		{"log.max_files:", web(func(s *ServiceSpec) { s.Template.Log.MaxFiles = 1001 })},
		{"placement.constraints[0]:", web(func(s *ServiceSpec) { s.Placement.Constraints = []string{"x"} })},
		{"placement.spread[0]:", web(func(s *ServiceSpec) { s.Placement.Spread = []string{"x"} })},
		{"placement.max_per_node:", web(func(s *ServiceSpec) { s.Placement.MaxPerNode = -1 })},
		{"ports[2].target:", port(Port{Protocol: "tcp", Mode: PublishHost})},
		{"ports[2].protocol:", port(Port{Target: 1, Protocol: "sctp", Mode: PublishHost})},
		{"ports[2].mode:", port(Port{Target: 1, Protocol: "tcp"})},
		{"ports[2].host_ip:", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "localhost"})},
		{"ports[2]: port 80/tcp is published by web", port(Port{Published: 80, Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "127.0.0.1"})},
		{"depends_on[2]: there is no", web(func(s *ServiceSpec) {
			s.DependsOn = append(s.DependsOn, Dependency{Service: "x", Condition: DependencyStarted})
		})},
		{"depends_on[2]: the service \"db\" is named twice", web(func(s *ServiceSpec) {
			s.DependsOn = append(s.DependsOn, Dependency{Service: "db", Condition: DependencyStarted})
		})},
		{"depends_on[0].condition:", web(func(s *ServiceSpec) { s.DependsOn[0].Condition = "done" })},
		{"wait for each other: db -> web -> db", func(s *Stack) {
			db := s.Services["db"]
			db.DependsOn = []Dependency{{Service: "web", Condition: DependencyStarted}}
			s.Services["db"] = db
		}},
		{"networks.default.driver:", func(s *Stack) { s.Networks["default"] = NetworkSpec{Driver: "macvlan"} }},
		{"networks.default.subnet: 10.0.0.1/24 has bits", func(s *Stack) {
			s.Networks["default"] = NetworkSpec{Driver: DriverOverlay, Pool: Pool{Subnet: "10.0.0.1/24"}}
		}},
		{"networks.default.subnet:", func(s *Stack) { s.Networks["default"] = NetworkSpec{Driver: DriverOverlay, Pool: Pool{Subnet: "x"}} }},
		{"networks.default.name:", func(s *Stack) { s.Networks["default"] = NetworkSpec{Driver: DriverOverlay, Name: "a/b"} }},
		{"volumes.data.driver_opts:", func(s *Stack) { s.Volumes["data"] = VolumeSpec{DriverOpts: map[string]string{"size": "1"}} }},
		{"volumes.data: an external", func(s *Stack) { s.Volumes["data"] = VolumeSpec{External: true, Seed: PlainContentID(nil)} }},
		{"volumes.data.seed:", func(s *Stack) { s.Volumes["data"] = VolumeSpec{Seed: "x"} }},
	}
	for _, tt := range tests {
		s := validStack()
		tt.do(s)
		err := ValidateStack(s)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
}

func TestValidateStackReportsAll(t *testing.T) {
	s := &Stack{Name: "!", Services: map[string]ServiceSpec{"a": {}, "b": {}}}
	if n := strings.Count(ValidateStack(s).Error(), "\n"); n < 6 {
		t.Errorf("got %d lines: %v", n+1, ValidateStack(s))
	}
}

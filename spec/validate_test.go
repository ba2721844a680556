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
						{Type: MountBind, Source: "/srv", Target: "/srv", Propagation: "rslave", ReadOnly: true, Submounts: "readonly"},
						{Type: MountTmpfs, Target: "/tmp", Size: 1 << 20},
						{Type: MountContent, Target: "/etc/conf", Content: PlainContentID(nil), Mode: &mode},
					},
					Networks: []Attachment{{Network: "default", Aliases: []string{"www.shop"}}},
					DNS:      []string{"10.0.0.1"}, ExtraHosts: []string{"a=::1", "b=host-gateway"},
					Health:    &HealthCheck{Test: []string{"CMD", "true"}, Interval: Duration(time.Second), Timeout: Duration(time.Second), Retries: 1},
					PreStart:  []InitContainer{{Image: "init", Digest: "sha256:" + strings.Repeat("0", 64), WorkingDir: "/srv"}},
					PostStart: []Hook{{Command: []string{"warm"}, WorkingDir: "/", Env: map[string]string{"A": "b"}}}, PreStop: []Hook{{Command: []string{"flush"}}},
					Restart: Restart{Condition: RestartAny},
					Resources: Resources{
						NanoCPUs: 1e9, Memory: 64 << 20, MemorySwap: -1, Pids: -1, Cpuset: "0-2,4", OOMScoreAdj: -500,
						ReserveGeneric: map[string]int64{"gpu": 1}, KeepOnOOM: true, Swappiness: new(int64(0)), RealtimeRuntime: 1000, RealtimePeriod: 1000,
						BlockIO: &BlockIO{Weight: 10, WeightDevices: []DeviceWeight{{"/dev/a", 1000}}, ReadOps: []DeviceRate{{"/dev/a", 0}}},
					},
					Ulimits: map[string]Ulimit{"nofile": {1, 2}, "core": {-1, -1}}, Sysctls: map[string]string{"net.core.somaxconn": "1"},
					CapAdd: []string{"CAP_NET_ADMIN"}, CapDrop: []string{"ALL"}, PIDMode: "host", IPCMode: "host",
					Devices: []Device{{"/dev/a", "/dev/b", "rw"}}, DeviceRules: []DeviceRule{{"a", -1, -1, "rwm"}, {"c", 1, 3, "r"}},
					DeviceRequests: []DeviceRequest{{Names: []string{"vendor.com/net=eth0"}}, {Class: "gpu", Count: -1}, {Vendor: "nvidia.com", Class: "gpu", IDs: []string{"GPU-1:2"}}},
					CgroupMode:     "private", Umask: new(uint32(0o777)), Annotations: map[string]string{"a": "b"},
					Log: LogSpec{MaxSize: 1, MaxFiles: 1},
				},
				Placement: Placement{Constraints: []string{"node.role==manager"}, Spread: []string{"node.labels.zone"}, MaxPerNode: 1},
				Ports: []Port{
					{Published: 80, Target: 80, Protocol: "tcp", Mode: PublishIngress},
					{Published: 80, Target: 80, Protocol: "udp", Mode: PublishHost, HostIP: "127.0.0.1"},
				},
				DependsOn: []Dependency{{Service: "db", Condition: DependencyHealthy}, {Service: "gone", Condition: DependencyStarted, Optional: true}},
			},
			"db": {Mode: Global, Template: Template{Image: "db", NetworkMode: "host", UTSMode: "host", IPCMode: "none", Restart: Restart{Condition: RestartNone}}},
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

// addressed is a network on which addresses are chosen in every way.
func addressed() NetworkSpec {
	return NetworkSpec{Driver: DriverOverlay,
		Pool: Pool{Subnet: "10.1.0.0/24", Range: "10.1.0.64/26", Gateway: "10.1.0.254", Reserved: []string{"10.1.0.77", "10.1.0.200"}},
		IPv6: &Pool{Subnet: "fd00::/64"}}
}

// TestValidateAddresses: what a network may say of its addresses, and a service
// of its own, which may be outside of the range.
func TestValidateAddresses(t *testing.T) {
	s := validStack()
	s.Networks["default"], s.Networks["plain"] = addressed(), NetworkSpec{Driver: DriverBridge, IPv6: &Pool{}}
	one, web := 1, s.Services["web"]
	web.Replicas = &one
	web.Template.Networks = []Attachment{{Network: "default", IP: "10.1.0.9", IP6: "fd00::9"}, {Network: "ext", IP: "192.0.2.9"}, {Network: "plain"}}
	web.Ports = append(web.Ports, Port{Published: 81, Target: 80, Protocol: "tcp", Mode: PublishIngress, HostIP: "2001:db8::2"},
		Port{Published: 82, Target: 80, Protocol: "tcp", Mode: PublishIngress, HostIP: "::"}, Port{Published: 81, Target: 80, Protocol: "tcp", Mode: PublishIngress, HostIP: "2001:db8::1"})
	s.Services["web"] = web
	s.Services["also"] = ServiceSpec{Mode: Replicated, Template: Template{Image: "a", Networks: []Attachment{{Network: "default", IP: "10.1.0.10"}}, Restart: Restart{Condition: RestartAny}}}
	if err := ValidateStack(s); err != nil {
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
	// nets changes a network with subnets of both families.
	nets := func(f func(*NetworkSpec)) func(*Stack) {
		return func(s *Stack) {
			n := addressed()
			f(&n)
			s.Networks["default"] = n
		}
	}
	// fix gives web an address on it, and a number of replicas; -1 is global.
	fix := func(replicas int, ip, ip6 string) func(*Stack) {
		return func(s *Stack) {
			s.Networks["default"] = addressed()
			web(func(svc *ServiceSpec) {
				svc.Replicas, svc.Template.Networks = &replicas, []Attachment{{Network: "default", IP: ip, IP6: ip6}}
				if replicas < 0 {
					svc.Mode, svc.Replicas = Global, nil
				}
			})(s)
		}
	}
	tests := []struct {
		want string // path and part of the message
		do   func(*Stack)
	}{
		{"name: the name", func(s *Stack) { s.Name = "Shop" }},
		{"name: the name", func(s *Stack) { s.Name = strings.Repeat("a", 64) }},
		{"services: a stack needs", func(s *Stack) { s.Services, s.Networks = nil, nil }},
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
		{"mounts[5].submounts: \"some\"", mount(Mount{Type: MountBind, Source: "/a", Target: "/x", ReadOnly: true, Submounts: "some"})},
		{"mounts[5].submounts: only", mount(Mount{Type: MountBind, Source: "/a", Target: "/x", Submounts: "writable"})},
		{"mounts[5].submounts: only", mount(Mount{Type: MountTmpfs, Target: "/x", ReadOnly: true, Submounts: "writable"})},
		{"mounts[5].source: an image", mount(Mount{Type: MountImage, Target: "/x"})},
		{"mounts[5].digest:", mount(Mount{Type: MountImage, Source: "a", Digest: "x", Target: "/x"})},
		{"mounts[5].subpath:", mount(Mount{Type: MountImage, Source: "a", Target: "/x", Subpath: "/etc"})},
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
		{"template.pre_start[0].image:", web(func(s *ServiceSpec) { s.Template.PreStart[0].Image = "" })},
		{"template.pre_start[0].digest:", web(func(s *ServiceSpec) { s.Template.PreStart[0].Digest = "x" })},
		{"template.pre_start[0].working_dir:", web(func(s *ServiceSpec) { s.Template.PreStart[0].WorkingDir = "x" })},
		{"template.pre_start[0].env:", web(func(s *ServiceSpec) { s.Template.PreStart[0].Env = map[string]string{"=": "x"} })},
		{"template.post_start[0]: a hook", web(func(s *ServiceSpec) { s.Template.PostStart[0].Command = nil })},
		{"template.post_start[0].working_dir:", web(func(s *ServiceSpec) { s.Template.PostStart[0].WorkingDir = "a" })},
		{"template.post_start[0].env:", web(func(s *ServiceSpec) { s.Template.PostStart[0].Env = map[string]string{"": "x"} })},
		{"template.pre_stop[0]: a hook", web(func(s *ServiceSpec) { s.Template.PreStop[0].Command = []string{""} })},
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
		{"resources.reserve_generic:", web(func(s *ServiceSpec) { s.Template.Resources.ReserveGeneric["gpu"] = 0 })},
		{"resources.reserve_generic:", web(func(s *ServiceSpec) { s.Template.Resources.ReserveGeneric["g pu"] = 1 })},
		{"resources.swappiness:", web(func(s *ServiceSpec) { *s.Template.Resources.Swappiness = 101 })},
		{"resources.realtime_runtime: must be at most", web(func(s *ServiceSpec) { s.Template.Resources.RealtimeRuntime = 1001 })},
		{"resources.realtime_runtime: must not", web(func(s *ServiceSpec) { s.Template.Resources.RealtimeRuntime = -1 })},
		{"resources.realtime_period: must not", web(func(s *ServiceSpec) { s.Template.Resources.RealtimePeriod = -1 })},
		{"resources.block_io.weight:", web(func(s *ServiceSpec) { s.Template.Resources.BlockIO.Weight = 9 })},
		{"resources.block_io.weight_devices[0]: the weight", web(func(s *ServiceSpec) { s.Template.Resources.BlockIO.WeightDevices[0].Weight = 0 })},
		{"resources.block_io.weight_devices[0]: \"a\"", web(func(s *ServiceSpec) { s.Template.Resources.BlockIO.WeightDevices[0].Path = "a" })},
		{"resources.block_io.read_ops[0]: \"a\"", web(func(s *ServiceSpec) { s.Template.Resources.BlockIO.ReadOps[0].Path = "a" })},
		{"ulimits.nofile:", web(func(s *ServiceSpec) { s.Template.Ulimits["nofile"] = Ulimit{2, 1} })},
		{"template.sysctls:", web(func(s *ServiceSpec) { s.Template.Sysctls = map[string]string{"../x": "1"} })},
		{"template.cap_add:", web(func(s *ServiceSpec) { s.Template.CapAdd = []string{"net_admin"} })},
		{"template.cap_drop:", web(func(s *ServiceSpec) { s.Template.CapDrop = []string{"CAP_FLY"} })},
		{"template.ulimits: there is no limit", web(func(s *ServiceSpec) { s.Template.Ulimits = map[string]Ulimit{"open": {1, 1}} })},
		{"template.security_opt[0]:", web(func(s *ServiceSpec) { s.Template.SecurityOpt = []string{"seccomp=x.json"} })},
		{"template.pid_mode:", web(func(s *ServiceSpec) { s.Template.PIDMode = "x" })},
		{"template.ipc_mode:", web(func(s *ServiceSpec) { s.Template.IPCMode = "x" })},
		{"template.devices[0]:", web(func(s *ServiceSpec) { s.Template.Devices[0].Permissions = "x" })},
		{"template.device_rules[0]:", web(func(s *ServiceSpec) { s.Template.DeviceRules[0].Type = "x" })},
		{"template.device_rules[0]:", web(func(s *ServiceSpec) { s.Template.DeviceRules[0].Minor = -2 })},
		{"template.device_rules[1]:", web(func(s *ServiceSpec) { s.Template.DeviceRules[1].Permissions = "" })},
		{"template.device_requests[0].names:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[0].Names[0] = "eth0" })},
		{"template.device_requests[0]: names and", web(func(s *ServiceSpec) { s.Template.DeviceRequests[0].Count = 1 })},
		{"template.device_requests[1].class:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[1].Class = "g/pu" })},
		{"template.device_requests[1].count:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[1].Count = -2 })},
		{"template.device_requests[1].count:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[1].Count = 0 })},
		{"template.device_requests[2].count:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[2].Count = 1 })},
		{"template.device_requests[2].vendor:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[2].Vendor = "n/v" })},
		{"template.device_requests[2].ids:", web(func(s *ServiceSpec) { s.Template.DeviceRequests[2].IDs[0] = "=" })},
		{"template.runtime:", web(func(s *ServiceSpec) { s.Template.Runtime = "reboot" })},
		{"template.uts_mode:", web(func(s *ServiceSpec) { s.Template.UTSMode = "private" })},
		{"template.hostname: the container has", web(func(s *ServiceSpec) { s.Template.UTSMode = "host" })},
		{"template.domainname: the container has", web(func(s *ServiceSpec) { s.Template.UTSMode, s.Template.Domainname = "host", "a" })},
		{"template.cgroup_mode:", web(func(s *ServiceSpec) { s.Template.CgroupMode = "x" })},
		{"template.umask:", web(func(s *ServiceSpec) { *s.Template.Umask = 0o1000 })},
		{"template.annotations: run.oci.x", web(func(s *ServiceSpec) { s.Template.Annotations["run.oci.x"] = "y" })},
		{"log.max_size:", web(func(s *ServiceSpec) { s.Template.Log.MaxSize = -1 })},
		{"log.max_files:", web(func(s *ServiceSpec) { s.Template.Log.MaxFiles = 1001 })},
		{"placement.constraints[0]:", web(func(s *ServiceSpec) { s.Placement.Constraints = []string{"x"} })},
		{"placement.spread[0]:", web(func(s *ServiceSpec) { s.Placement.Spread = []string{"x"} })},
		{"placement.max_per_node:", web(func(s *ServiceSpec) { s.Placement.MaxPerNode = -1 })},
		{"ports[2].target:", port(Port{Protocol: "tcp", Mode: PublishHost})},
		{"ports[2].protocol:", port(Port{Target: 1, Protocol: "sctp", Mode: PublishHost})},
		{"ports[2].mode:", port(Port{Target: 1, Protocol: "tcp"})},
		{"ports[2].host_ip:", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "localhost"})},
		{"ports[2].host_ip: ff02::1 is not", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "ff02::1"})},
		{"ports[2].host_ip: fe80::1%eth0 is not", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "fe80::1%eth0"})},
		{"ports[2].host_ip: 2001:db8::0:1 is to be written as 2001:db8::1", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "2001:db8::0:1"})},
		{"ports[2].host_ip: the kernel leads nothing from ::1", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "::1"})},
		{"ports[2].host_ip: nothing would answer at 2001:db8::1", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "2001:db8::1"})},
		{"ports[2].host_ip: nothing would answer at ::", port(Port{Target: 1, Protocol: "tcp", Mode: PublishHost, HostIP: "::"})},
		{"ports[2]: port 80/udp is published by web", port(Port{Published: 80, Target: 1, Protocol: "udp", Mode: PublishHost, HostIP: "0.0.0.0"})},
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
		{"networks.default.driver:", func(s *Stack) { s.Networks["default"] = NetworkSpec{Driver: "ipvlan"} }},
		{"networks.default.subnet: 10.0.0.1/24 has bits", func(s *Stack) {
			s.Networks["default"] = NetworkSpec{Driver: DriverOverlay, Pool: Pool{Subnet: "10.0.0.1/24"}}
		}},
		{"networks.default.subnet: the subnet fd00::/64 is not IPv4", nets(func(n *NetworkSpec) { n.Subnet = "fd00::/64" })},
		{"networks.default.range: needs a subnet", nets(func(n *NetworkSpec) { n.Pool = Pool{Range: "10.1.0.0/25"} })},
		{"networks.default.gateway: needs a subnet", nets(func(n *NetworkSpec) { n.Pool = Pool{Gateway: "10.1.0.1"} })},
		{"networks.default.reserved[0]: needs a subnet", nets(func(n *NetworkSpec) { n.Pool = Pool{Reserved: []string{"10.1.0.1"}} })},
		{"networks.default.range: \"10.1.0.0\" is not a part", nets(func(n *NetworkSpec) { n.Range = "10.1.0.0" })},
		{"networks.default.range: \"fd00::/64\" is not a part", nets(func(n *NetworkSpec) { n.Range = "fd00::/64" })},
		{"networks.default.range: 10.1.0.9/25 has bits", nets(func(n *NetworkSpec) { n.Range = "10.1.0.9/25" })},
		{"networks.default.range: the range 10.2.0.0/25 is not within", nets(func(n *NetworkSpec) { n.Range = "10.2.0.0/25" })},
		{"networks.default.range: the range 10.0.0.0/15 is not within", nets(func(n *NetworkSpec) { n.Range = "10.0.0.0/15" })},
		{"networks.default.gateway: \"x\" is not an IPv4 address", nets(func(n *NetworkSpec) { n.Gateway = "x" })},
		{"networks.default.gateway: \"fd00::1\" is not an IPv4 address", nets(func(n *NetworkSpec) { n.Gateway = "fd00::1" })},
		{"networks.default.gateway: 10.1.1.1 is not in the subnet", nets(func(n *NetworkSpec) { n.Gateway = "10.1.1.1" })},
		{"networks.default.gateway: 10.1.0.0 is the address of the subnet", nets(func(n *NetworkSpec) { n.Gateway = "10.1.0.0" })},
		{"networks.default.gateway: 10.1.0.255 is the broadcast", nets(func(n *NetworkSpec) { n.Gateway = "10.1.0.255" })},
		{"networks.default.reserved[1]: 10.2.0.1 is not in", nets(func(n *NetworkSpec) { n.Reserved = []string{"10.1.0.2", "10.2.0.1"} })},
		{"networks.default.reserved[1]: 10.1.0.2 does not come after", nets(func(n *NetworkSpec) { n.Reserved = []string{"10.1.0.2", "10.1.0.2"} })},
		{"networks.default.ipv6.subnet: the subnet 10.1.0.0/24 is not IPv6", nets(func(n *NetworkSpec) { n.IPv6 = &Pool{Subnet: "10.1.0.0/24"} })},
		{"networks.default.ipv6.subnet: the subnet ::ffff:10.1.0.0/120 is not IPv6", nets(func(n *NetworkSpec) { n.IPv6 = &Pool{Subnet: "::ffff:10.1.0.0/120"} })},
		{"networks.default.ipv6.subnet: the subnet fd00::/126 must", nets(func(n *NetworkSpec) { n.IPv6 = &Pool{Subnet: "fd00::/126"} })},
		{"networks.default.ipv6.subnet: the subnet fe80::/64 cannot", nets(func(n *NetworkSpec) { n.IPv6 = &Pool{Subnet: "fe80::/64"} })},
		{"networks.default.ipv6.subnet: FD00::/64 has bits of the host, want fd00::/64", nets(func(n *NetworkSpec) { n.IPv6 = &Pool{Subnet: "FD00::/64"} })},
		{"networks.default.ipv6.gateway: fd00:: is the address of the subnet", nets(func(n *NetworkSpec) { n.IPv6.Gateway = "fd00::" })},
		{"networks.default.ipv6.gateway: fd00::0 is to be written as fd00::", nets(func(n *NetworkSpec) { n.IPv6.Gateway = "fd00::0" })},
		{"networks.default.ipv6.range: the range fd01::/65", nets(func(n *NetworkSpec) { n.IPv6.Range = "fd01::/65" })},
		{"networks.ext: an external network has the addresses", func(s *Stack) { s.Networks["ext"] = NetworkSpec{External: true, Pool: Pool{Subnet: "10.1.0.0/24"}} }},
		{"networks.ext: an external network has the addresses", func(s *Stack) { s.Networks["ext"] = NetworkSpec{External: true, IPv6: &Pool{}} }},
		{"services.web.template.networks[0].ip: an address can be that of one task, and the service has 2 replicas", fix(2, "10.1.0.9", "")},
		{"services.web.template.networks[0].ip6: an address can be that of one task, and the service has 2 replicas", fix(2, "", "fd00::9")},
		{"services.web.template.networks[0].ip: an address can be that of one task, and a global", fix(-1, "10.1.0.9", "")},
		{"services.web.template.networks[0].ip: \"fd00::9\" is not an IPv4", fix(1, "fd00::9", "")},
		{"services.web.template.networks[0].ip6: \"10.1.0.9\" is not an IPv6", fix(1, "", "10.1.0.9")},
		{"services.web.template.networks[0].ip: 10.2.0.9 is not in the subnet 10.1.0.0/24 of the network default", fix(1, "10.2.0.9", "")},
		{"services.web.template.networks[0].ip: 10.1.0.0 is the address", fix(1, "10.1.0.0", "")},
		{"services.web.template.networks[0].ip: 10.1.0.255 is the broadcast", fix(1, "10.1.0.255", "")},
		{"services.web.template.networks[0].ip: 10.1.0.254 is the gateway", fix(1, "10.1.0.254", "")},
		{"services.web.template.networks[0].ip: 10.1.0.77 is reserved", fix(1, "10.1.0.77", "")},
		{"services.web.template.networks[0].ip6: fd00::1 is the gateway", fix(1, "", "fd00::1")},
		{"services.web.template.networks[0].ip: the network default has no IPv4 subnet of its own", func(s *Stack) {
			fix(1, "10.1.0.9", "")(s)
			s.Networks["default"] = NetworkSpec{Driver: DriverOverlay}
		}},
		{"services.web.template.networks[0].ip6: the network default has no IPv6", func(s *Stack) {
			fix(1, "", "fd00::9")(s)
			s.Networks["default"] = NetworkSpec{Driver: DriverOverlay}
		}},
		{"services.web.template.networks[0].ip: 10.1.0.9 is that of the service also on the network default", func(s *Stack) {
			fix(1, "10.1.0.9", "")(s)
			s.Services["also"] = ServiceSpec{Mode: Replicated, Template: Template{Image: "a", Networks: []Attachment{{Network: "default", IP: "10.1.0.9"}}}}
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

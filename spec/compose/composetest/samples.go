package composetest

import "strings"

// Pair is two files that differ in nothing but one honoured key.
type Pair struct{ A, B string }

// service puts fragments into a service with an image.
func service(a, b string) Pair {
	wrap := func(s string) string {
		return "services:\n  web:\n    image: nginx\n    " + strings.ReplaceAll(s, "\n", "\n    ") + "\n  other:\n    image: nginx\n"
	}
	return Pair{wrap(a), wrap(b)}
}

// network declares the network net, which a service uses.
func network(a, b string) Pair {
	wrap := func(s string) string {
		return "services:\n  web:\n    image: nginx\n    networks: [net]\nnetworks:\n  net:\n    " + strings.ReplaceAll(s, "\n", "\n    ") + "\n"
	}
	return Pair{wrap(a), wrap(b)}
}

// lan is what a macvlan network has to say of its addresses.
const lan = "ipam: {config: [{subnet: 10.1.0.0/24, ip_range: 10.1.0.64/26, gateway: 10.1.0.1}]}\n"

// volume declares the volume vol, which a service mounts.
func volume(a, b string) Pair {
	wrap := func(s string) string {
		return "services:\n  web:\n    image: nginx\n    volumes: [\"vol:/data\"]\nvolumes:\n  vol:\n    " + strings.ReplaceAll(s, "\n", "\n    ") + "\n"
	}
	return Pair{wrap(a), wrap(b)}
}

// config declares the config conf, which a service mounts.
func config(a, b string) Pair {
	wrap := func(s string) string {
		return "services:\n  web:\n    image: nginx\n    configs: [conf]\nconfigs:\n  conf:\n    " + s + "\n"
	}
	return Pair{wrap(a), wrap(b)}
}

// mountPair puts fragments into a long mount.
func mountPair(common, a, b string) Pair {
	return service("volumes:\n  - {"+common+a+"}", "volumes:\n  - {"+common+b+"}")
}

// rate puts a limit of 1 MiB per second on /dev/sda, and another one.
func rate(key, device, value string) Pair {
	return service("blkio_config: {"+key+": [{path: /dev/sda, rate: 1m}]}", "blkio_config: {"+key+": [{path: "+device+", rate: "+value+"}]}")
}

// withVolumes adds the declaration of a volume to both files.
func (p Pair) withVolumes() Pair {
	return Pair{p.A + "volumes:\n  vol:\n", p.B + "volumes:\n  vol:\n"}
}

func (p Pair) withNetworks() Pair {
	return Pair{p.A + "networks:\n  net:\n  net2:\n", p.B + "networks:\n  net:\n  net2:\n"}
}

// withSubnets declares a network with subnets of both families.
func (p Pair) withSubnets() Pair {
	const net = "networks:\n  net: {enable_ipv6: true, ipam: {config: [{subnet: 10.1.0.0/24}, {subnet: 'fd00::/64'}]}}\n"
	return Pair{p.A + net, p.B + net}
}

func (p Pair) withConfig() Pair {
	return Pair{p.A + "configs:\n  conf:\n    content: x\n  conf2:\n    content: y\n", p.B + "configs:\n  conf:\n    content: x\n  conf2:\n    content: y\n"}
}

// secret declares the secret key, which a service uses.
func secret(a, b string) Pair {
	wrap := func(s string) string {
		return "services:\n  web:\n    image: nginx\n    secrets: [key]\nsecrets:\n  key:\n    " + s + "\n"
	}
	return Pair{wrap(a), wrap(b)}
}

func (p Pair) withSecrets() Pair {
	const secrets = "secrets:\n  key: {environment: A_SET}\n  key2: {environment: B_SET}\n"
	return Pair{p.A + secrets, p.B + secrets}
}

// Auxiliary are files beside the stack file, for keys that name one.
var Auxiliary = map[string]string{
	"a.env": "A=1\n", "b.env": "A=2\n", "a.json": `{"defaultAction": "SCMP_ACT_ALLOW"}`, "b.json": `{"defaultAction": "SCMP_ACT_LOG"}`,
	"quoted.env": "A='b'\n", "a.label": "l=1\n", "b.label": "l=2\n",
	"a.yml": "services:\n  inc:\n    image: a:${A:-0}\n    env_file: [file.env]\n", "b.yml": "services:\n  inc:\n    image: b\n",
	"file.env": "F=top\n", "sub/file.env": "F=sub\n", "base.yml": "services:\n  x:\n    image: fromx\n  y:\n    image: fromy\n",
	"base2.yml": "services:\n  x:\n    image: fromx2\n", "a.conf": "a\n", "b.conf": "b\n",
}

// Samples has a pair for every honoured key; a key that holds others is shown
// by theirs.
var Samples = map[string]Pair{
	"services.*.x-wherry.pin":       service("x-wherry: {pin: host-1}", "x-wherry: {pin: host-2}"),
	"services.*.x-wherry.exclusive": service("x-wherry: {exclusive: true}", "x-wherry: {exclusive: false}"),
	"services.*.pull_policy":        {"services: {web: {image: nginx}}", "services: {web: {image: nginx, pull_policy: always}}"},
	"name":                          {"name: one\nservices: {web: {image: nginx}}", "name: two\nservices: {web: {image: nginx}}"},
	"include.[].path": {"include: [{path: a.yml}]\nservices: {web: {image: nginx}}",
		"include: [{path: b.yml}]\nservices: {web: {image: nginx}}"},
	"include.[].env_file": {"include: [{path: a.yml, env_file: a.env}]\nservices: {web: {image: nginx}}",
		"include: [{path: a.yml, env_file: b.env}]\nservices: {web: {image: nginx}}"},
	"include.[].project_directory": {"include: [{path: a.yml}]\nservices: {web: {image: nginx}}",
		"include: [{path: a.yml, project_directory: sub}]\nservices: {web: {image: nginx}}"},

	"networks.*.name":                         network("name: one", "name: two"),
	"networks.*.driver":                       network("driver: overlay", "driver: bridge"),
	"networks.*.driver_opts":                  network("driver: macvlan\n"+lan+"driver_opts: {parent: eth0}", "driver: macvlan\n"+lan+"driver_opts: {parent: eth0.7}"),
	"networks.*.internal":                     network("internal: true", "internal: false"),
	"networks.*.labels":                       network("labels: {a: b}", "labels: [a=c]"),
	"networks.*.external":                     network("external: true", "external: false"),
	"networks.*.external.name":                network("external: {name: one}", "external: {name: two}"),
	"networks.*.enable_ipv6":                  network("enable_ipv6: true", "enable_ipv6: false"),
	"networks.*.ipam.config.[].subnet":        network("ipam: {config: [{subnet: 10.1.0.0/24}]}", "ipam: {config: [{subnet: 10.2.0.0/24}]}"),
	"networks.*.ipam.config.[].ip_range":      network("ipam: {config: [{subnet: 10.1.0.0/24, ip_range: 10.1.0.64/26}]}", "ipam: {config: [{subnet: 10.1.0.0/24, ip_range: 10.1.0.128/26}]}"),
	"networks.*.ipam.config.[].gateway":       network("ipam: {config: [{subnet: 10.1.0.0/24, gateway: 10.1.0.1}]}", "ipam: {config: [{subnet: 10.1.0.0/24, gateway: 10.1.0.254}]}"),
	"networks.*.ipam.config.[].aux_addresses": network("ipam: {config: [{subnet: 10.1.0.0/24, aux_addresses: {a: 10.1.0.2}}]}", "ipam: {config: [{subnet: 10.1.0.0/24, aux_addresses: {a: 10.1.0.3}}]}"),
	"volumes.*.name":                          volume("name: one", "name: two"),
	"volumes.*.driver_opts":                   volume("driver_opts: {type: nfs, o: addr=1, device: ':/a'}", "driver_opts: {type: nfs, o: addr=1, device: ':/b'}"),
	"volumes.*.labels":                        volume("labels: {a: b}", "labels: {a: c}"),
	"volumes.*.external":                      volume("external: true", "external: false"),
	"volumes.*.external.name":                 volume("external: {name: one}", "external: {name: two}"),
	"configs.*.file":                          config("file: a.conf", "file: b.conf"),
	"configs.*.content":                       config("content: a", "content: b"),
	"configs.*.environment":                   config("environment: A_SET", "environment: B_SET"),
	"configs.*.external":                      config("external: true", "content: a"),
	"configs.*.external.name":                 config("external: {name: one}", "external: {name: two}"),
	"configs.*.name":                          config("content: a", "{content: a, name: other}"),
	"configs.*.labels":                        config("{content: a, labels: {l: a}}", "{content: a, labels: [l=b]}"),
	"configs.*.template_driver":               config("content: a", "{content: a, template_driver: golang}"),
	"secrets.*.file":                          secret("file: a.conf", "file: b.conf"),
	"secrets.*.environment":                   secret("environment: A_SET", "environment: B_SET"),
	"secrets.*.external":                      secret("external: true", "environment: A_SET"),
	"secrets.*.external.name":                 secret("external: {name: one}", "external: {name: two}"),
	"secrets.*.name":                          secret("environment: A_SET", "{environment: A_SET, name: other}"),
	"secrets.*.labels":                        secret("{environment: A_SET, labels: {l: a}}", "{environment: A_SET, labels: [l=b]}"),
	"secrets.*.template_driver":               secret("environment: A_SET", "{environment: A_SET, template_driver: golang}"),
	"services.*.secrets.[].source":            service("secrets: [{source: key, target: x}]", "secrets: [{source: key2, target: x}]").withSecrets(),
	"services.*.secrets.[].target":            service("secrets: [{source: key}]", "secrets: [{source: key, target: y}]").withSecrets(),
	"services.*.secrets.[].uid":               service("secrets: [{source: key, uid: '1'}]", "secrets: [{source: key, uid: '2'}]").withSecrets(),
	"services.*.secrets.[].gid":               service("secrets: [{source: key, gid: '1'}]", "secrets: [{source: key, gid: '2'}]").withSecrets(),
	"services.*.secrets.[].mode":              service("secrets: [{source: key, mode: 0440}]", "secrets: [{source: key, mode: '0400'}]").withSecrets(),
	"services.*.x-wherry.on_change":           service("secrets: [key]", "secrets: [key]\nx-wherry: {on_change: none}").withSecrets(),
	"services.*.secrets.[].x-wherry.on_change": service("secrets: [{source: key, x-wherry: {on_change: none}}]",
		"secrets: [{source: key, x-wherry: {on_change: 'signal:SIGHUP'}}]").withSecrets(),
	"services.*.secrets.[].x-wherry.env":       service("secrets: [key]", "secrets: [{source: key, x-wherry: {env: KEY}}]").withSecrets(),
	"services.*.configs.[].x-wherry.on_change": service("configs: [conf]", "configs: [{source: conf, x-wherry: {on_change: none}}]").withConfig(),
	"services.*.deploy.mode":                   service("deploy: {mode: replicated}", "deploy: {mode: global}"),
	"services.*.deploy.replicas":               service("deploy: {replicas: 2}", "deploy: {replicas: 3}"),
	"services.*.deploy.endpoint_mode":          service("deploy: {endpoint_mode: vip}", "deploy: {endpoint_mode: dnsrr}"),
	"services.*.deploy.labels":                 service("deploy: {labels: {a: b}}", "deploy: {labels: {a: c}}"),
	"services.*.scale":                         service("scale: 2", "scale: 3"),
	"services.*.image":                         {"services: {web: {image: a}}", "services: {web: {image: b}}"},
	"services.*.platform":                      service("platform: linux/amd64", "platform: linux/arm64"),
	"services.*.command":                       service("command: a b", "command: [a, b, c]"),
	"services.*.entrypoint":                    service("entrypoint: a b", "entrypoint: []"),
	"services.*.environment":                   service("environment: {A: b}", "environment: [A=c]"),
	"services.*.env_file":                      service("env_file: a.env", "env_file: [b.env]"),
	"services.*.env_file.[].path":              service("env_file: [{path: a.env}]", "env_file: [{path: b.env}]"),
	// a required file that is missing is refused
	"services.*.env_file.[].required":   service("env_file: [{path: none.env, required: false}]", "env_file: [{path: none.env, required: true}]"),
	"services.*.env_file.[].format":     service("env_file: [{path: quoted.env}]", "env_file: [{path: quoted.env, format: raw}]"),
	"services.*.user":                   service("user: a", "user: '1'"),
	"services.*.group_add":              service("group_add: [a]", "group_add: [1]"),
	"services.*.working_dir":            service("working_dir: /a", "working_dir: /b"),
	"services.*.hostname":               service("hostname: a", "hostname: b"),
	"services.*.domainname":             service("domainname: a", "domainname: b"),
	"services.*.tty":                    service("tty: true", "tty: false"),
	"services.*.stdin_open":             service("stdin_open: true", "stdin_open: false"),
	"services.*.init":                   service("init: true", "init: false"),
	"services.*.read_only":              service("read_only: true", "read_only: false"),
	"services.*.labels":                 service("labels: {a: b}", "labels: [a=c]"),
	"services.*.label_file":             service("label_file: a.label", "label_file: [b.label]"),
	"services.*.annotations":            service("annotations: {a: b}", "annotations: {a: c}"),
	"services.*.container_name":         service("container_name: aa", "container_name: bb"),
	"services.*.profiles":               service("profiles: [on]", "profiles: [off]"),
	"services.*.extends.service":        {"services: {web: {extends: {service: x, file: base.yml}}}", "services: {web: {extends: {service: y, file: base.yml}}}"},
	"services.*.extends.file":           {"services: {web: {extends: {service: x, file: base.yml}}}", "services: {web: {extends: {service: x, file: base2.yml}}}"},
	"services.*.depends_on.*":           service("depends_on: [other]", "tty: false"),
	"services.*.depends_on.*.condition": service("depends_on: {other: {condition: service_started}}", "depends_on: {other: {condition: service_healthy}}"),
	"services.*.depends_on.*.required":  service("depends_on: {other: {required: true, condition: service_started}}", "depends_on: {other: {required: false, condition: service_started}}"),
	"services.*.depends_on.*.restart":   service("depends_on: {other: {restart: true, condition: service_started}}", "depends_on: {other: {restart: false, condition: service_started}}"),
	"services.*.restart":                service("restart: always", "restart: on-failure:3"),
	"services.*.stop_signal":            service("stop_signal: SIGINT", "stop_signal: SIGQUIT"),
	"services.*.stop_grace_period":      service("stop_grace_period: 1s", "stop_grace_period: 1m"),

	"services.*.healthcheck.test":           service("healthcheck: {test: a}", "healthcheck: {test: [CMD, a]}"),
	"services.*.healthcheck.interval":       service("healthcheck: {test: a, interval: 1s}", "healthcheck: {test: a, interval: 2s}"),
	"services.*.healthcheck.timeout":        service("healthcheck: {test: a, timeout: 1s}", "healthcheck: {test: a, timeout: 2s}"),
	"services.*.healthcheck.retries":        service("healthcheck: {test: a, retries: 1}", "healthcheck: {test: a, retries: 2}"),
	"services.*.healthcheck.start_period":   service("healthcheck: {test: a, start_period: 1s}", "healthcheck: {test: a, start_period: 2s}"),
	"services.*.healthcheck.start_interval": service("healthcheck: {test: a, start_interval: 1s}", "healthcheck: {test: a, start_interval: 2s}"),
	"services.*.healthcheck.disable":        service("healthcheck: {disable: true}", "healthcheck: {disable: false}"),
	"services.*.logging.driver":             service("logging: {driver: none}", "logging: {driver: local}"),
	"services.*.logging.options":            service("logging: {options: {max-size: 1m, max-file: '2'}}", "logging: {options: {max-size: 2m, max-file: '2'}}"),

	"services.*.network_mode":                      service("network_mode: host", "network_mode: none"),
	"services.*.networks.*":                        service("networks: [net]", "networks: [net2]").withNetworks(),
	"services.*.networks.*.aliases":                service("networks: {net: {aliases: [a]}}", "networks: {net: {aliases: [b]}}").withNetworks(),
	"services.*.networks.*.priority":               service("networks: {net: {}, net2: {priority: 1}}", "networks: {net: {priority: 1}, net2: {}}").withNetworks(),
	"services.*.networks.*.gw_priority":            service("networks: {net: {}, net2: {gw_priority: 1}}", "networks: {net: {gw_priority: 1}, net2: {}}").withNetworks(),
	"services.*.mac_address":                       service("mac_address: 0a:00:00:00:00:01", "mac_address: 0a:00:00:00:00:02"),
	"services.*.networks.*.mac_address":            service("networks: {net: {mac_address: 0a:00:00:00:00:01}}", "networks: {net: {mac_address: 0a:00:00:00:00:02}}").withNetworks(),
	"services.*.networks.*.interface_name":         service("networks: {net: {interface_name: lan0}}", "networks: {net: {interface_name: lan1}}").withNetworks(),
	"services.*.networks.*.driver_opts":            service("networks: {net: {driver_opts: {com.docker.network.endpoint.ifname: lan0}}}", "networks: {net: {driver_opts: {com.docker.network.endpoint.ifname: lan1}}}").withNetworks(),
	"services.*.networks.*.use_service_name_alias": service("networks: {net: {use_service_name_alias: true}}", "networks: {net: {use_service_name_alias: false}}").withNetworks(),
	"services.*.networks.*.ipv4_address":           service("networks: {net: {ipv4_address: 10.1.0.8}}", "networks: {net: {ipv4_address: 10.1.0.9}}").withSubnets(),
	"services.*.networks.*.ipv6_address":           service("networks: {net: {ipv6_address: 'fd00::8'}}", "networks: {net: {ipv6_address: 'fd00::9'}}").withSubnets(),
	"services.*.links":                             service("links: ['other:a']", "links: ['other:b']"),
	"services.*.dns":                               service("dns: 1.1.1.1", "dns: [2.2.2.2]"),
	"services.*.dns_search":                        service("dns_search: a", "dns_search: [b]"),
	"services.*.dns_opt":                           service("dns_opt: [a]", "dns_opt: [b]"),
	"services.*.extra_hosts":                       service("extra_hosts: ['a:1.1.1.1']", "extra_hosts: {a: host-gateway}"),
	"services.*.ports":                             service("ports: ['80']", "ports: ['8080-8081:80-81/udp']"),
	"services.*.ports.[].target":                   service("ports: [{target: 1}]", "ports: [{target: 2}]"),
	"services.*.ports.[].published":                service("ports: [{target: 1, published: 1}]", "ports: [{target: 1, published: '2'}]"),
	"services.*.ports.[].protocol":                 service("ports: [{target: 1, protocol: tcp}]", "ports: [{target: 1, protocol: udp}]"),
	"services.*.ports.[].host_ip":                  service("ports: [{target: 1, host_ip: 127.0.0.1}]", "ports: [{target: 1, host_ip: 127.0.0.2}]"),
	"services.*.ports.[].mode":                     service("ports: [{target: 1, mode: host}]", "ports: [{target: 1, mode: ingress}]"),
	"services.*.ports.[].name":                     service("ports: [{target: 1, name: a}]", "ports: [{target: 1, name: b}]"),
	"services.*.configs.[].source":                 service("configs: [{source: conf, target: /x}]", "configs: [{source: conf2, target: /x}]").withConfig(),
	"services.*.configs.[].target":                 service("configs: [{source: conf, target: /x}]", "configs: [{source: conf, target: /y}]").withConfig(),
	"services.*.configs.[].uid":                    service("configs: [{source: conf, uid: '1'}]", "configs: [{source: conf, uid: '2'}]").withConfig(),
	"services.*.configs.[].gid":                    service("configs: [{source: conf, gid: '1'}]", "configs: [{source: conf, gid: '2'}]").withConfig(),
	"services.*.configs.[].mode":                   service("configs: [{source: conf, mode: 0440}]", "configs: [{source: conf, mode: '0400'}]").withConfig(),
	"services.*.tmpfs":                             service("tmpfs: /a", "tmpfs: ['/a:size=1m']"),
	"services.*.volumes.[].type":                   mountPair("target: /a, ", "type: tmpfs", "type: volume"),
	"services.*.volumes.[].source":                 mountPair("type: bind, target: /a, ", "source: /a", "source: /b"),
	"services.*.volumes.[].target":                 mountPair("type: bind, source: /a, ", "target: /a", "target: /b"),
	"services.*.volumes.[].read_only":              mountPair("type: bind, source: /a, target: /a, ", "read_only: true", "read_only: false"),
	"services.*.volumes.[].bind.propagation": mountPair("type: bind, source: /a, target: /a, ",
		"bind: {propagation: rshared}", "bind: {propagation: rslave}"),
	"services.*.volumes.[].bind.create_host_path": mountPair("type: bind, source: /a, target: /a, ",
		"bind: {create_host_path: true}", "bind: {create_host_path: false}"),
	"services.*.volumes.[].bind.recursive": mountPair("type: bind, source: /a, target: /a, ",
		"read_only: true, bind: {recursive: readonly}", "read_only: true, bind: {recursive: writable}"),
	"services.*.volumes.[].volume.nocopy": mountPair("type: volume, source: vol, target: /a, ",
		"volume: {nocopy: true}", "volume: {nocopy: false}").withVolumes(),
	"services.*.volumes.[].volume.subpath": mountPair("type: volume, source: vol, target: /a, ",
		"volume: {subpath: a}", "volume: {subpath: b}").withVolumes(),
	"services.*.volumes.[].tmpfs.size": mountPair("type: tmpfs, target: /a, ", "tmpfs: {size: 1m}", "tmpfs: {size: 2m}"),
	"services.*.volumes.[].tmpfs.mode": mountPair("type: tmpfs, target: /a, ", "tmpfs: {mode: 0700}", "tmpfs: {mode: 0755}"),

	"services.*.deploy.update_config.parallelism":         service("deploy: {update_config: {parallelism: 1}}", "deploy: {update_config: {parallelism: 0}}"),
	"services.*.deploy.update_config.delay":               service("deploy: {update_config: {delay: 1s}}", "deploy: {update_config: {delay: 2s}}"),
	"services.*.deploy.update_config.failure_action":      service("deploy: {update_config: {failure_action: pause}}", "deploy: {update_config: {failure_action: continue}}"),
	"services.*.deploy.update_config.monitor":             service("deploy: {update_config: {monitor: 10s}}", "deploy: {update_config: {monitor: 20s}}"),
	"services.*.deploy.update_config.max_failure_ratio":   service("deploy: {update_config: {max_failure_ratio: 0}}", "deploy: {update_config: {max_failure_ratio: 0.5}}"),
	"services.*.deploy.update_config.order":               service("deploy: {update_config: {order: start-first}}", "deploy: {update_config: {order: stop-first}}"),
	"services.*.deploy.rollback_config.parallelism":       service("deploy: {rollback_config: {parallelism: 1}}", "deploy: {rollback_config: {parallelism: 0}}"),
	"services.*.deploy.rollback_config.delay":             service("deploy: {rollback_config: {delay: 1s}}", "deploy: {rollback_config: {delay: 2s}}"),
	"services.*.deploy.rollback_config.failure_action":    service("deploy: {rollback_config: {failure_action: pause}}", "deploy: {rollback_config: {failure_action: continue}}"),
	"services.*.deploy.rollback_config.monitor":           service("deploy: {rollback_config: {monitor: 10s}}", "deploy: {rollback_config: {monitor: 20s}}"),
	"services.*.deploy.rollback_config.max_failure_ratio": service("deploy: {rollback_config: {max_failure_ratio: 0}}", "deploy: {rollback_config: {max_failure_ratio: 0.5}}"),
	"services.*.deploy.rollback_config.order":             service("deploy: {rollback_config: {order: start-first}}", "deploy: {rollback_config: {order: stop-first}}"),
	"services.*.x-wherry.max_concurrent":                  service("deploy: {mode: replicated-job}\nx-wherry: {max_concurrent: 1}", "deploy: {mode: replicated-job}"),
	"services.*.x-wherry.progress_deadline":               service("x-wherry: {progress_deadline: 10m}", "x-wherry: {progress_deadline: 1h}"),
	"services.*.x-wherry.canary.replicas":                 service("x-wherry: {canary: {replicas: 1}}", "x-wherry: {canary: {replicas: 2}}"),
	"services.*.x-wherry.canary.weight":                   service("x-wherry: {canary: {weight: 10%}}", "x-wherry: {canary: {weight: 20%}}"),
	"services.*.x-wherry.canary.promote":                  service("x-wherry: {canary: {replicas: 1, promote: auto}}", "x-wherry: {canary: {replicas: 1, promote: manual}}"),
	"services.*.x-wherry.priority":                        service("x-wherry: {priority: 1}", "x-wherry: {priority: -1}"),
	"services.*.x-wherry.preempt":                         service("x-wherry: {preempt: false}", "x-wherry: {preempt: true}"),
	"services.*.deploy.restart_policy.condition":          service("deploy: {restart_policy: {condition: any}}", "deploy: {restart_policy: {condition: none}}"),
	"services.*.deploy.restart_policy.delay":              service("deploy: {restart_policy: {delay: 1s}}", "deploy: {restart_policy: {delay: 2s}}"),
	"services.*.deploy.restart_policy.max_attempts":       service("deploy: {restart_policy: {max_attempts: 1}}", "deploy: {restart_policy: {max_attempts: 2}}"),
	"services.*.deploy.restart_policy.window":             service("deploy: {restart_policy: {window: 1s}}", "deploy: {restart_policy: {window: 2s}}"),
	"services.*.deploy.placement.constraints":             service("deploy: {placement: {constraints: [node.role==manager]}}", "deploy: {placement: {constraints: [node.role!=manager]}}"),
	"services.*.deploy.placement.preferences.[].spread":   service("deploy: {placement: {preferences: [{spread: node.labels.a}]}}", "deploy: {placement: {preferences: [{spread: node.labels.b}]}}"),
	"services.*.deploy.placement.max_replicas_per_node":   service("deploy: {placement: {max_replicas_per_node: 1}}", "deploy: {placement: {max_replicas_per_node: 2}}"),
	"services.*.deploy.resources.limits.cpus":             service("deploy: {resources: {limits: {cpus: 0.5}}}", "deploy: {resources: {limits: {cpus: '0.6'}}}"),
	"services.*.deploy.resources.limits.memory":           service("deploy: {resources: {limits: {memory: 50M}}}", "deploy: {resources: {limits: {memory: 60M}}}"),
	"services.*.deploy.resources.limits.pids":             service("deploy: {resources: {limits: {pids: 5}}}", "deploy: {resources: {limits: {pids: 6}}}"),
	"services.*.deploy.resources.reservations.cpus":       service("deploy: {resources: {reservations: {cpus: '0.5'}}}", "deploy: {resources: {reservations: {cpus: '0.6'}}}"),
	"services.*.deploy.resources.reservations.memory":     service("deploy: {resources: {reservations: {memory: 50M}}}", "deploy: {resources: {reservations: {memory: 60M}}}"),
	"services.*.cpus":                                     service("cpus: 0.5", "cpus: '0.6'"),
	"services.*.cpu_shares":                               service("cpu_shares: 10", "cpu_shares: 20"),
	"services.*.cpu_quota":                                service("cpu_quota: 10000", "cpu_quota: 20000"),
	"services.*.cpu_period":                               service("cpu_period: 10000", "cpu_period: 20000"),
	"services.*.cpuset":                                   service("cpuset: 0,1", "cpuset: 0-2"),
	"services.*.mem_limit":                                service("mem_limit: 50m", "mem_limit: 60m"),
	"services.*.memswap_limit":                            service("mem_limit: 50m\nmemswap_limit: 60m", "mem_limit: 50m\nmemswap_limit: -1"),
	"services.*.mem_reservation":                          service("mem_reservation: 50m", "mem_reservation: 60m"),
	"services.*.oom_score_adj":                            service("oom_score_adj: 1", "oom_score_adj: -1"),
	"services.*.pids_limit":                               service("pids_limit: 1", "pids_limit: -1"),
	"services.*.shm_size":                                 service("shm_size: 1m", "shm_size: 2m"),
	"services.*.ulimits.*":                                service("ulimits: {nofile: 1}", "ulimits: {nofile: 2}"),
	"services.*.ulimits.*.soft":                           service("ulimits: {nofile: {soft: 1, hard: 5}}", "ulimits: {nofile: {soft: 2, hard: 5}}"),
	"services.*.ulimits.*.hard":                           service("ulimits: {nofile: {soft: 1, hard: 5}}", "ulimits: {nofile: {soft: 1, hard: 6}}"),
	"services.*.sysctls":                                  service("sysctls: {net.core.somaxconn: 1}", "sysctls: [net.core.somaxconn=2]"),
	"services.*.cap_add":                                  service("cap_add: [NET_ADMIN]", "cap_add: [CAP_SYS_TIME]"),
	"services.*.cap_drop":                                 service("cap_drop: [ALL]", "cap_drop: [CHOWN]"),
	"services.*.privileged":                               service("privileged: true", "privileged: false"),
	"services.*.security_opt":                             service("security_opt: [seccomp=a.json]", "security_opt: [seccomp=b.json]"),
	"services.*.devices.[].source":                        service("devices: [/dev/a]", "devices: [{source: /dev/b, target: /dev/a, permissions: rwm}]"),
	"services.*.devices.[].target":                        service("devices: ['/dev/a:/dev/b']", "devices: [{source: /dev/a, target: /dev/c}]"),
	"services.*.devices.[].permissions": service("devices: ['/dev/a:/dev/b:r']",
		"devices: [{source: /dev/a, target: /dev/b, permissions: rw}]"),
	"services.*.ipc": service("ipc: host", "ipc: private"),
	"services.*.pid": service("pid: host", "tty: false"),

	"services.*.mem_swappiness":                         service("mem_swappiness: 0", "mem_swappiness: 60"),
	"services.*.oom_kill_disable":                       service("oom_kill_disable: true", "oom_kill_disable: false"),
	"services.*.cpu_rt_period":                          service("cpu_rt_period: 1000000", "cpu_rt_period: 500000"),
	"services.*.cpu_rt_runtime":                         service("cpu_rt_runtime: 950000", "cpu_rt_runtime: 400000"),
	"services.*.blkio_config.weight":                    service("blkio_config: {weight: 10}", "blkio_config: {weight: 20}"),
	"services.*.blkio_config.weight_device.[].path":     service("blkio_config: {weight_device: [{path: /dev/sda, weight: 10}]}", "blkio_config: {weight_device: [{path: /dev/sdb, weight: 10}]}"),
	"services.*.blkio_config.weight_device.[].weight":   service("blkio_config: {weight_device: [{path: /dev/sda, weight: 10}]}", "blkio_config: {weight_device: [{path: /dev/sda, weight: 20}]}"),
	"services.*.blkio_config.device_read_bps.[].path":   rate("device_read_bps", "/dev/sdb", "1m"),
	"services.*.blkio_config.device_read_bps.[].rate":   rate("device_read_bps", "/dev/sda", "2m"),
	"services.*.blkio_config.device_write_bps.[].path":  rate("device_write_bps", "/dev/sdb", "1m"),
	"services.*.blkio_config.device_write_bps.[].rate":  rate("device_write_bps", "/dev/sda", "2m"),
	"services.*.blkio_config.device_read_iops.[].path":  rate("device_read_iops", "/dev/sdb", "1m"),
	"services.*.blkio_config.device_read_iops.[].rate":  rate("device_read_iops", "/dev/sda", "20"),
	"services.*.blkio_config.device_write_iops.[].path": rate("device_write_iops", "/dev/sdb", "1m"),
	"services.*.blkio_config.device_write_iops.[].rate": rate("device_write_iops", "/dev/sda", "20"),
	"services.*.cgroup":                                 service("cgroup: host", "cgroup: private"),
	"services.*.device_cgroup_rules":                    service("device_cgroup_rules: ['c 1:3 r']", "device_cgroup_rules: ['c 1:* r']"),
	"services.*.uts":                                    service("uts: host", "tty: false"),
	"services.*.umask":                                  service("umask: 0", "umask: 0o027"),

	"services.*.post_start.[].command":                                                           service("post_start: [{command: [a]}]", "post_start: [{command: a b}]"),
	"services.*.post_start.[].user":                                                              service("post_start: [{command: a, user: a}]", "post_start: [{command: a, user: b}]"),
	"services.*.post_start.[].privileged":                                                        service("post_start: [{command: a, privileged: true}]", "post_start: [{command: a, privileged: false}]"),
	"services.*.post_start.[].working_dir":                                                       service("post_start: [{command: a, working_dir: /a}]", "post_start: [{command: a, working_dir: /b}]"),
	"services.*.post_start.[].environment":                                                       service("post_start: [{command: a, environment: {A: b}}]", "post_start: [{command: a, environment: [A=c]}]"),
	"services.*.pre_stop.[].command":                                                             service("pre_stop: [{command: [a]}]", "pre_stop: [{command: a b}]"),
	"services.*.pre_stop.[].user":                                                                service("pre_stop: [{command: a, user: a}]", "pre_stop: [{command: a, user: b}]"),
	"services.*.pre_stop.[].privileged":                                                          service("pre_stop: [{command: a, privileged: true}]", "pre_stop: [{command: a, privileged: false}]"),
	"services.*.pre_stop.[].working_dir":                                                         service("pre_stop: [{command: a, working_dir: /a}]", "pre_stop: [{command: a, working_dir: /b}]"),
	"services.*.pre_stop.[].environment":                                                         service("pre_stop: [{command: a, environment: {A: b}}]", "pre_stop: [{command: a, environment: [A=c]}]"),
	"services.*.volumes.[].image.subpath":                                                        mountPair("type: image, source: a, target: /a, ", "image: {subpath: b}", "image: {subpath: c/d}"),
	"services.*.gpus.[].driver":                                                                  service(`gpus: [{capabilities: [gpu], driver: nvidia}]`, `gpus: [{capabilities: [gpu], driver: amd}]`),
	"services.*.gpus.[].count":                                                                   service(`gpus: [{capabilities: [gpu], count: 1}]`, `gpus: [{capabilities: [gpu], count: all}]`),
	"services.*.gpus.[].device_ids":                                                              service(`gpus: [{capabilities: [gpu], device_ids: ["0"]}]`, `gpus: [{capabilities: [gpu], device_ids: ["1"]}]`),
	"services.*.gpus.[].capabilities":                                                            service(`gpus: [{capabilities: [gpu, compute]}]`, "tty: false"),
	"services.*.deploy.resources.reservations.devices.[].driver":                                 service(`deploy: {resources: {reservations: {devices: [{capabilities: [gpu], driver: nvidia}]}}}`, `deploy: {resources: {reservations: {devices: [{capabilities: [gpu], driver: amd}]}}}`),
	"services.*.deploy.resources.reservations.devices.[].count":                                  service(`deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: 1}]}}}`, `deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: all}]}}}`),
	"services.*.deploy.resources.reservations.devices.[].device_ids":                             service(`deploy: {resources: {reservations: {devices: [{capabilities: [gpu], device_ids: ["0"]}]}}}`, `deploy: {resources: {reservations: {devices: [{capabilities: [gpu], device_ids: ["1"]}]}}}`),
	"services.*.deploy.resources.reservations.devices.[].capabilities":                           service(`deploy: {resources: {reservations: {devices: [{capabilities: [gpu, compute]}]}}}`, "tty: false"),
	"services.*.runtime":                                                                         service("runtime: crun", "runtime: runsc"),
	"services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec.kind":  service("deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: a, value: 1}}]}}}", "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: b, value: 1}}]}}}"),
	"services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec.value": service("deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: a, value: 1}}]}}}", "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: a, value: 2}}]}}}"),
	"services.*.pre_start.[].command":                                                            service("pre_start: [{command: [a]}]", "pre_start: [{command: a b}]"),
	"services.*.pre_start.[].entrypoint":                                                         service("pre_start: [{command: a, entrypoint: [a]}]", "pre_start: [{command: a, entrypoint: [b]}]"),
	"services.*.pre_start.[].image":                                                              service("pre_start: [{command: a, image: a}]", "pre_start: [{command: a, image: b}]"),
	"services.*.pre_start.[].user":                                                               service("pre_start: [{command: a, user: a}]", "pre_start: [{command: a, user: b}]"),
	"services.*.pre_start.[].privileged":                                                         service("pre_start: [{command: a, privileged: true}]", "pre_start: [{command: a, privileged: false}]"),
	"services.*.pre_start.[].working_dir":                                                        service("pre_start: [{command: a, working_dir: /a}]", "pre_start: [{command: a, working_dir: /b}]"),
	"services.*.pre_start.[].environment":                                                        service("pre_start: [{command: a, environment: {A: b}}]", "pre_start: [{command: a, environment: [A=c]}]"),
	"services.*.pre_start.[].env_file":                                                           service("pre_start: [{command: a, env_file: a.env}]", "pre_start: [{command: a, env_file: b.env}]"),
	// without it, a second task is refused
	"services.*.pre_start.[].per_replica": service("scale: 2\npre_start: [{command: a, per_replica: true}]", "scale: 2\npre_start: [{command: a, per_replica: false}]"),
}

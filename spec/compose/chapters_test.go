package compose

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// chapters are what the Compose specification promises, sentence by sentence,
// as far as it shows in what a file becomes. Each has a small stack, a place
// in its JSON ("." is between keys, a number is an index) and what must be there;
// "" is nothing. The place "refused" is for the first refusal, of which a part
// is given, and "findings" for all findings. What needs a task to be seen is in
// tests/e2e.
var chapters = map[string][]struct{ sentence, stack, at, want string }{
	"start order": {
		{"the short syntax of depends_on waits until the dependency is started", "services: {a: {image: a, depends_on: [b]}, b: {image: b}}",
			"services.a.depends_on", `[{"service":"b","condition":"service_started"}]`},
		{"service_started is the same", "services: {a: {image: a, depends_on: {b: {condition: service_started}}}, b: {image: b}}",
			"services.a.depends_on", `[{"service":"b","condition":"service_started"}]`},
		{"service_healthy waits until the dependency is healthy", "services: {a: {image: a, depends_on: {b: {condition: service_healthy}}}, b: {image: b}}",
			"services.a.depends_on", `[{"service":"b","condition":"service_healthy"}]`},
		{"required: false only warns when the dependency is not there", "services: {a: {image: a, depends_on: {b: {condition: service_started, required: false}}}, b: {image: b, profiles: [x]}}",
			"services.a.depends_on", `[{"service":"b","condition":"service_started","optional":true}]`},
		{"a dependency that is not there is an error by default", "services: {a: {image: a, depends_on: [b]}, b: {image: b, profiles: [x]}}",
			"refused", `the service "b" is not active`},
		{"dependencies are no circle", "services: {a: {image: a, depends_on: [b]}, b: {image: b, depends_on: [a]}}", "refused", "depend"},
		{"links express an implicit dependency", "services: {a: {image: a, links: [b]}, b: {image: b}}",
			"services.a.depends_on", `[{"service":"b","condition":"service_started"}]`},
		{"network_mode: service:NAME does, too", "services: {a: {image: a, network_mode: 'service:b'}, b: {image: b}}",
			"services.a.template.network_mode", `"service:b"`},
	},
	"restart": {
		{"no does not restart the container under any circumstances", `services: {a: {image: a, restart: "no"}}`, "services.a.template.restart", `{"condition":"none"}`},
		{"no without quotes, a boolean for YAML, is the same", `services: {a: {image: a, restart: no}}`, "services.a.template.restart", `{"condition":"none"}`},
		{"always always restarts", "services: {a: {image: a, restart: always}}", "services.a.template.restart", `{"condition":"any"}`},
		{"unless-stopped restarts irrespective of the exit code", "services: {a: {image: a, restart: unless-stopped}}", "services.a.template.restart", `{"condition":"any"}`},
		{"and nothing is to be said of it", "services: {a: {image: a, restart: unless-stopped}}", "findings", ""},
		{"on-failure restarts if the exit code indicates an error", "services: {a: {image: a, restart: on-failure}}", "services.a.template.restart", `{"condition":"on-failure"}`},
		{"on-failure:3 limits the number of retries", "services: {a: {image: a, restart: 'on-failure:3'}}", "services.a.template.restart", `{"condition":"on-failure","max_attempts":3}`},
		{"if restart_policy is not set, restart is considered", "services: {a: {image: a, restart: 'on-failure:3', deploy: {replicas: 2}}}", "services.a.template.restart", `{"condition":"on-failure","max_attempts":3}`},
		{"restart_policy wins over restart", "services: {a: {image: a, restart: 'no', deploy: {restart_policy: {condition: on-failure}}}}", "services.a.template.restart", `{"condition":"on-failure"}`},
		{"the condition none never restarts", "services: {a: {image: a, deploy: {restart_policy: {condition: none}}}}", "services.a.template.restart", `{"condition":"none"}`},
		{"the condition any is the default", "services: {a: {image: a, deploy: {restart_policy: {delay: 1s}}}}", "services.a.template.restart.condition", `"any"`},
		{"delay, max_attempts and window", "services: {a: {image: a, deploy: {restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 120s}}}}",
			"services.a.template.restart", `{"condition":"on-failure","delay":"5s","max_attempts":3,"window":"2m0s"}`},
		{"a condition that does not exist", "services: {a: {image: a, deploy: {restart_policy: {condition: sometimes}}}}", "refused", `the condition "sometimes" does not exist`},
	},
	"healthcheck": {
		{"a string is CMD-SHELL followed by it", "services: {a: {image: a, healthcheck: {test: curl -f localhost}}}", "services.a.template.health.test", `["CMD-SHELL","curl -f localhost"]`},
		{"a list begins with CMD", "services: {a: {image: a, healthcheck: {test: [CMD, curl]}}}", "services.a.template.health.test", `["CMD","curl"]`},
		{"or with CMD-SHELL", "services: {a: {image: a, healthcheck: {test: [CMD-SHELL, curl]}}}", "services.a.template.health.test", `["CMD-SHELL","curl"]`},
		{"or with NONE, and with nothing else", "services: {a: {image: a, healthcheck: {test: [curl]}}}", "refused", "a list must start with CMD, CMD-SHELL or NONE"},
		{"NONE disables the check of the image", "services: {a: {image: a, healthcheck: {test: [NONE]}}}", "services.a.template.health.test", `["NONE"]`},
		{"disable does, too", "services: {a: {image: a, healthcheck: {disable: true}}}", "services.a.template.health.test", `["NONE"]`},
		{"intervals, timeouts and retries", "services: {a: {image: a, healthcheck: {test: a, interval: 1m30s, timeout: 10s, retries: 3, start_period: 40s, start_interval: 5s}}}",
			"services.a.template.health", `{"test":["CMD-SHELL","a"],"interval":"1m30s","timeout":"10s","retries":3,"start_period":"40s","start_interval":"5s"}`},
		{"a file may override the times of the image alone", "services: {a: {image: a, healthcheck: {interval: 5s}}}", "services.a.template.health", `{"test":null,"interval":"5s","timeout":"0s","retries":0}`},
	},
	"stop": {
		{"the grace is 10 seconds by default", "services: {a: {image: a}}", "services.a.template.stop_grace", `"10s"`},
		{"stop_grace_period sets it", "services: {a: {image: a, stop_grace_period: 1m30s}}", "services.a.template.stop_grace", `"1m30s"`},
		{"0 is none at all", "services: {a: {image: a, stop_grace_period: 0s}}", "services.a.template.stop_grace", `"0s"`},
		{"stop_signal sets the signal", "services: {a: {image: a, stop_signal: SIGUSR1}}", "services.a.template.stop_signal", `"SIGUSR1"`},
	},
	"deploy": {
		{"replicated is the default", "services: {a: {image: a}}", "services.a.mode", `"replicated"`},
		{"global is one container per node", "services: {a: {image: a, deploy: {mode: global}}}", "services.a.mode", `"global"`},
		{"replicas is the number of containers", "services: {a: {image: a, deploy: {replicas: 6}}}", "services.a.replicas", "6"},
		{"scale is the same", "services: {a: {image: a, scale: 6}}", "services.a.replicas", "6"},
		{"vip is the default", "services: {a: {image: a, deploy: {endpoint_mode: vip}}}", "services.a.endpoint_mode", ""},
		{"dnsrr sets up DNS entries", "services: {a: {image: a, deploy: {endpoint_mode: dnsrr}}}", "services.a.endpoint_mode", `"dnsrr"`},
		{"labels are set on the service", "services: {a: {image: a, deploy: {labels: {x: y}}}}", "services.a.labels", `{"x":"y"}`},
		{"and not on any containers", "services: {a: {image: a, deploy: {labels: {x: y}}}}", "services.a.template.labels", ""},
		{"constraints", "services: {a: {image: a, deploy: {placement: {constraints: [node.labels.disk==ssd]}}}}", "services.a.placement.constraints", `["node.labels.disk==ssd"]`},
		{"a constraint without an operator of Swarm is no constraint", "services: {a: {image: a, deploy: {placement: {constraints: [disktype=ssd]}}}}", "refused", "has no operator"},
		{"spread", "services: {a: {image: a, deploy: {placement: {preferences: [{spread: node.labels.zone}]}}}}", "services.a.placement.spread", `["node.labels.zone"]`},
		{"limits", "services: {a: {image: a, deploy: {resources: {limits: {cpus: '0.50', memory: 50M, pids: 1}}}}}", "services.a.template.resources", `{"nano_cpus":500000000,"memory":52428800,"pids":1}`},
		{"reservations", "services: {a: {image: a, deploy: {resources: {reservations: {cpus: '0.25', memory: 20M}}}}}", "services.a.template.resources", `{"reserve_cpus":250000000,"reserve_memory":20971520}`},
		{"count and device_ids exclude each other", "services: {a: {image: a, deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: 1, device_ids: [a]}]}}}}}", "refused", "count"},
		{"capabilities are required", "services: {a: {image: a, deploy: {resources: {reservations: {devices: [{count: 1}]}}}}}", "refused", "capabilities"},
		{"parallelism 0 is all at once", "services: {a: {image: a, deploy: {update_config: {parallelism: 0}}}}", "services.a.update.parallelism", "0"},
		{"six keys of update_config", "services: {a: {image: a, deploy: {update_config: {parallelism: 2, delay: 10s, failure_action: pause, monitor: 5s, max_failure_ratio: 0.5, order: stop-first}}}}",
			"services.a.update", `{"parallelism":2,"delay":"10s","failure_action":"pause","monitor":"5s","max_failure_ratio":0.5,"order":"stop-first"}`},
		{"a rollback is not rolled back", "services: {a: {image: a, deploy: {rollback_config: {failure_action: rollback}}}}", "refused", "rollback"},
	},
	"configs": {
		{"the short syntax mounts at /NAME", "services: {a: {image: a, configs: [c]}}\nconfigs: {c: {content: x}}", "services.a.template.mounts.0.target", `"/c"`},
		{"the mode is 0444 by default", "services: {a: {image: a, configs: [c]}}\nconfigs: {c: {content: x}}", "services.a.template.mounts.0.mode", "292"},
		{"the long syntax has target, uid, gid and mode", "services: {a: {image: a, configs: [{source: c, target: /t, uid: '103', gid: '104', mode: 0440}]}}\nconfigs: {c: {content: x}}",
			"services.a.template.mounts.0", `{"type":"config","source":"c","target":"/t","read_only":true,"mode":288,"uid":103,"gid":104}`},
		{"a config that is not defined is an error", "services: {a: {image: a, configs: [c]}}", "refused", `the config "c" is not declared`},
		{"declaring one grants no access", "services: {a: {image: a}}\nconfigs: {c: {content: x}}", "services.a.template.mounts", ""},
		{"external with another attribute is invalid", "services: {a: {image: a, configs: [c]}}\nconfigs: {c: {external: true, file: x}}", "refused", "external"},
		{"content is interpolated", "name: shop\nservices: {a: {image: a, configs: [{source: c}]}}\nconfigs: {c: {content: 'app=${COMPOSE_PROJECT_NAME}'}}", "content", "app=shop"},
		{"the name of an external one is used as is", "services: {a: {image: a, configs: [c]}}\nconfigs: {c: {external: true, name: other}}", "configs.c", `{"external":true,"name":"other"}`},
	},
	"secrets": {
		{"the short syntax mounts in /run/secrets", "services: {a: {image: a, secrets: [s]}}\nsecrets: {s: {file: key}}", "services.a.template.mounts.0.target", `"/run/secrets/s"`},
		{"a relative target is below /run/secrets", "services: {a: {image: a, secrets: [{source: s, target: t}]}}\nsecrets: {s: {file: key}}", "services.a.template.mounts.0.target", `"/run/secrets/t"`},
		{"the mode is 0444 by default", "services: {a: {image: a, secrets: [s]}}\nsecrets: {s: {file: key}}", "services.a.template.mounts.0.mode", "292"},
		{"a secret that is not defined is an error", "services: {a: {image: a, secrets: [s]}}", "refused", `the secret "s" is not declared`},
		{"declaring one grants no access", "services: {a: {image: a}}\nsecrets: {s: {file: key}}", "services.a.template.mounts", ""},
		{"a variable that is not set is an error", "services: {a: {image: a, secrets: [s]}}\nsecrets: {s: {environment: NOT_SET}}", "refused", "NOT_SET"},
		{"a file that is missing is an error", "services: {a: {image: a, secrets: [s]}}\nsecrets: {s: {file: missing}}", "refused", "missing"},
	},
	"networks": {
		{"services without networks are on the default one", "services: {a: {image: a}}", "services.a.template.networks", `[{"network":"default"}]`},
		{"which is equivalent to naming it", "services: {a: {image: a, networks: {default: {}}}}\nnetworks: {default: {}}", "services.a.template.networks", `[{"network":"default"}]`},
		{"it may be customized", "services: {a: {image: a}}\nnetworks: {default: {name: own}}", "networks.default.name", `"own"`},
		{"services with networks are on these alone", "services: {a: {image: a, networks: [x]}}\nnetworks: {x: {}}", "services.a.template.networks", `[{"network":"x"}]`},
		{"a driver that is not available is an error", "services: {a: {image: a, networks: [x]}}\nnetworks: {x: {driver: custom-1}}", "refused", `"custom-1"`},
		{"all other attributes of an external one are irrelevant", "services: {a: {image: a, networks: [x]}}\nnetworks: {x: {external: true, internal: true}}", "findings", "networks.x.internal: the network is external: who declares it says this"},
		{"internal is isolated", "services: {a: {image: a, networks: [x]}}\nnetworks: {x: {internal: true}}", "networks.x.internal", "true"},
		{"a name is used as is", "services: {a: {image: a, networks: [x]}}\nnetworks: {x: {name: my-app-net}}", "networks.x.name", `"my-app-net"`},
		{"aliases are names on that network", "services: {a: {image: a, networks: {x: {aliases: [n]}, y: {}}}}\nnetworks: {x: {}, y: {}}", "services.a.template.networks", `[{"network":"x","aliases":["n"]},{"network":"y"}]`},
		{"labels may be a list", "services: {a: {image: a, networks: [x]}}\nnetworks: {x: {labels: [a=b, c]}}", "networks.x.labels", `{"a":"b","c":""}`},
		{"a network that is not declared is an error", "services: {a: {image: a, networks: [x]}}", "refused", `the network "x" is not declared`},
		{"gw_priority chooses the network of the default route", "services: {a: {image: a, networks: {x: {}, y: {gw_priority: 1}}}}\nnetworks: {x: {}, y: {}}", "services.a.template.networks.0.network", `"y"`},
	},
	"volumes": {
		{"a name is a volume", "services: {a: {image: a, volumes: ['vol:/t']}}\nvolumes: {vol: }", "services.a.template.mounts", `[{"type":"volume","source":"vol","target":"/t"}]`},
		{"ro is read-only", "services: {a: {image: a, volumes: ['vol:/t:ro']}}\nvolumes: {vol: }", "services.a.template.mounts.0.read_only", "true"},
		{"an absolute path is a bind", "services: {a: {image: a, volumes: ['/s:/t']}}", "services.a.template.mounts", `[{"type":"bind","source":"/s","target":"/t"}]`},
		{"create_host_path: false is an error when it is missing", "services: {a: {image: a, volumes: [{type: bind, source: /s, target: /t, bind: {create_host_path: false}}]}}",
			"services.a.template.mounts.0.must_exist", "true"},
		{"nocopy", "services: {a: {image: a, volumes: [{type: volume, source: vol, target: /t, volume: {nocopy: true, subpath: sub}}]}}\nvolumes: {vol: }", "services.a.template.mounts.0",
			`{"type":"volume","source":"vol","target":"/t","no_copy":true,"subpath":"sub"}`},
		{"a target alone is an anonymous volume", "services: {a: {image: a, volumes: [/t]}}", "services.a.template.mounts", `[{"type":"volume","target":"/t"}]`},
		{"tmpfs with a size", "services: {a: {image: a, volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 01777}}]}}", "services.a.template.mounts.0", `{"type":"tmpfs","target":"/t","size":1048576,"mode":1023}`},
		{"a volume that is not declared is an error", "services: {a: {image: a, volumes: ['vol:/t']}}", "refused", `the volume "vol" is not declared`},
		{"a driver that is not available is an error", "services: {a: {image: a, volumes: ['vol:/t']}}\nvolumes: {vol: {driver: foobar}}", "refused", "volumes.vol.driver"},
		{"a name is used as is", "services: {a: {image: a, volumes: ['vol:/t']}}\nvolumes: {vol: {name: my-data}}", "volumes.vol.name", `"my-data"`},
		{"external is looked up", "services: {a: {image: a, volumes: ['vol:/t']}}\nvolumes: {vol: {external: true}}", "volumes.vol.external", "true"},
		{"external with another attribute is invalid", "services: {a: {image: a, volumes: ['vol:/t']}}\nvolumes: {vol: {external: true, labels: {a: b}}}", "refused", "external"},
	},
	"pre_start": {
		{"the image is the service's by default", "services: {a: {image: a, pre_start: [{command: x}]}}", "services.a.template.pre_start.0.image", `"docker.io/library/a:latest"`},
		{"the user is the service's by default", "services: {a: {image: a, user: me, pre_start: [{command: x}]}}", "services.a.template.pre_start.0.user", `"me"`},
		{"the environment is inherited and may be overridden", "services: {a: {image: a, environment: {A: a, B: b}, pre_start: [{command: x, environment: {B: c}}]}}", "services.a.template.pre_start.0.env", `{"A":"a","B":"c"}`},
		{"once for the service is not possible with two tasks", "services: {a: {image: a, scale: 2, pre_start: [{command: x}]}}", "refused", "per_replica: true"},
	},
	// traps are what files in the wild have and other tools get wrong.
	"traps": {
		{"a host IP is never widened", "services: {a: {image: a, ports: ['127.0.0.1:8080:80']}}", "services.a.ports", `[{"target":80,"published":8080,"protocol":"tcp","mode":"ingress","host_ip":"127.0.0.1"}]`},
		{"nor in the long form", "services: {a: {image: a, ports: [{target: 80, published: '8080', host_ip: 127.0.0.1}]}}", "services.a.ports.0.host_ip", `"127.0.0.1"`},
		{"a mode is octal", "services: {a: {image: a, configs: [{source: c, mode: 0440}]}}\nconfigs: {c: {content: x}}", "services.a.template.mounts.0.mode", "288"},
		{"also in quotes", "services: {a: {image: a, configs: [{source: c, mode: '0440'}]}}\nconfigs: {c: {content: x}}", "services.a.template.mounts.0.mode", "288"},
		{"and in the way of YAML 1.2", "services: {a: {image: a, configs: [{source: c, mode: 0o440}]}}\nconfigs: {c: {content: x}}", "services.a.template.mounts.0.mode", "288"},
		{"labels of containers are not those of the service", "services: {a: {image: a, labels: {x: container}, deploy: {labels: {x: service}}}}", "services.a.labels", `{"x":"service"}`},
		{"nor the other way round", "services: {a: {image: a, labels: {x: container}, deploy: {labels: {x: service}}}}", "services.a.template.labels", `{"x":"container"}`},
		{"cpus may be a number", "services: {a: {image: a, deploy: {resources: {limits: {cpus: 0.5}}}}}", "services.a.template.resources.nano_cpus", "500000000"},
		{"or an integer", "services: {a: {image: a, cpus: 2}}", "services.a.template.resources.nano_cpus", "2000000000"},
		{"booleans in environment are text", "services: {a: {image: a, environment: {A: true, B: False}}}", "services.a.template.env", `{"A":"true","B":"false"}`},
		{"in quotes they stay as they are written", "services: {a: {image: a, environment: {A: 'true', B: 'yes'}}}", "services.a.template.env", `{"A":"true","B":"yes"}`},
		{"in a list they are text anyway", "services: {a: {image: a, environment: [A=true, B=no]}}", "services.a.template.env", `{"A":"true","B":"no"}`},
		{"yes is text in YAML 1.2", "services: {a: {image: a, environment: {A: yes, B: on}}}", "services.a.template.env", `{"A":"yes","B":"on"}`},
		{"numbers are what YAML reads, as with Compose", "services: {a: {image: a, environment: {A: 1.10, B: 010, C: 1e3, D: 12345678901234567890}}}", "services.a.template.env", `{"A":"1.1","B":"8","C":"1000","D":"12345678901234567890"}`},
		{"which is said where it is another text", "services: {a: {image: a, environment: {A: 1.10, B: 110, C: '1.10'}}}", "findings", `services.a.environment.A: is read as "1.1", not as text; write it in quotes for "1.10"`},
		{"null takes the value of the client, and is left out without one", "services: {a: {image: a, environment: {A: , B: ''}}}", "services.a.template.env", `{"B":""}`},
		{"environment wins over env_file", "services: {a: {image: a, env_file: x.env, environment: {A: own}}}", "services.a.template.env", `{"A":"own","B":"file"}`},
		{"a service to build is refused before anything is changed", "services: {a: {build: .}}", "refused", "services.a.build"},
		{"files of version 2 are taken", "version: '2.4'\nservices: {a: {image: a, mem_limit: 64m}}", "services.a.template.resources.memory", "67108864"},
		{"a port of YAML 1.1 in base 60 is a port", "services: {a: {image: a, ports: [22:22]}}", "services.a.ports.0.published", "22"},
		{"a dollar may be escaped", "services: {a: {image: a, command: 'echo $$HOME'}}", "services.a.template.command", `["echo","$HOME"]`},
	},
}

// TestChapters: see chapters.
func TestChapters(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"key": "k", "x": "x", "x.env": "A=file\nB=file\n"} {
		writeFile(t, filepath.Join(dir, name), text)
	}
	for chapter, cases := range chapters {
		for _, tt := range cases {
			t.Run(chapter+"/"+tt.sentence, func(t *testing.T) {
				file := filepath.Join(dir, strings.NewReplacer(" ", "-", "/", "-").Replace(chapter)+".yml")
				writeFile(t, file, tt.stack)
				r, err := Load(t.Context(), Options{Files: []string{file}})
				if err != nil {
					t.Fatal(err)
				}
				if got := chapterShows(t, r, tt.at); tt.at == "refused" && (got == "" || !strings.Contains(got, tt.want)) || tt.at != "refused" && !alikeJSON(got, tt.want) {
					t.Errorf("%s\n%s is %s\nwant %s", tt.stack, tt.at, got, tt.want)
				}
			})
		}
	}
}

// alikeJSON compares values, or texts that are none.
func alikeJSON(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return a == b
	}
	return reflect.DeepEqual(x, y)
}

// chapterShows returns what a result has at a place; see chapters.
func chapterShows(t *testing.T, r Result, at string) string {
	t.Helper()
	switch at {
	case "refused":
		if err := r.Err(); err != nil {
			return err.Error()
		}
		return ""
	case "findings":
		var all []string
		for _, f := range r.Findings {
			all = append(all, f.Path+": "+f.Message)
		}
		return strings.Join(all, "\n")
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if at == "content" {
		for _, b := range r.Contents {
			if i := bytes.Index(b, []byte("app=")); i >= 0 {
				return string(b[i : i+8])
			}
		}
		return ""
	}
	b, err := json.Marshal(r.Stack)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range strings.Split(at, ".") {
		var list []json.RawMessage
		var fields map[string]json.RawMessage
		if json.Unmarshal(b, &list) == nil {
			b = nil
			if i := int(k[0] - '0'); i < len(list) {
				b = list[i]
			}
		} else if json.Unmarshal(b, &fields) == nil {
			b = fields[k]
		} else {
			return ""
		}
	}
	return string(b)
}

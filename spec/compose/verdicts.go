package compose

// row is the verdict on one key of the Compose specification.
type row struct {
	// path of the key: "*" stands for a name that the user chooses, "[]" for
	// the items of a list.
	path string
	// verdict is Refused, NoEffect, or empty: honoured.
	verdict Verdict
	// note says why, or what is particular; hint is the alternative to a
	// refused key.
	note, hint string
	// subtree: the row holds for all keys below as well.
	subtree bool
	// same are values that only state what holds anyway: with one of them the
	// key is accepted without a word, whatever the verdict.
	same []string
}

// Reasons and alternatives that several rows share.
const (
	notBuilt     = "not built yet"
	onlyWindows  = "works on Windows only; Wherry runs Linux containers"
	leaveOut     = "leave it out"
	useNamed     = "declare a named volume that both services mount"
	setInImage   = "do it in the image's entrypoint"
	useDeployRes = "use mem_limit, cpus or deploy.resources"
)

// topRows judge the top level of a file, and the resources besides services.
var topRows = []row{
	{path: "version", verdict: NoEffect, note: "is obsolete and ignored", hint: leaveOut},
	{path: "name", note: "the name of the stack, unless --name or COMPOSE_PROJECT_NAME is given"},
	{path: "include", note: "local files only; with their own env files and folders"},
	{path: "include.[].path"},
	{path: "include.[].env_file"},
	{path: "include.[].project_directory"},
	{path: "models", verdict: Refused, note: "models need Docker Model Runner", hint: "run the model server as a service", subtree: true},
	{path: "jobs", verdict: Refused, note: "jobs: " + notBuilt, hint: "write it as a service with deploy.mode: replicated-job", subtree: true},
	{path: "services"},
	{path: "services.*"},

	{path: "networks", note: "created when a service uses them, or all when the file has no service; \"default\" is the implicit one"},
	{path: "networks.*"},
	{path: "networks.*.name"},
	{path: "networks.*.driver", note: "overlay (the default), bridge, which is local to each host, or macvlan, which is the network of an interface of the hosts; none other yet"},
	{path: "networks.*.driver_opts", note: "parent of macvlan: eth0, or eth0.7 for a VLAN of it; com.docker.network.driver.mtu: tasks have no more, and less where the hosts carry less. Options that say what holds anyway are accepted, all others refused", subtree: true},
	{path: "networks.*.internal"},
	{path: "networks.*.labels", subtree: true},
	{path: "networks.*.external", note: "true: another stack declares it, or it was made by wherry network create; a service waits until it exists; host stands for network_mode: host"},
	{path: "networks.*.external.name"},
	{path: "networks.*.attachable", verdict: NoEffect, note: "only tasks of stacks attach to networks; they may always"},
	{path: "networks.*.enable_ipv4", verdict: Refused, note: "networks without IPv4: " + notBuilt, hint: leaveOut, same: []string{"true"}},
	{path: "networks.*.enable_ipv6", note: "true: tasks also have an address of a /64 that is chosen, or of ipam.config"},
	{path: "networks.*.ipam"},
	{path: "networks.*.ipam.driver", verdict: Refused, note: "drivers for addresses: " + notBuilt, hint: leaveOut, same: []string{"default"}},
	{path: "networks.*.ipam.options", verdict: Refused, note: "options for addresses: " + notBuilt, hint: leaveOut, subtree: true},
	{path: "networks.*.ipam.config", note: "one IPv4 subnet, and one IPv6 subnet with enable_ipv6. They are taken when no task is on the network; one that overlaps another network, or what a node reaches by other ways, is not"},
	{path: "networks.*.ipam.config.[].subnet"},
	{path: "networks.*.ipam.config.[].gateway", note: "the address of every node on the network; the first one of the subnet by default. With macvlan the router of the network, which has to be given"},
	{path: "networks.*.ipam.config.[].ip_range", note: "the part of the subnet that addresses are chosen from, but for fixed ones; has to be given with macvlan"},
	{path: "networks.*.ipam.config.[].aux_addresses", note: "are never chosen; the names do nothing", subtree: true},

	{path: "volumes", note: "created when a service uses them; never removed by apply or rm"},
	{path: "volumes.*"},
	{path: "volumes.*.name"},
	{path: "volumes.*.driver", verdict: Refused, note: "volume drivers besides local: " + notBuilt, hint: "leave it out, or use driver_opts of the local driver (type, o, device)", same: []string{"local", "default"}},
	{path: "volumes.*.driver_opts", note: "type, o and device of the local driver", subtree: true},
	{path: "volumes.*.labels", subtree: true},
	{path: "volumes.*.external", note: "true: the volume must exist"},
	{path: "volumes.*.external.name"},

	{path: "secrets", note: "sealed in the state, in memory on the nodes that use them, at most 500 KiB each: see secrets.md"},
	{path: "secrets.*"},
	{path: "secrets.*.file", note: "a single file; a change of it is a new version"},
	{path: "secrets.*.environment", note: "read from the environment of the client; must be set"},
	{path: "secrets.*.external", note: "true: the secret must have been made by wherry secret create; those of other stacks are not found"},
	{path: "secrets.*.external.name"},
	{path: "secrets.*.name", note: "the name that wherry secret shows, STACK_NAME by default; of an external one the name to look for"},
	{path: "secrets.*.labels", subtree: true},
	{path: "secrets.*.template_driver", note: "golang: a template that each node renders for its tasks, with the fields of Swarm"},
	{path: "secrets.*.driver", verdict: Refused, note: "stores outside of the cluster: " + notBuilt, hint: "fetch the value before applying and give it by environment:, or make it by wherry secret create"},
	{path: "secrets.*.driver_opts", verdict: Refused, note: "stores outside of the cluster: " + notBuilt, hint: leaveOut, subtree: true},

	{path: "configs", note: "files in memory on the nodes that use them, at most 1000 KiB each: see secrets.md"},
	{path: "configs.*"},
	{path: "configs.*.file", note: "a change of the file is a new version; a folder of at most 1 MiB travels as read-only content, without versions"},
	{path: "configs.*.content"},
	{path: "configs.*.environment", note: "read from the environment of the client; must be set"},
	{path: "configs.*.external", note: "true: the config must have been made by wherry config create; those of other stacks are not found"},
	{path: "configs.*.external.name"},
	{path: "configs.*.name", note: "the name that wherry config shows, STACK_NAME by default; of an external one the name to look for"},
	{path: "configs.*.labels", subtree: true},
	{path: "configs.*.template_driver", note: "golang: a template that each node renders for its tasks, with the fields of Swarm"},
}

// deployRows judge services.*.deploy.
var deployRows = []row{
	{path: "services.*.deploy"},
	{path: "services.*.deploy.mode", note: "replicated, global, replicated-job or global-job: see jobs.md"},
	{path: "services.*.deploy.replicas", note: "of a job, how many tasks complete; where absent, the number set by scaling stays"},
	{path: "services.*.deploy.endpoint_mode", note: "vip, the default: the name answers with one address per network, which leads to the ready tasks; dnsrr: with the addresses of these"},
	{path: "services.*.deploy.labels", note: "labels of the service", subtree: true},
	{path: "services.*.deploy.update_config", note: "how tasks are replaced: see updates.md"},
	{path: "services.*.deploy.update_config.parallelism", note: "how many tasks at a time; 1 by default, 0 is all at once"},
	{path: "services.*.deploy.update_config.delay", note: "between one batch and the next"},
	{path: "services.*.deploy.update_config.failure_action", note: "rollback (the default, of the whole stack), pause or continue"},
	{path: "services.*.deploy.update_config.monitor", note: "how long a new task must have been ready before it is trusted; by default 5s without a health check, no longer than that takes with one"},
	{path: "services.*.deploy.update_config.max_failure_ratio", note: "the share of the tasks that may fail, from 0 to 1"},
	{path: "services.*.deploy.update_config.order", note: "start-first, the default, or stop-first, which is the default for a service with a named volume, a port of its node, a fixed address or the network of its node"},
	{path: "services.*.deploy.rollback_config", note: "the same for a rollback"},
	{path: "services.*.deploy.rollback_config.parallelism"},
	{path: "services.*.deploy.rollback_config.delay"},
	{path: "services.*.deploy.rollback_config.failure_action", note: "pause (the default) or continue; a rollback is never rolled back"},
	{path: "services.*.deploy.rollback_config.monitor"},
	{path: "services.*.deploy.rollback_config.max_failure_ratio"},
	{path: "services.*.deploy.rollback_config.order"},
	{path: "services.*.deploy.restart_policy", note: "wins over restart"},
	{path: "services.*.deploy.restart_policy.condition"},
	{path: "services.*.deploy.restart_policy.delay", note: "the base of the back-off; without it 0, 1, 2, 4 … 300 s"},
	{path: "services.*.deploy.restart_policy.max_attempts"},
	{path: "services.*.deploy.restart_policy.window", note: "an attempt that runs longer counts as a success; one minute by default"},
	{path: "services.*.deploy.placement"},
	{path: "services.*.deploy.placement.constraints", note: "node.id, node.hostname, node.role, node.ip, node.platform.os, node.platform.arch, node.labels.NAME with == or !="},
	{path: "services.*.deploy.placement.preferences"},
	{path: "services.*.deploy.placement.preferences.[].spread"},
	{path: "services.*.deploy.placement.max_replicas_per_node"},
	{path: "services.*.deploy.resources"},
	{path: "services.*.deploy.resources.limits"},
	{path: "services.*.deploy.resources.limits.cpus"},
	{path: "services.*.deploy.resources.limits.memory"},
	{path: "services.*.deploy.resources.limits.pids"},
	{path: "services.*.deploy.resources.reservations", note: "counted in placement"},
	{path: "services.*.deploy.resources.reservations.cpus"},
	{path: "services.*.deploy.resources.reservations.memory"},
	{path: "services.*.deploy.resources.reservations.generic_resources", note: "counted in placement against labels of nodes: wherry node label NODE resource.KIND=NUMBER"},
	{path: "services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec"},
	{path: "services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec.kind"},
	{path: "services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec.value"},
	{path: "services.*.deploy.resources.reservations.devices", note: "by CDI: what describes a device on the node says what it takes; a node without the devices rejects the task"},
	{path: "services.*.deploy.resources.reservations.devices.[].capabilities", note: "gpu; compute, utility and the like say nothing more"},
	{path: "services.*.deploy.resources.reservations.devices.[].driver", note: "nvidia, amd, or cdi with full names as device_ids; without one the only vendor that the node has GPUs of"},
	{path: "services.*.deploy.resources.reservations.devices.[].count", note: "the first ones of the node, or all; tasks share them, and are not placed by them: use placement.constraints"},
	{path: "services.*.deploy.resources.reservations.devices.[].device_ids"},
	{path: "services.*.deploy.resources.reservations.devices.[].options", verdict: Refused, note: "the devices are described on the node, which knows no options", hint: leaveOut, subtree: true},
}

// ownRows judge what Compose has no key for.
var ownRows = []row{
	{path: "services.*.x-wherry", note: "what Compose has no key for"},
	{path: "services.*.x-wherry.on_change", note: "what a new version of a secret or config of the service does: restart (the default) replaces its tasks, as any other change; signal:SIGNAME changes the file in running tasks and then signals their first process; none changes the file"},
	{path: "services.*.secrets.[].x-wherry"},
	{path: "services.*.secrets.[].x-wherry.on_change", note: "for this secret alone"},
	{path: "services.*.secrets.[].x-wherry.env", note: "gives the secret as this environment variable, and without target as no file; a line end at its end is left out"},
	{path: "services.*.configs.[].x-wherry"},
	{path: "services.*.configs.[].x-wherry.on_change", note: "for this config alone"},
	{path: "services.*.x-wherry.exclusive", note: "true: no two tasks of one place ever run at the same time. A task runs while its node holds a lease of 15 s from the managers, is ended when none answers, and is replaced 20 s after its node was lost; an update stops the old task before it starts the new one"},
	{path: "services.*.x-wherry.pin", note: "the name of a node: the service is placed there only, and its relative paths are used there where they lie on the client, whatever their size; updates are stop-first where it writes to one"},
	{path: "services.*.x-wherry.priority", note: "from -1000 to 1000, 0 by default: tasks of services with a higher one get their nodes first. It ends none by itself"},
	{path: "services.*.x-wherry.preempt", note: "true: where no node has room for a task, tasks of services with a lower priority end to make some, as few as will do"},
	{path: "services.*.x-wherry.max_concurrent", note: "how many tasks of a job are there at the same time; all by default. Compose has no key for it"},
	{path: "services.*.x-wherry.progress_deadline", note: "how long an update may get no further before it has failed; 10m by default. The time that an image takes to be pulled counts"},
	{path: "services.*.x-wherry.canary", note: "an update tries the new revision on a part of the tasks first: see updates.md"},
	{path: "services.*.x-wherry.canary.replicas", note: "how many tasks that are, but never all; this or weight"},
	{path: "services.*.x-wherry.canary.weight", note: "which share of the tasks that is, such as 10%, rounded up, but never all"},
	{path: "services.*.x-wherry.canary.promote", note: "auto (the default): the update goes on by itself when they have been well for monitor; manual: it waits for wherry service promote"},
}

// resourceRows judge the limits and the isolation of services.
var resourceRows = []row{
	{path: "services.*.cpus"},
	{path: "services.*.cpu_shares"},
	{path: "services.*.cpu_quota"},
	{path: "services.*.cpu_period"},
	{path: "services.*.cpuset"},
	{path: "services.*.cpu_rt_period", note: "microseconds; nodes with cgroup v1 only, others reject the task"},
	{path: "services.*.cpu_rt_runtime", note: "microseconds; nodes with cgroup v1 only, others reject the task"},
	{path: "services.*.cpu_count", verdict: Refused, note: onlyWindows, hint: "use cpus"},
	{path: "services.*.cpu_percent", verdict: Refused, note: onlyWindows, hint: "use cpus"},
	{path: "services.*.mem_limit"},
	{path: "services.*.memswap_limit"},
	{path: "services.*.mem_reservation", note: "counted in placement"},
	{path: "services.*.mem_swappiness", note: "0 to 100; nodes with cgroup v1 only, others reject the task"},
	{path: "services.*.oom_kill_disable", note: "nodes with cgroup v1 only, others reject the task"},
	{path: "services.*.oom_score_adj"},
	{path: "services.*.pids_limit"},
	{path: "services.*.shm_size"},
	{path: "services.*.ulimits"},
	{path: "services.*.ulimits.*"},
	{path: "services.*.ulimits.*.soft"},
	{path: "services.*.ulimits.*.hard"},
	{path: "services.*.blkio_config", note: "a node without a device that is named here rejects the task"},
	{path: "services.*.blkio_config.weight", note: "10 to 1000; needs an I/O scheduler that weighs control groups, such as bfq"},
	{path: "services.*.blkio_config.weight_device"},
	{path: "services.*.blkio_config.weight_device.[].path"},
	{path: "services.*.blkio_config.weight_device.[].weight"},
	{path: "services.*.blkio_config.device_read_bps"},
	{path: "services.*.blkio_config.device_read_bps.[].path"},
	{path: "services.*.blkio_config.device_read_bps.[].rate"},
	{path: "services.*.blkio_config.device_write_bps"},
	{path: "services.*.blkio_config.device_write_bps.[].path"},
	{path: "services.*.blkio_config.device_write_bps.[].rate"},
	{path: "services.*.blkio_config.device_read_iops"},
	{path: "services.*.blkio_config.device_read_iops.[].path"},
	{path: "services.*.blkio_config.device_read_iops.[].rate"},
	{path: "services.*.blkio_config.device_write_iops"},
	{path: "services.*.blkio_config.device_write_iops.[].path"},
	{path: "services.*.blkio_config.device_write_iops.[].rate"},
	{path: "services.*.storage_opt", verdict: Refused, note: "the file systems of containers have no quotas", hint: "make the file system read_only, and write to a tmpfs with a size"},
	{path: "services.*.sysctls", subtree: true},
	{path: "services.*.cap_add"},
	{path: "services.*.cap_drop"},
	{path: "services.*.privileged"},
	{path: "services.*.security_opt", note: "no-new-privileges; seccomp: unconfined, or the file of a profile, which travels with the stack; apparmor: unconfined, or a profile that the node has, else it rejects the task; systempaths=unconfined; label=disable, as containers get no SELinux labels"},
	{path: "services.*.credential_spec", verdict: Refused, note: onlyWindows, hint: leaveOut, subtree: true},
	{path: "services.*.isolation", verdict: Refused, note: onlyWindows, hint: leaveOut, same: []string{"default"}},
	{path: "services.*.cgroup", note: "host or private; by default private on nodes with cgroup v2 unless privileged, else host"},
	{path: "services.*.cgroup_parent", verdict: Refused, note: "all tasks of a node are in one control group of Wherry, by which they are found again", hint: "set the limits of the service by deploy.resources"},
	{path: "services.*.device_cgroup_rules", note: "beside the usual rules; no device nodes are made for them"},
	{path: "services.*.devices", note: "device nodes of the host, with targets and permissions, or names of CDI such as vendor.com/class=name"},
	{path: "services.*.devices.[].source"},
	{path: "services.*.devices.[].target"},
	{path: "services.*.devices.[].permissions"},
	{path: "services.*.gpus", note: "as deploy.resources.reservations.devices with the capability gpu"},
	{path: "services.*.gpus.[].capabilities", note: "gpu; compute, utility and the like say nothing more"},
	{path: "services.*.gpus.[].driver", note: "nvidia, amd, or cdi with full names as device_ids; without one the only vendor that the node has GPUs of"},
	{path: "services.*.gpus.[].count", note: "the first ones of the node, or all; tasks share them, and are not placed by them: use placement.constraints"},
	{path: "services.*.gpus.[].device_ids"},
	{path: "services.*.gpus.[].options", verdict: Refused, note: "the devices are described on the node, which knows no options", hint: leaveOut, subtree: true},
	{path: "services.*.runtime", note: "an OCI runtime that the node has, else it rejects the task: crun, krun, nvidia, runc, runsc, sysbox-runc, youki"},
	{path: "services.*.userns_mode", verdict: Refused, note: "containers are in the user namespace of the host", hint: "run as another user by user:", same: []string{"host"}},
	{path: "services.*.ipc", note: "host, and none: no /dev/shm; private and shareable are the default"},
	{path: "services.*.pid", note: "host only"},
	{path: "services.*.uts", note: "host only"},
	{path: "services.*.umask", note: "of the first process and what it starts; not of health checks, hooks and wherry exec"},
	{path: "services.*.use_api_socket", verdict: Refused, note: "there is no Docker API on a node", hint: leaveOut, same: []string{"false"}},
}

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// Each function here judges one thing that `wherry doctor` has looked at. They
// only decide; what they decide on is found out by their callers.

func well(name, where, format string, args ...any) api.Check {
	return api.Check{Name: name, Status: api.CheckOK, Where: where, What: fmt.Sprintf(format, args...)}
}

func unwell(status string, c api.Check, why string, do ...string) api.Check {
	c.Status, c.Why, c.Do = status, why, do
	return c
}

func failing(c api.Check, why string, do ...string) api.Check {
	return unwell(api.CheckFail, c, why, do...)
}
func doubtful(c api.Check, why string, do ...string) api.Check {
	return unwell(api.CheckWarn, c, why, do...)
}

// judgeFeature judges something that networks need of the kernel.
func judgeFeature(kernel, name string, err error) api.Check {
	c := well("kernel", name, "there")
	if err == nil {
		return c
	}
	c.What = err.Error()
	return failing(c, "networks are made of it", fmt.Sprintf("Use a newer kernel than %s, with all modules of your distribution.", kernel))
}

// neededControllers limit CPU, memory and processes, and stop a whole
// container at once.
var neededControllers = map[bool][]string{
	true:  {"cpu", "memory", "pids"},
	false: {"cpu", "memory", "pids", "devices", "freezer"},
}

// judgeCgroups judges the controllers that are there; v2 says that there is one
// hierarchy for all of them.
func judgeCgroups(v2 bool, have []string) api.Check {
	version := map[bool]string{true: "v2", false: "v1"}[v2]
	c := well("cgroups", version, "%s", strings.Join(have, " "))
	var missing []string
	for _, n := range neededControllers[v2] {
		if !slices.Contains(have, n) {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return c
	}
	c.What = "missing: " + strings.Join(missing, " ")
	return failing(c, "limits of CPU, memory and processes rest on them", "Switch them on at the kernel's command line, such as cgroup_enable=memory, and boot.")
}

// leastRunc is what is known to work; older ones lack parts of the OCI runtime
// specification that are used.
var leastRunc = [2]int{1, 1}

// judgeRunc judges the OCI runtime by what it says of its version.
func judgeRunc(path, version string, err error) api.Check {
	c := well("runtime", path, "%s", version)
	const install = "apt-get install runc"
	switch {
	case path == "":
		c.Where, c.What = "runc, crun", "neither is installed"
		return failing(c, "it makes the containers", install)
	case err != nil:
		c.What = fmt.Sprintf("it does not say its version: %v", err)
		return failing(c, "it makes the containers", install)
	}
	name, rest, _ := strings.Cut(version, " ")
	numbers := strings.SplitN(strings.TrimPrefix(rest, "version "), ".", 3)
	if name != "runc" || len(numbers) < 2 {
		return c
	}
	major, err1 := strconv.Atoi(numbers[0])
	minor, err2 := strconv.Atoi(numbers[1])
	if err1 == nil && err2 == nil && slices.Compare([]int{major, minor}, leastRunc[:]) < 0 {
		return doubtful(c, fmt.Sprintf("versions before %d.%d lack parts of what is used, and fixes of holes", leastRunc[0], leastRunc[1]), install)
	}
	return c
}

// The least that a data folder should have left, and what it cannot do with.
const (
	littleSpace, noSpace   = 1 << 30, 128 << 20
	littleInodes, noInodes = 10_000, 500
)

// judgeSpace judges what is left of a file system, in bytes.
func judgeSpace(dir string, free, total uint64) api.Check {
	c := well("space", dir, "%s of %s are free", bytesText(int64(free)), bytesText(int64(total)))
	const why = "without space no state is written, no image pulled and no log kept"
	do := []string{"Remove images that nobody uses (wherry image ls, wherry image rm), or make the file system larger."}
	switch {
	case free < noSpace:
		return failing(c, why, do...)
	case free < littleSpace:
		return doubtful(c, why, do...)
	}
	return c
}

// judgeInodes judges how many more files fit; total 0 is a file system that
// does not count them.
func judgeInodes(dir string, free, total uint64) api.Check {
	c := well("inodes", dir, "%d of %d are free", free, total)
	const why = "images are many small files"
	const do = "Remove images that nobody uses, or make the file system anew with more inodes."
	switch {
	case total == 0:
		c.What = "not limited"
	case free < noInodes:
		return failing(c, why, do)
	case free < littleInodes:
		return doubtful(c, why, do)
	}
	return c
}

// judgeFileSystem judges what the data folder is on, by its name and by an
// attempt to mount an overlay on it.
func judgeFileSystem(dir, kind string, overlay error) api.Check {
	c := well("filesystem", dir, "%s", kind)
	switch {
	case slices.Contains([]string{"tmpfs", "ramfs"}, kind):
		return failing(c, "it is empty after a boot, and a manager that has forgotten its votes can lose writes of others", "Give --data-dir a folder on a disk.")
	case slices.Contains([]string{"nfs", "cifs", "smb2", "9p"}, kind):
		return failing(c, "files of other hosts give no promise of what is on disk, and images cannot be mounted from there", "Give --data-dir a folder on a disk of this host.")
	case overlay != nil:
		c.What = fmt.Sprintf("%s: no overlay can be mounted on it: %v", kind, overlay)
		return failing(c, "the file systems of containers are such mounts", "Give --data-dir a folder on ext4, or on XFS made with ftype=1.")
	}
	return c
}

// How long the disk may take to say that a record is written: Raft waits for it
// at every write, and after the second figure others take over.
const slowDisk, hangingDisk = 50 * time.Millisecond, time.Second

// judgeDisk judges the times that writing a record to disk took, in turn.
func judgeDisk(dir string, took []time.Duration, err error) api.Check {
	c := well("disk", dir, "")
	if err != nil {
		c.What = err.Error()
		return failing(c, "the state is written there", "Look at the kernel's log (dmesg) for errors of the disk.")
	}
	sorted := slices.Sorted(slices.Values(took))
	middle, last := sorted[len(sorted)/2], sorted[len(sorted)-1]
	c.What = fmt.Sprintf("a record is on disk after %s, at most %s", middle.Round(10*time.Microsecond), last.Round(10*time.Microsecond))
	const why = "every write of a manager waits for it, and a leader whose disk hangs gives up"
	const do = "Give --data-dir a faster disk, or one that others do not use."
	switch {
	case last > hangingDisk:
		return failing(c, why, do)
	case middle > slowDisk:
		return doubtful(c, why, do)
	}
	return c
}

// judgeSynchronised judges whether something keeps the clock right.
func judgeSynchronised(synchronised bool, err error) api.Check {
	c := well("clock", "kernel", "kept right by NTP")
	switch {
	case err != nil:
		c.What = fmt.Sprintf("not known: %v", err)
	case !synchronised:
		c.What = "nothing keeps it right, as far as the kernel knows"
		return doubtful(c, "certificates, tokens and the times in logs go by it", "apt-get install chrony")
	}
	return c
}

// How far clocks may differ: as `wherry cluster status` has it, and what stops
// a host from joining.
const badSkew, hopelessSkew = time.Second, time.Hour

// judgeSkew judges by how much the clock of a manager is ahead of this one's.
func judgeSkew(manager string, skew time.Duration) api.Check {
	c := well("clock", manager, "differs by %s", skew.Abs().Round(time.Millisecond))
	if skew.Abs() <= badSkew {
		return c
	}
	word := "behind"
	if skew < 0 {
		word = "ahead"
	}
	c.What = fmt.Sprintf("this clock is %s by %s", word, skew.Abs().Round(100*time.Millisecond))
	const why = "certificates, tokens and the times in logs go by it"
	const do = "Set the clock that is wrong, and have it kept by NTP: apt-get install chrony"
	if skew.Abs() > hopelessSkew {
		return failing(c, why, do)
	}
	return doubtful(c, why, do)
}

// portState is what was found at a port of this host.
type portState struct {
	proto string
	port  uint16
	held  bool
	// by names the process; empty where none can be seen.
	by string
	// own: this daemon has it, or a tunnel of it.
	own bool
	// tunnels: it is the port of networks between hosts, which the kernel holds
	// while there are any.
	tunnels bool
}

// judgePort judges a port that the node needs. running says that its daemon
// runs.
func judgePort(p portState, running bool) api.Check {
	c := well("port", fmt.Sprintf("%d/%s", p.port, p.proto), "free")
	switch {
	case p.own:
		c.What = "held by this node"
	case p.held:
		c.What = "held by " + cmp.Or(p.by, "the kernel, or a process that cannot be seen from here")
		do := "Stop what holds it, or take another port with wherry daemon --advertise IP:PORT."
		if p.tunnels {
			do = "Remove what holds it: a process, or another VXLAN device (ip -d link show type vxlan)."
		}
		return failing(c, "nodes reach each other by it", do)
	case running && !p.tunnels:
		c.What = "nobody holds it"
		return failing(c, "nodes reach each other by it", "Start the daemon again.")
	}
	return c
}

// judgePublished judges a port of a service that is not served.
func judgePublished(where, owner, problem string) api.Check {
	c := well("published", where, "service %s is not served: %s", owner, problem)
	return failing(c, "who connects to it reaches somebody else, or nobody", "Stop what holds the port, or publish another one.")
}

// judgeFirewall judges a chain of somebody else that drops what nodes need; now
// says that it is needed already.
func judgeFirewall(chain string, drops []string, now bool, add []string) api.Check {
	c := well("firewall", chain, "drops %s", strings.Join(drops, ", "))
	why := "no accept of ours overrules it"
	if now {
		return failing(c, why, add...)
	}
	return doubtful(c, why+"; nothing needs it yet", add...)
}

// judgeResolver judges a name server of the host. Without any, nodes still
// reach each other, and images may come from a file.
func judgeResolver(server string, took time.Duration, err error) api.Check {
	c := well("names", server, "answers after %s", took.Round(time.Millisecond))
	if err == nil {
		return c
	}
	c.What = fmt.Sprintf("does not answer: %v", err)
	return doubtful(c, "registries, and what containers call outside, are looked up there", "Put name servers into /etc/resolv.conf that answer from this host.")
}

// judgeForwarding judges whether the host passes packets on. needed says that
// it has networks, and v6 that one of them has IPv6.
func judgeForwarding(setting, value string, running, needed bool) api.Check {
	c := well("forwarding", setting, "%s", value)
	switch {
	case value == "1":
		c.What = "on"
	case needed && running:
		c.What = "off"
		return failing(c, "tasks reach nothing outside of their host", "Find out who switches it off again, or cannot be told: sysctl -w "+setting+"=1", "Look into /etc/sysctl.d.")
	default:
		c.What = "off; it is switched on with the first network"
	}
	return c
}

// judgeIPv6 judges whether the host has IPv6. needed says that a network of
// this host has it, or that others reach it so.
func judgeIPv6(there, disabled, needed bool) api.Check {
	c := well("ipv6", "kernel", "there")
	switch {
	case !there:
		c.What = "the kernel has none"
	case disabled:
		c.What = "switched off"
	default:
		return c
	}
	if !needed {
		return c
	}
	return failing(c, "a network of this host has IPv6", "sysctl -w net.ipv6.conf.all.disable_ipv6=0, and no ipv6.disable=1 on the kernel's command line")
}

// judgeBridgeFilter notes whether what crosses a bridge passes the chains of
// IP; either is right.
func judgeBridgeFilter(setting, value string) api.Check {
	c := well("bridge-nf", setting, "off: what tasks of a network say to each other passes no firewall of the host")
	switch value {
	case "":
		c.What = "not there: what tasks of a network say to each other passes no firewall of the host"
	case "1":
		c.What = "on: what tasks of a network say to each other passes the host's firewalls"
	}
	return c
}

// judgeCertificate judges how long the node's certificate still holds. It is
// renewed at the latest at four fifths of its life.
func judgeCertificate(now, from, until time.Time) api.Check {
	left := until.Sub(now)
	c := well("certificate", "node", "holds for %s", short(left))
	const why = "without it the node is no member"
	switch {
	case left <= 0:
		c.What = "it ended " + short(-left) + " ago"
		return failing(c, why, "Let the node reach a manager: it renews by itself for 30 days more. After that, let it join again with an empty data folder.")
	case left < until.Sub(from)/10:
		return doubtful(c, "it is renewed at four fifths of its life, and was not", "Let the node reach a manager; look at the daemon's log.")
	}
	return c
}

// managerAnswer is what a manager has said of itself, or why it has not.
type managerAnswer struct {
	peer   api.Peer
	status api.MemberStatus
	skew   time.Duration
	err    error
}

// judgeManager judges one manager.
func judgeManager(a managerAnswer) api.Check {
	c := well("manager", a.peer.Name, "%s", a.status.State)
	switch {
	case a.err != nil:
		c.What = fmt.Sprintf("does not answer at %s: %v", a.peer.Address, a.err)
		return doubtful(c, "as long as a majority answers, nobody else notices", "See whether its host and its daemon run, and whether a firewall lets port 4477 through.")
	case a.status.Failure != "":
		c.What = "has stopped: " + a.status.Failure
		return failing(c, "it takes no part in writes", "Look at its log, mend what it says, and start its daemon again.")
	}
	return c
}

// judgeQuorum judges whether the managers that answer are a majority, and
// whether one of them leads.
func judgeQuorum(answers []managerAnswer) api.Check {
	c := well("quorum", "managers", "")
	leader, voters, alive := "", []spec.NodeID(nil), 0
	var term uint64
	for _, a := range answers {
		if a.err == nil && (a.status.Term > term || voters == nil) {
			voters, term = a.status.Voters, a.status.Term
		}
	}
	for _, a := range answers {
		if a.err == nil && a.status.State == "leader" && a.status.Term == term {
			leader = a.peer.Name
		}
		if a.err == nil && slices.Contains(voters, a.peer.ID) {
			alive++
		}
	}
	need := len(voters)/2 + 1
	c.What = fmt.Sprintf("%s leads; %d of %d voters answer", cmp.Or(leader, "nobody"), alive, len(voters))
	const why = "without a majority nothing can be changed, and nothing is replaced"
	switch {
	case len(answers) == 0:
		c.What = "no manager is known"
		return failing(c, why, "wherry daemon --peer ADDR, with the address of any node")
	case leader == "" || alive < need:
		return failing(c, why, fmt.Sprintf("Start managers until %d answer; if they are gone for ever, see `wherry daemon --recover`.", need))
	case alive == need && len(voters) > 2:
		return doubtful(c, "when another one fails, the cluster stops", "Start the managers that do not answer, or replace them.")
	}
	return c
}

// The limits of open files of a daemon, and of watches of files in the system:
// each container needs some of both.
const (
	littleFiles, noFiles = 16_384, 2_048
	littleWatchers       = 256
)

// judgeFiles judges how many files the daemon may have open.
func judgeFiles(limit uint64) api.Check {
	c := well("limits", "open files", "%d", limit)
	const why = "containers, connections and the state need some each"
	const do = "LimitNOFILE=1048576 in the daemon's unit, or ulimit -n 1048576 before it starts"
	switch {
	case limit < noFiles:
		return failing(c, why, do)
	case limit < littleFiles:
		return doubtful(c, why, do)
	}
	return c
}

// judgeWatchers judges fs.inotify.max_user_instances. On cgroup v2 each
// container takes one.
func judgeWatchers(limit int, v2 bool) api.Check {
	c := well("limits", "fs.inotify.max_user_instances", "%d", limit)
	if v2 && limit < littleWatchers {
		return doubtful(c, fmt.Sprintf("each container needs one, so no more than %d start", limit), "echo fs.inotify.max_user_instances=8192 >/etc/sysctl.d/wherry.conf; sysctl --system")
	}
	return c
}

// judgeEngines notes what else runs containers here.
func judgeEngines(found []string) api.Check {
	if len(found) == 0 {
		return well("engines", "host", "no other")
	}
	return well("engines", "host", "%s: beside each other they only share ports, disk and firewalls", strings.Join(found, ", "))
}

// judgeContainerd judges the containerd that the daemon uses.
func judgeContainerd(address string, containers int, err error) api.Check {
	c := well("containerd", address, "answers, %s", count(containers, "task"))
	if err == nil {
		return c
	}
	c.What = fmt.Sprintf("does not answer: %v", err)
	return failing(c, "no container starts or stops; those that run go on", "Look at the daemon's log, and at containerd/log in the data folder.")
}

// judgeNetwork judges a failure of the network loop.
func judgeNetwork(problem string) api.Check {
	c := well("network", "host", "%s", problem)
	return failing(c, "the networks of this host are not as they should be", "It is tried again every three seconds; mend what it names.")
}

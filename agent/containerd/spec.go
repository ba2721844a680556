package containerd

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// SpecOptions are the facts of the node and of the image's file system that
// the spec of a container depends on.
type SpecOptions struct {
	// Passwd and Group are the contents of the image's /etc/passwd and /etc/group.
	Passwd, Group []byte
	// CgroupParent is the absolute cgroup under which the container's is made.
	CgroupParent string
	// Unified tells that the node has cgroup v2 alone.
	Unified bool
	// Capabilities that the node has itself; nil is all.
	Capabilities []string
	// NoFile is the limit of open files when the template sets none; 0 is 65536.
	NoFile uint64
	// NoSwapLimit tells that the node's kernel cannot limit swap, NoRealtime that
	// it cannot share out real-time scheduling, NoBlockWeight that no scheduler of
	// block devices weighs control groups.
	NoSwapLimit, NoRealtime, NoBlockWeight bool
	// Arch of the node, as Go names it, empty is that of this program, and the
	// release of its Kernel.
	Arch, Kernel string
	// AppArmor are the profiles that the node's kernel has; nil when it has no
	// AppArmor, or does not tell.
	AppArmor []string
	// ReadOnlyTrees tells that kernel and OCI runtime can make a mount read-only
	// together with all below it.
	ReadOnlyTrees bool
	// Init is the path of the program on the node that is mounted as init.
	Init string
	// Devices are the device nodes of the node at, or below, the sources of
	// the template's devices, or all of the node's for a privileged container.
	Devices []specs.LinuxDevice
	// BlockDevices are the devices that the template's limits name. // :: path → device
	BlockDevices map[string]specs.LinuxDevice
}

// Defaults of a container.
const (
	defaultPath    = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultShmSize = 64 << 20
	defaultPids    = 4096
	defaultNoFile  = 65536
	// initTarget is where a container finds the init.
	initTarget = "/" + initName
	// envTarget is where its init finds the variables that are written down
	// nowhere else.
	envTarget = "/.wherry-env"
)

// Spec makes the OCI runtime spec of a container. It is a pure function of its
// arguments. What the image or the template asks for and cannot be had is of
// class spec.ErrInvalid.
func Spec(c agent.Container, o SpecOptions) (*specs.Spec, error) {
	t := &c.Template
	process, err := specProcess(c, o)
	if err != nil {
		return nil, err
	}
	mounts, err := specMounts(c, o)
	if err != nil {
		return nil, err
	}
	linux, err := specLinux(c, o)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		// Runtimes of all supported distributions know this version; nothing
		// newer is used.
		Version:     "1.0.2",
		Process:     process,
		Root:        &specs.Root{Path: "rootfs", Readonly: t.ReadOnly},
		Hostname:    ownHostname(c),
		Mounts:      mounts,
		Linux:       linux,
		Annotations: annotations(c),
	}
	if linux.Seccomp, err = seccompProfile(s, t, o); err != nil {
		return nil, err
	}
	return s, nil
}

func hostname(c agent.Container) string {
	if c.Template.Hostname != "" {
		return c.Template.Hostname
	}
	return c.Hostname
}

// ownHostname is empty when the container has the name of its node.
func ownHostname(c agent.Container) string {
	if c.Template.UTSMode == "host" {
		return ""
	}
	return hostname(c)
}

// annotations of the container: the user's, and none of the image's. The
// labels of the container travel along, since nothing else of the spec holds them.
func annotations(c agent.Container) map[string]string {
	a := map[string]string{}
	for k, v := range c.Template.Labels {
		a["wherry.dev/label/"+k] = v
	}
	maps.Copy(a, c.Template.Annotations)
	for k := range a {
		// Refused when the stack was applied; stacks of before that check have them.
		if spec.ReservedAnnotation(k) {
			delete(a, k)
		}
	}
	if len(a) == 0 {
		return nil
	}
	return a
}

func specProcess(c agent.Container, node SpecOptions) (*specs.Process, error) {
	t := &c.Template
	args, err := processArgs(c)
	if err != nil {
		return nil, err
	}
	name := t.User
	if name == "" {
		name = c.Image.User
	}
	user, err := resolveUser(name, t.GroupAdd, node.Passwd, node.Group)
	if err != nil {
		return nil, err
	}
	cwd, err := workingDir(t.WorkingDir, c.Image.WorkingDir)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(t, node.Capabilities)
	if err != nil {
		return nil, err
	}
	rlimits, err := processLimits(t.Ulimits, node.NoFile)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal:        t.TTY,
		User:            user,
		Args:            args,
		Env:             processEnv(c),
		Cwd:             cwd,
		Capabilities:    caps,
		Rlimits:         rlimits,
		NoNewPrivileges: !t.Privileged,
	}
	p.User.Umask = t.Umask
	if adj := t.Resources.OOMScoreAdj; adj != 0 {
		p.OOMScoreAdj = &adj
	}
	for _, o := range t.SecurityOpt {
		switch key, value := securityOption(o); key {
		case "no-new-privileges":
			p.NoNewPrivileges = value != "false"
		case "apparmor":
			if p.ApparmorProfile = value; value == "unconfined" {
				p.ApparmorProfile = ""
			} else if !slices.Contains(node.AppArmor, value) {
				return nil, spec.Invalidf("security_opt: this node has no AppArmor profile %q; load it by apparmor_parser, or leave it out", value)
			}
		}
	}
	return p, nil
}

// securityOption takes "key=value" or, as in older files, "key:value" apart.
func securityOption(o string) (key, value string) {
	if i := strings.IndexAny(o, "=:"); i >= 0 {
		return o[:i], o[i+1:]
	}
	return o, ""
}

// processArgs follows Docker: see spec.Template.
func processArgs(c agent.Container) ([]string, error) {
	t := &c.Template
	entry, command := t.Entrypoint, t.Command
	if entry == nil {
		entry = c.Image.Entrypoint
		if command == nil {
			command = c.Image.Cmd
		}
	}
	args := slices.Concat(entry, command)
	if len(args) == 0 || args[0] == "" {
		return nil, spec.Invalidf("nothing to run: neither the service nor image %s has a command", t.Image)
	}
	if t.Init || c.EnvFile != "" {
		args = slices.Concat(initArgs(t.Init, c.EnvFile != ""), args)
	}
	return args, nil
}

// processEnv is the image's environment, overlaid with the template's in the
// order of names.
func processEnv(c agent.Container) []string {
	env := []string{"PATH=" + defaultPath}
	set := func(name, value string) {
		line := name + "=" + value
		if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }); i >= 0 {
			env[i] = line
			return
		}
		env = append(env, line)
	}
	if h := hostname(c); h != "" {
		set("HOSTNAME", h)
	}
	if c.Template.TTY {
		set("TERM", "xterm")
	}
	for _, e := range c.Image.Env {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			set(name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Template.Env)) {
		set(name, c.Template.Env[name])
	}
	return env
}

// workingDir returns the folder to start in. One that leads through the
// descriptors of a process is refused: with a descriptor leaked by the runtime
// it would be a folder of the node.
func workingDir(wanted, image string) (string, error) {
	dir := wanted
	if dir == "" {
		dir = image
	}
	dir = path.Clean("/" + dir)
	parts := strings.Split(dir[1:], "/")
	if parts[0] == "proc" && len(parts) > 1 {
		return "", spec.Invalidf("working folder %s lies in /proc, where it may lead out of the container; choose another", dir)
	}
	if parts[0] == "dev" && len(parts) > 1 && parts[1] == "fd" {
		return "", spec.Invalidf("working folder %s may lead out of the container; choose another", dir)
	}
	return dir, nil
}

// limitNames are the limits there are, as the OCI spec calls them.
var limitNames = []string{
	"AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE",
	"NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
}

func processLimits(limits map[string]spec.Ulimit, noFile uint64) ([]specs.POSIXRlimit, error) {
	out := []specs.POSIXRlimit{}
	if _, ok := limits["nofile"]; !ok {
		if noFile == 0 {
			noFile = defaultNoFile
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: noFile, Hard: noFile})
	}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		if !slices.Contains(limitNames, strings.ToUpper(name)) {
			return nil, spec.Invalidf("ulimits: there is no limit %q; there are %s", name, strings.ToLower(strings.Join(limitNames, ", ")))
		}
		// -1 is no limit, which is the greatest number.
		l := limits[name]
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return out, nil
}

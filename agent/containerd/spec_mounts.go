package containerd

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// propagations are the ways in which mounts made later show on the other side.
var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

// specMounts lists the mounts in the order in which they are made: what every
// container has, then the agent's, parents before what lies in them.
func specMounts(c agent.Container, o SpecOptions) ([]specs.Mount, error) {
	mounts := defaultMounts(&c.Template, o)
	own := make([]specs.Mount, 0, len(c.Mounts))
	for _, m := range c.Mounts {
		om, err := specMount(m, o)
		if err != nil {
			return nil, err
		}
		own = append(own, om)
	}
	slices.SortStableFunc(own, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range own {
		// A mount of the user's takes the place of a default one, and one of
		// all of /dev that of what lies in it, too.
		i := slices.IndexFunc(mounts, func(d specs.Mount) bool { return d.Destination == m.Destination })
		if i < 0 {
			mounts = append(mounts, m)
			continue
		}
		mounts[i] = m
		if m.Destination == "/dev" {
			mounts = slices.DeleteFunc(mounts, func(d specs.Mount) bool { return strings.HasPrefix(d.Destination, "/dev/") })
		}
	}
	if c.EnvFile != "" {
		mounts = append(mounts, specs.Mount{
			Destination: envTarget, Type: "bind", Source: c.EnvFile, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "rprivate"},
		})
	}
	if c.Template.Init || c.EnvFile != "" {
		if o.Init == "" {
			return nil, spec.Invalidf("init: this node has no init program to give to the container")
		}
		mounts = append(mounts, specs.Mount{
			Destination: initTarget, Type: "bind", Source: o.Init, Options: []string{"bind", "ro", "nosuid", "nodev", "rprivate"},
		})
	}
	return mounts, nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

func specMount(m agent.Mount, o SpecOptions) (specs.Mount, error) {
	target := path.Clean("/" + m.Target)
	if target == "/" || target == "/proc" {
		return specs.Mount{}, spec.Invalidf("mount at %s is not possible", target)
	}
	if m.Tmpfs {
		opts := []string{"nosuid", "nodev"}
		if m.ReadOnly {
			opts = append(opts, "ro")
		}
		if !slices.Contains(m.Options, "exec") && !slices.Contains(m.Options, "noexec") {
			opts = append(opts, "noexec")
		}
		return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: append(opts, m.Options...)}, nil
	}
	if !path.IsAbs(m.Source) {
		return specs.Mount{}, spec.Invalidf("mount at %s: source %q is no absolute path", target, m.Source)
	}
	opts := []string{"rbind"}
	if m.NonRecursive {
		opts[0] = "bind"
	}
	switch {
	case !m.ReadOnly:
		opts = append(opts, "rw")
	case m.Tree == agent.TreeStrict && !o.ReadOnlyTrees:
		return specs.Mount{}, spec.Invalidf("mount at %s: this node cannot make the mounts below %s read-only, which takes Linux 5.12 and an OCI runtime that knows the option rro; use recursive: disabled", target, m.Source)
	case m.Tree != agent.TreeAsIs && o.ReadOnlyTrees:
		opts = append(opts, "ro", "rro")
	default:
		opts = append(opts, "ro")
	}
	propagation := m.Propagation
	if propagation == "" {
		propagation = "rprivate"
	}
	if !slices.Contains(propagations, propagation) {
		return specs.Mount{}, spec.Invalidf("mount at %s: there is no propagation %q", target, m.Propagation)
	}
	opts = append(opts, propagation)
	return specs.Mount{Destination: target, Type: "bind", Source: m.Source, Options: append(opts, m.Options...)}, nil
}

func defaultMounts(t *spec.Template, o SpecOptions) []specs.Mount {
	shm := t.Resources.ShmSize
	if shm == 0 {
		shm = defaultShmSize
	}
	access := "ro"
	if t.Privileged {
		access = "rw"
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	if t.IPCMode == "host" {
		return append(mounts,
			specs.Mount{Destination: "/dev/mqueue", Type: "bind", Source: "/dev/mqueue", Options: []string{"rbind", "nosuid", "noexec", "nodev"}},
			specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "nosuid", "noexec", "nodev"}})
	}
	mounts = append(mounts,
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
	if t.IPCMode == "none" {
		return mounts
	}
	return append(mounts,
		specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}})
}

package containerd

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/spec"
)

// seccompProfile returns the template's profile or Docker's default one,
// without the kernel's crypto sockets and host sockets (AF_ALG, AF_VSOCK),
// without socketcall, behind which the arguments of a 32-bit program's socket
// calls cannot be seen, and without the x32 calls. nil is no profile.
func seccompProfile(s *specs.Spec, t *spec.Template, o SpecOptions) (*specs.LinuxSeccomp, error) {
	confined := !t.Privileged
	for _, o := range t.SecurityOpt {
		switch key, value := securityOption(o); key {
		case "seccomp":
			if value != "unconfined" {
				return nil, spec.Invalidf("security_opt: the seccomp profile %s has not come along", value)
			}
			confined = false
		case "no-new-privileges", "systempaths", "apparmor":
		case "label":
			if value != "disable" {
				return nil, spec.Invalidf("security_opt: SELinux labels are not supported; containers run without")
			}
		default:
			return nil, spec.Invalidf("security_opt: %q is not known", o)
		}
	}
	if t.Seccomp != nil {
		return ownProfile(t.Seccomp, s.Process.Capabilities, o)
	}
	if !confined {
		return nil, nil
	}
	p := seccomp.DefaultProfile(s)
	// No distribution's programs use them, and they take a third of the time
	// in which the OCI runtime compiles the profile for each start.
	p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	for i := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(p.Syscalls[i].Names, func(n string) bool { return n == "socketcall" })
	}
	return p, nil
}

// nativeArch are the names that profiles have for the architectures of nodes.
var nativeArch = map[string]string{
	"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64", "arm": "SCMP_ARCH_ARM", "386": "SCMP_ARCH_X86", "ppc64le": "SCMP_ARCH_PPC64LE",
	"riscv64": "SCMP_ARCH_RISCV64", "s390x": "SCMP_ARCH_S390X", "loong64": "SCMP_ARCH_LOONGARCH64",
}

// ownProfile keeps of a profile what holds for this node and for a container
// with these capabilities.
func ownProfile(p *spec.SeccompProfile, caps *specs.LinuxCapabilities, o SpecOptions) (*specs.LinuxSeccomp, error) {
	out := &specs.LinuxSeccomp{DefaultAction: specs.LinuxSeccompAction(p.DefaultAction), DefaultErrnoRet: p.DefaultErrnoRet}
	for _, a := range p.Architectures {
		out.Architectures = append(out.Architectures, specs.Arch(a))
	}
	arch := cmp.Or(o.Arch, runtime.GOARCH)
	for _, m := range p.ArchMap {
		if m.Architecture == nativeArch[arch] {
			out.Architectures = append(out.Architectures, specs.Arch(m.Architecture))
			for _, a := range m.SubArchitectures {
				out.Architectures = append(out.Architectures, specs.Arch(a))
			}
		}
	}
	for _, f := range p.Flags {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	var bounding []string
	if caps != nil {
		bounding = caps.Bounding
	}
	for _, r := range p.Syscalls {
		keep, err := seccompHolds(r, arch, o.Kernel, bounding)
		if err != nil {
			return nil, err
		}
		if !keep {
			continue
		}
		rule := specs.LinuxSyscall{Names: r.Names, Action: specs.LinuxSeccompAction(r.Action), ErrnoRet: r.ErrnoRet}
		if r.Name != "" {
			rule.Names = []string{r.Name}
		}
		for _, a := range r.Args {
			rule.Args = append(rule.Args, specs.LinuxSeccompArg{Index: a.Index, Value: a.Value, ValueTwo: a.ValueTwo, Op: specs.LinuxSeccompOperator(a.Op)})
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return out, nil
}

// seccompHolds reports whether a rule is part of the profile here.
func seccompHolds(r spec.SeccompRule, arch, kernel string, caps []string) (bool, error) {
	has := func(c string) bool { return slices.Contains(caps, c) }
	in, ex := &r.Includes, &r.Excludes
	if slices.Contains(ex.Arches, arch) || slices.ContainsFunc(ex.Caps, has) {
		return false, nil
	}
	if len(in.Arches) > 0 && !slices.Contains(in.Arches, arch) {
		return false, nil
	}
	if slices.ContainsFunc(in.Caps, func(c string) bool { return !has(c) }) {
		return false, nil
	}
	for _, f := range []struct {
		min  string
		want bool
	}{{in.MinKernel, true}, {ex.MinKernel, false}} {
		if f.min == "" {
			continue
		}
		is, err := kernelAtLeast(kernel, f.min)
		if err != nil || is != f.want {
			return false, err
		}
	}
	return true, nil
}

// kernelAtLeast compares a kernel's release with "MAJOR.MINOR".
func kernelAtLeast(release, min string) (bool, error) {
	var major, minor, wantMajor, wantMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false, fmt.Errorf("read version %q of the kernel: %w", release, err)
	}
	if _, err := fmt.Sscanf(min, "%d.%d", &wantMajor, &wantMinor); err != nil {
		return false, spec.Invalidf("security_opt: %q is no version of a kernel", min)
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor, nil
}

package containerd

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// TestOwnProfile: of the rules of a profile those stay that hold for the node
// and the container.
func TestOwnProfile(t *testing.T) {
	p, err := spec.ParseSeccompProfile([]byte(`{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
		"archMap": [
			{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
			{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
		],
		"flags": ["SECCOMP_FILTER_FLAG_LOG"],
		"syscalls": [
			{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "comment": "always"},
			{"name": "old", "action": "SCMP_ACT_ALLOW", "args": null, "includes": {}, "excludes": {}},
			{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "valueTwo": 9, "op": "SCMP_CMP_MASKED_EQ"}]},
			{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
			{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
			{"names": ["chown"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN"]}},
			{"names": ["unchown"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN"]}},
			{"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
			{"names": ["arm_sync"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
			{"names": ["notarm"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
			{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
			{"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
			{"names": ["past"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.1"}}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	for arch, want := range map[string]string{
		"amd64": `["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"] [["read","write"],["old"],["personality"],["chmod"],["chown"],["arch_prctl"],["notarm"],["ptrace"]]`,
		"arm64": `["SCMP_ARCH_AARCH64","SCMP_ARCH_ARM"] [["read","write"],["old"],["personality"],["chmod"],["chown"],["arm_sync"],["ptrace"]]`,
	} {
		c := testContainer()
		c.Template.Seccomp = p
		o := testOptions()
		o.Arch = arch
		s, err := Spec(c, o)
		if err != nil {
			t.Fatal(err)
		}
		got := s.Linux.Seccomp
		var names [][]string
		for _, r := range got.Syscalls {
			names = append(names, r.Names)
		}
		a, _ := json.Marshal(got.Architectures)
		n, _ := json.Marshal(names)
		if string(a)+" "+string(n) != want {
			t.Errorf("%s: %s %s\nwant %s", arch, a, n, want)
		}
		b, _ := json.Marshal(got.Syscalls[2:4])
		if want := `[{"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"valueTwo":9,"op":"SCMP_CMP_MASKED_EQ"}]},{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]`; string(b) != want {
			t.Errorf("%s, want %s", b, want)
		}
		if got.DefaultAction != specs.ActErrno || *got.DefaultErrnoRet != 38 || !slices.Equal(got.Flags, []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_LOG"}) {
			t.Errorf("profile %+v", got)
		}
	}
	// A profile that was asked for holds for a privileged container, too.
	c := testContainer()
	c.Template.Seccomp, c.Template.Privileged = p, true
	if s, err := Spec(c, testOptions()); err != nil || s.Linux.Seccomp == nil {
		t.Errorf("privileged: %v, %v", s, err)
	}
}

func TestKernelAtLeast(t *testing.T) {
	for _, tt := range []struct {
		release, min string
		want         bool
	}{
		{"6.1.0-18-amd64", "6.1", true}, {"6.1.0-18-amd64", "6.2", false}, {"6.10.1", "6.9", true}, {"7.0", "6.9", true}, {"5.19", "6.0", false},
	} {
		if got, err := kernelAtLeast(tt.release, tt.min); got != tt.want || err != nil {
			t.Errorf("%s at least %s: %v, %v", tt.release, tt.min, got, err)
		}
	}
}

func TestAppArmor(t *testing.T) {
	names := parseProfiles("docker-default (enforce)\n/usr/bin/man (complain)\nnvidia_modprobe//kmod (enforce)\n\n")
	if want := []string{"docker-default", "/usr/bin/man", "nvidia_modprobe//kmod"}; !slices.Equal(names, want) {
		t.Errorf("profiles %q, want %q", names, want)
	}
	for value, want := range map[string]string{"docker-default": "docker-default", "unconfined": ""} {
		s, err := Spec(agent.Container{
			Task: "1-1", Image: agent.ImageConfig{Cmd: []string{"x"}}, Template: spec.Template{SecurityOpt: []string{"apparmor=" + value}},
		}, testOptions())
		if err != nil || s.Process.ApparmorProfile != want {
			t.Errorf("apparmor=%s: %v, %v, want %q", value, s, err, want)
		}
	}
}

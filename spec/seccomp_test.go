package spec

import (
	"errors"
	"strings"
	"testing"
)

func TestParseSeccompProfile(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "cannot be read",
		"[]":                                "cannot be read",
		`{"defaultAction": "x"} {}`:         "behind its end",
		`{"defaultActions": "x"}`:           `unknown field "defaultActions"`,
		`{"syscalls": [{"nams": ["x"]}]}`:   `unknown field "nams"`,
		`{"listenerPath": "/run/x.sock"}`:   "listenerPath",
		strings.Repeat(" ", 128<<10) + `{}`: "larger than 128 KiB",
	} {
		if _, err := ParseSeccompProfile([]byte(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func TestValidateSeccompProfile(t *testing.T) {
	for text, want := range map[string]string{
		`{"defaultAction": "SCMP_ACT_ALLOW"}`: "",
		`{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}`: "",
		`{}`:                                   `seccomp.defaultAction: ""`,
		`{"defaultAction": "SCMP_ACT_NOTIFY"}`: "seccomp.defaultAction:",
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["amd64"]}`:                                                                              `seccomp.architectures: "amd64"`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": [""]}]}`:                             "seccomp.archMap:",
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86"}]}`:                      "exclude each other",
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}`:                                                           "seccomp.flags:",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}`:                                                              "seccomp.syscalls[0]: a rule needs",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "name": "b", "action": "SCMP_ACT_ALLOW"}]}`:                                 "seccomp.syscalls[0]: a rule needs",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "ALLOW"}]}`:                                                       "seccomp.syscalls[0].action:",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}`: "args[0].index:",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "EQ"}]}]}`:          "args[0].op:",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]}`:            "no version of a kernel",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["FLY"]}}]}`:               "not a capability",
	} {
		p, err := ParseSeccompProfile([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		s := validStack()
		web := s.Services["web"]
		web.Template.Seccomp = p
		s.Services["web"] = web
		if err = ValidateStack(s); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

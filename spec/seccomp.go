package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// SeccompProfile says which calls of the kernel a container may make, in the
// form that Docker reads: rules may depend on the architecture, the kernel and
// the capabilities, which only the node knows.
type SeccompProfile struct {
	DefaultAction   string `json:"defaultAction"`
	DefaultErrnoRet *uint  `json:"defaultErrnoRet,omitempty"`
	// Architectures that the rules hold for, as libseccomp names them; ArchMap
	// gives those of each native one instead.
	Architectures []string      `json:"architectures,omitempty"`
	ArchMap       []SeccompArch `json:"archMap,omitempty"`
	Flags         []string      `json:"flags,omitempty"`
	Syscalls      []SeccompRule `json:"syscalls,omitempty"`
}

// SeccompArch lists what a machine of one architecture runs besides.
type SeccompArch struct {
	Architecture     string   `json:"architecture"`
	SubArchitectures []string `json:"subArchitectures,omitempty"`
}

// SeccompRule is what happens to some calls.
type SeccompRule struct {
	Names []string `json:"names,omitempty"`
	// Name is the old form of Names.
	Name     string       `json:"name,omitempty"`
	Action   string       `json:"action"`
	ErrnoRet *uint        `json:"errnoRet,omitempty"`
	Args     []SeccompArg `json:"args,omitempty"`
	// Includes must all hold, and no Excludes may, for the rule to be there.
	Includes SeccompFilter `json:"includes,omitzero"`
	Excludes SeccompFilter `json:"excludes,omitzero"`
}

// SeccompArg compares an argument of a call.
type SeccompArg struct {
	Index    uint   `json:"index"` // 0 to 5
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo,omitempty"`
	Op       string `json:"op"`
}

// SeccompFilter looks at a node and a container.
type SeccompFilter struct {
	// Caps that the container has.
	Caps []string `json:"caps,omitempty"`
	// Arches of the node, as Go names them: "amd64".
	Arches []string `json:"arches,omitempty"`
	// MinKernel is the oldest kernel, "4.8"; empty is any.
	MinKernel string `json:"minKernel,omitempty"`
}

// MaxSeccompProfile is the largest profile in bytes.
const MaxSeccompProfile = 128 << 10

// ParseSeccompProfile reads a profile. A field that it does not know is an
// error, as is one that would hand calls over to a program of the node.
func ParseSeccompProfile(b []byte) (*SeccompProfile, error) {
	if len(b) > MaxSeccompProfile {
		return nil, Invalidf("the profile is larger than %d KiB", MaxSeccompProfile>>10)
	}
	var file struct {
		SeccompProfile
		// Comments say nothing; null is the same as an absent field.
		Syscalls []struct {
			SeccompRule
			Comment string `json:"comment"`
		} `json:"syscalls"`
		ListenerPath     string `json:"listenerPath"`
		ListenerMetadata string `json:"listenerMetadata"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, Invalidf("the profile cannot be read: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Invalidf("the profile cannot be read: there is something behind its end")
	}
	if file.ListenerPath != "" || file.ListenerMetadata != "" {
		return nil, Invalidf("the profile hands calls over to a program of the node by listenerPath, which is not possible")
	}
	p := file.SeccompProfile
	for _, r := range file.Syscalls {
		p.Syscalls = append(p.Syscalls, r.SeccompRule)
	}
	return &p, nil
}

var (
	seccompActions = []string{
		"SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO", "SCMP_ACT_TRACE", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG",
	}
	seccompOps = []string{
		"SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
	}
	seccompFlags = []string{"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"}
	seccompArch  = regexp.MustCompile(`^SCMP_ARCH_[A-Z0-9_]+$`)
	kernelForm   = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)
)

func (c *checker) seccomp(at string, p *SeccompProfile) {
	oneOf(c, at+".defaultAction", p.DefaultAction, seccompActions...)
	arch := func(where, name string) {
		if !seccompArch.MatchString(name) {
			c.add(where, "%q is no architecture such as SCMP_ARCH_X86_64", name)
		}
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		c.add(at, "architectures and archMap exclude each other")
	}
	for _, a := range p.Architectures {
		arch(at+".architectures", a)
	}
	for _, m := range p.ArchMap {
		for _, a := range append([]string{m.Architecture}, m.SubArchitectures...) {
			arch(at+".archMap", a)
		}
	}
	for _, f := range p.Flags {
		oneOf(c, at+".flags", f, seccompFlags...)
	}
	for i, r := range p.Syscalls {
		where := fmt.Sprintf("%s.syscalls[%d]", at, i)
		oneOf(c, where+".action", r.Action, seccompActions...)
		names := r.Names
		if r.Name != "" {
			names = append(slices.Clip(names), r.Name)
		}
		if len(names) == 0 || r.Name != "" && len(r.Names) > 0 || slices.ContainsFunc(names, func(n string) bool { return n == "" || strings.ContainsAny(n, " \t\n") }) {
			c.add(where, "a rule needs the names of calls, in names or in name")
		}
		for j, a := range r.Args {
			oneOf(c, fmt.Sprintf("%s.args[%d].op", where, j), a.Op, seccompOps...)
			if a.Index > 5 {
				c.add(fmt.Sprintf("%s.args[%d].index", where, j), "must be from 0 to 5")
			}
		}
		for _, f := range []SeccompFilter{r.Includes, r.Excludes} {
			if f.MinKernel != "" && !kernelForm.MatchString(f.MinKernel) {
				c.add(where, "%q is no version of a kernel such as 4.8", f.MinKernel)
			}
			c.capabilities(where, f.Caps)
		}
	}
}

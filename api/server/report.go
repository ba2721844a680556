package server

import (
	"strings"
	"unicode/utf8"

	"wherry.dev/spec"
)

// The most that one node may write into the state, in bytes and numbers.
const (
	maxInfo   = 256  // of each word of a node on itself
	maxRoutes = 4096 // of the subnets that it reaches
	maxReason = 1024 // of each text for people
	maxPorts  = 4096
	maxLines  = 5   // of output, per attempt
	maxLine   = 200 // of each of them
	maxHealth = 32
	maxFiles  = 256 // of secrets and configs, per task
)

// bound cuts what a report says for people to what the state takes. Words on
// the node itself are compared, not read, so those that are too long are refused.
func bound(rep *spec.Report) error {
	if i := rep.Info; i != nil {
		for _, w := range []struct{ name, text string }{
			{"os", i.OS}, {"arch", i.Arch}, {"kernel", i.Kernel}, {"version", i.Version},
			{"boot", i.Boot}, {"issuer", i.Issuer}, {"trusts", i.Trusts},
		} {
			if len(w.text) > maxInfo {
				return tooLong(rep, w.name, len(w.text), maxInfo)
			}
		}
	}
	if i := rep.Info; i != nil {
		for _, w := range []struct{ name, text string }{{"subnets", i.Subnets}, {"interfaces", i.Interfaces}} {
			if len(w.text) > maxRoutes {
				return tooLong(rep, w.name, len(w.text), maxRoutes)
			}
		}
	}
	if rep.Ports != nil {
		ports := (*rep.Ports)[:min(len(*rep.Ports), maxPorts)]
		for i := range ports {
			p := &ports[i]
			p.HostIP, p.Protocol, p.Owner = cut(p.HostIP, maxInfo), cut(p.Protocol, maxInfo), cut(p.Owner, maxInfo)
			p.Problem = cut(p.Problem, maxReason)
		}
		rep.Ports = &ports
	}
	for i := range rep.Tasks {
		s := &rep.Tasks[i].Status
		s.Reason, s.Health = cut(s.Reason, maxReason), spec.HealthState(cut(string(s.Health), maxHealth))
		if len(s.Files) > maxFiles {
			s.Files = nil
		}
		for k, v := range s.Files {
			if len(k) > maxInfo || len(v) > maxInfo {
				delete(s.Files, k)
			}
		}
		s.Attempts = s.Attempts[max(0, len(s.Attempts)-spec.KeepAttempts):]
		for j := range s.Attempts {
			a := &s.Attempts[j]
			a.Error = cut(a.Error, maxReason)
			a.LastLog = a.LastLog[max(0, len(a.LastLog)-maxLines):]
			for k := range a.LastLog {
				a.LastLog[k] = cut(a.LastLog[k], maxLine)
			}
		}
	}
	return nil
}

func tooLong(rep *spec.Report, name string, has, limit int) error {
	return spec.Invalidf("report of node %s: info.%s has %d bytes, more than %d; nothing of the report was taken", cut(string(rep.Node), maxInfo), name, has, limit)
}

// cut shortens s to n bytes, and says so at its end.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const more = "…"
	n -= len(more)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "") + more
}

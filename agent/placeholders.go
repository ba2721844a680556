package agent

import (
	"regexp"
	"runtime"

	"wherry.dev/spec"
)

// placeholders are what those of a template stand for in a task of this node.
func (a *Agent) placeholders(t *spec.Task) spec.Placeholders {
	return spec.Placeholders{
		"Node.Hostname": a.c.NodeName, "Node.ID": string(t.Node), "Node.Platform.Architecture": runtime.GOARCH, "Node.Platform.OS": runtime.GOOS,
		"Service.Name": spec.ScopedName(t.Stack, t.Service), "Task.ID": string(t.ID), "Task.Name": spec.TaskName(t, a.c.NodeName), "Task.Slot": t.Place(),
	}
}

var hostnameForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,61}[A-Za-z0-9_])?$`)

// checkFilled refuses what only the texts for placeholders have made wrong.
func checkFilled(t *spec.Template) error {
	if t.Placeholders && t.Hostname != "" && !hostnameForm.MatchString(t.Hostname) {
		return spec.Invalidf("hostname: %q, as its placeholders make it, is not at most 63 letters, digits, ., _ and -; choose a shorter one", t.Hostname)
	}
	return nil
}

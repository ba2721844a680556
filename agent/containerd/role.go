package containerd

import (
	"path/filepath"
)

// Names under which the program is called in its hidden roles.
const (
	shimName   = "containerd-shim-runc-v2"
	daemonVerb = "containerd"
	initVerb   = "init"
	initName   = ".wherry-init"
)

// Role recognises the hidden roles of the program by its arguments, which
// include the program's name: the containerd daemon, the shim of a container
// and a container's init. When ok, the caller must do nothing but run it and
// exit with its result; run may also end the process itself.
//
// It has to be called first thing in main: the shim parses the process's
// arguments and environment itself.
func Role(args []string) (run func() int, ok bool) {
	switch {
	case len(args) == 0:
		return nil, false
	case filepath.Base(args[0]) == shimName, len(args) > 1 && args[1] == "-namespace":
		// The shim starts its second process from os.Executable, which loses
		// the name of the symbolic link: hence the second way to tell it.
		return runShim, true
	case filepath.Base(args[0]) == initName:
		return func() int { return runInit(args[1:]) }, true
	case len(args) > 2 && args[1] == initVerb && args[2] == "--":
		return func() int { return runInit(args[2:]) }, true
	case len(args) > 1 && args[1] == daemonVerb:
		return func() int { return runDaemon(args[2:]) }, true
	}
	return nil, false
}

// Package containerd runs tasks on containerd: it implements agent.Images,
// agent.Runtime and agent.Execer, and it brings the daemon it talks to.
//
// It owns three things. Daemon starts containerd as a child process out of
// this very program, keeps it running, adopts an orphan of an earlier life and
// ends shims that containerd has lost sight of. Role holds the hidden roles of the program: containerd itself, the
// shim that stands between containerd and one container, and the small init.
// Runtime is the client: images, containers, processes, and the OCI spec of a
// container, which Spec makes and nothing else.
//
// It refuses to decide: which task runs, when it is started again and where
// its output goes is the agent's business. It never copies an image's labels
// to a container, and runs no image whose /dev, /proc or /sys is a link.
//
// Containers belong to their shims, not to containerd and not to the caller:
// either may be killed at any moment and no container notices. What the end
// of a process was is written to a file by the shim, so that an end which
// nobody watched keeps its exit code.
//
// Goroutines: Daemon.Run and Runtime.Run run in the caller's; Runtime.Run is
// only needed for Changed. Daemon.Run looks for lost shims in a goroutine that
// ends with it. Pulls run in goroutines of their own, which end
// with the last caller that waits for them.
package containerd

package cluster

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The nice values of a manager, which must answer within tens of milliseconds
// on a host that is busy, and of everything else.
const (
	urgent   = -10
	ordinary = 0
)

// Urgent raises the priority of this process on the CPU above that of ordinary
// ones, so that a busy host does not look like a dead one to other members.
// What the process starts inherits it, and has to call Ordinary as the first
// thing.
func Urgent() error { return setNice(urgent) }

// Ordinary undoes Urgent, for a program that was started by such a process.
func Ordinary() error { return setNice(ordinary) }

// setNice sets the nice value of all threads, which have one each on Linux. A
// new thread gets that of the thread which makes it, so they are gone through
// until none is found that has another.
func setNice(nice int) error {
	for {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("set priority: %w", err)
		}
		changed := false
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			// The system call answers 20 minus the nice value.
			if was, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err != nil || 20-was == nice {
				continue // it has ended, or is done
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && err != unix.ESRCH {
				return fmt.Errorf("set priority to %d: %w", nice, err)
			}
			changed = true
		}
		if !changed {
			return nil
		}
	}
}

package agent

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// hostTmpfs is the memory of the host, without its swap.
type hostTmpfs struct{}

// Mount implements Tmpfs. A tmpfs can be told to stay out of the swap since
// Linux 6.4; before that a ramfs does, which has no limit but that of what we
// put into it.
func (hostTmpfs) Mount(dir string) error {
	mounted, err := isMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	err = unix.Mount("wherry", dir, "tmpfs", flags, "mode=0700,noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("wherry", dir, "ramfs", flags, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("mount memory at %s: %w", dir, err)
	}
	return nil
}

// Unmount implements Tmpfs.
func (hostTmpfs) Unmount(dir string) error { return unmountAll(dir) }

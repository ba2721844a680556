package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Exchange implements agent.Exchanger. It needs Linux 5.12; before 6.5 the old
// mounts stay, unseen, beneath the new ones until the process ends.
func (r *Runtime) Exchange(ctx context.Context, t spec.TaskID, mounts []agent.Mount) error {
	run, ok := readRun(r.records(), string(t))
	if !ok || !run.alive() {
		return fmt.Errorf("exchange files of task %s: %w", t, spec.Conflictf("the container does not run"))
	}
	if err := exchange(run.PID, mounts); err != nil {
		if !run.alive() {
			err = spec.Conflictf("the container does not run any more")
		}
		return fmt.Errorf("exchange files of task %s: %w", t, err)
	}
	return ctx.Err()
}

// exchange makes the mounts in the mount namespace of a process.
func exchange(pid int, mounts []agent.Mount) error {
	// Sources are found here, targets there.
	trees := make([]int, 0, len(mounts))
	defer func() {
		for _, fd := range trees {
			unix.Close(fd)
		}
	}()
	devices := make([]uint64, 0, len(mounts))
	for _, m := range mounts {
		fd, dev, err := cloneMount(m)
		if err != nil {
			return err
		}
		trees, devices = append(trees, fd), append(devices, dev)
	}
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open mount namespace: %w", err)
	}
	defer unix.Close(ns)
	return onOwnThread(func() error {
		// Names of descriptors are those of this process also when it looks at
		// them from inside of the container, whose /proc may be anything.
		fds, err := unix.Open("/proc/thread-self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open own descriptors: %w", err)
		}
		defer unix.Close(fds)
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave the folder of the daemon: %w", err)
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace: %w", err)
		}
		for i, m := range mounts {
			if err := replaceMount(fds, trees[i], devices[i], m.Target); err != nil {
				return fmt.Errorf("%s: %w", m.Target, err)
			}
		}
		return nil
	})
}

// cloneMount returns a mount of the source of m that is nowhere yet, and the
// device of its file.
func cloneMount(m agent.Mount) (fd int, dev uint64, err error) {
	fd, err = unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, 0, fmt.Errorf("clone %s: %w", m.Source, err)
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if m.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	for option, bit := range map[string]uint64{"nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV, "noexec": unix.MOUNT_ATTR_NOEXEC} {
		if slices.Contains(m.Options, option) {
			attr.Attr_set |= bit
		}
	}
	var st unix.Stat_t
	err = errors.Join(unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr), unix.Fstat(fd, &st))
	if errors.Is(err, unix.ENOSYS) {
		err = fmt.Errorf("the kernel cannot do that, it needs Linux 5.12: %w", err)
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("make mount of %s: %w", m.Source, err)
	}
	return fd, uint64(st.Dev), nil
}

// replaceMount puts a mount in the place of the one at target, in the mount
// namespace of the thread. What is there must be a file of the same file system,
// which holds nothing but files of ours: a container may have moved its folders
// about, and laid a link to something else in their place.
func replaceMount(fds, tree int, dev uint64, target string) error {
	at, err := unix.Openat2(unix.AT_FDCWD, target, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return fmt.Errorf("the container has moved it: %w", err)
	}
	defer unix.Close(at)
	mount, err := ourMount(at, dev)
	if err != nil {
		return err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fds, strconv.Itoa(at), buf)
	if err != nil {
		return fmt.Errorf("find the mount: %w", err)
	}
	dir, name := filepath.Split(string(buf[:n]))
	parent, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return fmt.Errorf("the container has moved it: %w", err)
	}
	defer unix.Close(parent)
	// Nobody can take away or rename what something is mounted on, so from here on
	// the name stays what it is.
	if same, err := mountIn(parent, name, dev); err != nil || same != mount {
		return fmt.Errorf("the container moves it about: %w", errors.Join(err, unix.EBUSY))
	}
	err = unix.MoveMount(tree, "", parent, name, unix.MOVE_MOUNT_F_EMPTY_PATH|moveBeneath)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.5
		if err := unix.MoveMount(tree, "", parent, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("put the new file over the old one: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("put the new file beneath the old one: %w", err)
	}
	if err := unix.Fchdir(parent); err != nil {
		return fmt.Errorf("enter its folder: %w", err)
	}
	if err := unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("take the old file away: %w", err)
	}
	return nil
}

// moveBeneath is MOVE_MOUNT_BENEATH.
const moveBeneath = 0x200

// ourMount returns the ID of the mount whose root fd is.
func ourMount(fd int, dev uint64) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("look at it: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || unix.Mkdev(st.Dev_major, st.Dev_minor) != dev {
		return 0, errors.New("the container has something else there now")
	}
	return st.Mnt_id, nil
}

func mountIn(parent int, name string, dev uint64) (uint64, error) {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return ourMount(fd, dev)
}

// onOwnThread runs f on a thread that ends with it. That is never the first one
// of the process: what /proc/self says of mounts is what that one sees.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			err := onOwnThread(f) // on another one, as long as this one is taken
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

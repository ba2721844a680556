package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// driverOpts are the options of a local volume that is a mount.
type driverOpts struct {
	fstype string
	device string
	flags  uintptr
	data   []string // options of the file system
}

var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "mand": unix.MS_MANDLOCK,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
	"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC,
}

// parseDriverOpts reads type, device and o as mount(8) has them. nil is a
// plain folder.
func parseDriverOpts(opts map[string]string) (*driverOpts, error) {
	if len(opts) == 0 {
		return nil, nil
	}
	d := &driverOpts{fstype: opts["type"], device: opts["device"]}
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		if k != "type" && k != "device" && k != "o" {
			return nil, spec.Invalidf("driver option %q is not known; the local driver has type, device and o", k)
		}
	}
	for o := range strings.SplitSeq(opts["o"], ",") {
		switch o = strings.TrimSpace(o); {
		case o == "" || o == "rw" || o == "defaults":
		case mountFlags[o] != 0:
			d.flags |= mountFlags[o]
		default:
			d.data = append(d.data, o)
		}
	}
	bind := d.flags&unix.MS_BIND != 0
	switch {
	case d.device == "":
		return nil, spec.Invalidf("driver option device is missing; name what is to be mounted")
	case bind && !filepath.IsAbs(d.device):
		return nil, spec.Invalidf("driver option device %q of a bind is not an absolute path", d.device)
	case d.fstype == "" && !bind:
		return nil, spec.Invalidf("driver option type is missing; name a file system such as nfs or tmpfs, or add o: bind")
	case strings.HasPrefix(d.fstype, "nfs") && d.address() == "" && !strings.Contains(d.device, ":/"):
		return nil, spec.Invalidf("driver option device %q has no server; write HOST:/PATH or add o: addr=HOST", d.device)
	}
	if bind {
		d.fstype = ""
	}
	return d, nil
}

func (d *driverOpts) address() string {
	for _, o := range d.data {
		if v, ok := strings.CutPrefix(o, "addr="); ok {
			return v
		}
	}
	return ""
}

// mount makes target show d; it is no error when it does already.
func (d *driverOpts) mount(ctx context.Context, target string) error {
	mounted, err := isMountPoint(target)
	if err != nil || mounted {
		return err
	}
	data := slices.Clone(d.data)
	if strings.HasPrefix(d.fstype, "nfs") || d.fstype == "cifs" {
		if data, err = d.resolve(ctx); err != nil {
			return err
		}
	}
	flags := d.flags
	if flags&unix.MS_BIND != 0 {
		flags &= unix.MS_BIND | unix.MS_REC // the kernel takes the others in a second step only
	}
	if err := unix.Mount(d.device, target, d.fstype, flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mount %s: %w", d.device, err)
	}
	if more := d.flags &^ (unix.MS_BIND | unix.MS_REC); d.flags&unix.MS_BIND != 0 && more != 0 {
		if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|more, ""); err != nil {
			return errors.Join(fmt.Errorf("mount %s: %w", d.device, err), unix.Unmount(target, unix.MNT_DETACH))
		}
	}
	return nil
}

// resolve replaces the name of a server by its address, since the kernel
// knows no names.
func (d *driverOpts) resolve(ctx context.Context) ([]string, error) {
	host := d.address()
	if host == "" {
		if d.fstype == "cifs" {
			host, _, _ = strings.Cut(strings.TrimPrefix(d.device, "//"), "/")
		} else {
			host, _, _ = strings.Cut(d.device, ":/")
		}
	}
	host = strings.Trim(host, "[]")
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("find server %s: %w", host, err)
	}
	key := "addr="
	if d.fstype == "cifs" {
		key = "ip="
	}
	out := slices.DeleteFunc(slices.Clone(d.data), func(o string) bool { return strings.HasPrefix(o, "addr=") })
	return append(out, key+addrs[0]), nil
}

// unmountAll unmounts what is mounted on path, all layers of it.
func unmountAll(path string) error {
	for {
		mounted, err := isMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(path, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

func isMountPoint(path string) (bool, error) {
	under, err := mountsUnder(path)
	return err == nil && slices.Contains(under, realPath(path)), err
}

// mountsUnder lists the mount points at and below path.
func mountsUnder(path string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parseMounts(string(b), realPath(path)), nil
}

func realPath(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path)
}

func parseMounts(info, path string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []string
	for line := range strings.Lines(info) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if p := unescape.Replace(f[4]); p == path || strings.HasPrefix(p, path+"/") {
			out = append(out, p)
		}
	}
	return out
}

package containerd

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Create implements agent.Runtime.
func (r *Runtime) Create(ctx context.Context, c agent.Container) error {
	if err := r.create(ctx, c); err != nil {
		return fmt.Errorf("create container of %s: %w", c.Name, err)
	}
	return nil
}

func (r *Runtime) create(ctx context.Context, c agent.Container) error {
	img, err := r.image(ctx, c.Image.Ref)
	if err != nil {
		return err
	}
	var images []agent.Mount
	c.Mounts, images = r.imageSources(string(c.Task), c.Mounts)
	rec, err := r.container(ctx, c, img)
	if err != nil {
		return err
	}
	maps.Copy(rec.Labels, imageLabels(rec.ID, rec.Snapshotter, images))
	// A large volume takes its time.
	fill := img
	if c.Fill != "" {
		if fill, err = r.image(ctx, c.Fill); err != nil {
			return err
		}
	}
	if err := r.copyUp(ctx, c.Mounts, fill); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	// The container comes before its file system: it holds on to it from then
	// on, and whatever is half made is found by List.
	made, err := r.client.ContainerService().Create(ctx, rec)
	if isExists(err) {
		made, err = r.client.ContainerService().Get(ctx, rec.ID)
	}
	if err != nil {
		return classify(err)
	}
	sn := r.client.SnapshotService(made.Snapshotter)
	mounts, err := sn.Prepare(ctx, made.SnapshotKey, img.chain, snapshots.WithLabels(map[string]string{labelTask: rec.ID}))
	if isExists(err) {
		mounts, err = sn.Mounts(ctx, made.SnapshotKey)
	}
	if isNotFound(err) {
		r.dropImage(c.Image.Ref)
		return spec.Unavailablef("the unpacked layers of image %s are gone from this node; they are made again", c.Image.Ref)
	}
	if err != nil {
		return fmt.Errorf("make file system: %w", classify(err))
	}
	if err := r.viewImages(ctx, made, images); err != nil {
		return err
	}
	r.remember(made, mounts)
	return nil
}

// container makes containerd's record of c.
func (r *Runtime) container(ctx context.Context, c agent.Container, img *image) (containers.Container, error) {
	id := string(c.Task)
	if id == "" || strings.ContainsAny(id, "/.") {
		return containers.Container{}, spec.Invalidf("%q is no task ID", id)
	}
	if img.hazard != nil {
		return containers.Container{}, img.hazard
	}
	runtime, err := r.runtimePath(c.Template.Runtime)
	if err != nil {
		return containers.Container{}, err
	}
	o, err := r.specOptions(c, img)
	if err != nil {
		return containers.Container{}, err
	}
	if trees, err := kernelAtLeast(o.Kernel, "5.12"); err == nil && trees {
		o.ReadOnlyTrees = slices.Contains(r.canDo(runtime).MountOptions, "rro")
	}
	s, err := Spec(c, o)
	if err != nil {
		return containers.Container{}, err
	}
	if err := r.injectDevices(s, c.Template.DeviceRequests); err != nil {
		return containers.Container{}, err
	}
	encoded, err := typeurl.MarshalAny(s)
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode OCI spec: %w", err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime, Root: r.runcRoot()})
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode runtime options: %w", err)
	}
	_, snapshotter, err := r.snapshots(ctx)
	if err != nil {
		return containers.Container{}, err
	}
	labels := map[string]string{
		labelTask: id, labelStack: c.Stack, labelService: c.Service, labelName: c.Name,
		labelStdout: c.Stdout, labelStderr: c.Stderr, labelCgroup: s.Linux.CgroupsPath,
	}
	if c.Template.TTY {
		labels[labelTTY], labels[labelStderr] = "true", ""
	}
	if c.Stage > 0 {
		labels[labelStage] = strconv.Itoa(c.Stage)
	}
	if c.Template.StdinOpen {
		labels[labelStdin] = r.dir("stdin", id)
	}
	if c.Template.Resources.RealtimeRuntime > 0 {
		labels[labelRealtime] = "true"
	}
	return containers.Container{
		ID:          id,
		Labels:      labels,
		Image:       c.Image.Ref,
		Runtime:     containers.RuntimeInfo{Name: runtimeName, Options: opts},
		Spec:        encoded,
		Snapshotter: snapshotter,
		SnapshotKey: id,
	}, nil
}

// specOptions gathers what the spec of c needs of this node.
func (r *Runtime) specOptions(c agent.Container, img *image) (SpecOptions, error) {
	o := SpecOptions{
		Passwd:       img.passwd,
		Group:        img.group,
		CgroupParent: r.cgroupParent(),
		Unified:      cgroupUnified(),
		NoFile:       openFilesLimit(),
		Capabilities: nodeCapabilities(),
		NoSwapLimit:  !swapLimited(),
		NoRealtime:   !realtimeShared(),
		Kernel:       kernelRelease(),
		AppArmor:     appArmorProfiles(),
		Init:         r.c.Binary,
	}
	for _, d := range c.Template.Devices {
		found, err := hostDevices(d.Source)
		if err != nil {
			return o, err
		}
		o.Devices = append(o.Devices, found...)
	}
	if c.Template.Privileged {
		found, err := hostDevices("/dev")
		if err != nil {
			return o, err
		}
		o.Devices = append(o.Devices, found...)
	}
	if b := c.Template.Resources.BlockIO; b != nil {
		o.NoBlockWeight = !blocksWeighed()
		o.BlockDevices = blockDevices(b)
	}
	return o, nil
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// appArmorProfiles are those that the kernel has loaded; nil when it has none.
func appArmorProfiles() []string {
	b, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return nil
	}
	return parseProfiles(string(b))
}

// parseProfiles reads lines of "NAME (MODE)".
func parseProfiles(s string) []string {
	var names []string
	for line := range strings.Lines(s) {
		if i := strings.LastIndex(line, " ("); i > 0 {
			names = append(names, line[:i])
		}
	}
	return names
}

// blockDevices looks up the devices that limits name; those that do not exist
// are left out.
func blockDevices(b *spec.BlockIO) map[string]specs.LinuxDevice {
	found := map[string]specs.LinuxDevice{}
	add := func(path string) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			return
		}
		if d, ok := device(path, &st); ok {
			found[path] = d
		}
	}
	for _, d := range b.WeightDevices {
		add(d.Path)
	}
	for _, d := range slices.Concat(b.ReadBytes, b.WriteBytes, b.ReadOps, b.WriteOps) {
		add(d.Path)
	}
	return found
}

// hostDevices returns the device node at path, or all in the folder at path.
func hostDevices(path string) ([]specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, spec.Invalidf("device %s cannot be used on this node: %v", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		d, ok := device(path, &st)
		if !ok {
			return nil, spec.Invalidf("%s is no device", path)
		}
		return []specs.LinuxDevice{d}, nil
	}
	var found []specs.LinuxDevice
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, e := range entries {
		sub := filepath.Join(path, e.Name())
		switch e.Name() {
		case "pts", "shm", "fd", "mqueue", ".udev", "console":
			continue // made by the runtime, or meaningless in there
		}
		if e.IsDir() {
			more, err := hostDevices(sub)
			if err != nil {
				return nil, err
			}
			found = append(found, more...)
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(sub, &st) != nil {
			continue // gone since
		}
		if d, ok := device(sub, &st); ok {
			found = append(found, d)
		}
	}
	return found, nil
}

func device(path string, st *unix.Stat_t) (specs.LinuxDevice, bool) {
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFCHR:
		kind = "c"
	default:
		return specs.LinuxDevice{}, false
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: path, Type: kind,
		Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, true
}

// openFilesLimit is the limit of open files that containers get: where the
// node itself may not raise limits, it is at most its own.
func openFilesLimit() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max >= defaultNoFile {
		return defaultNoFile
	}
	if slices.Contains(nodeCapabilities(), "CAP_SYS_RESOURCE") {
		return defaultNoFile
	}
	return l.Max
}

// nodeCapabilities are those that this process may hand on.
func nodeCapabilities() []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil
	}
	permitted := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	has := []string{}
	for n, name := range allCaps {
		if permitted&(1<<n) != 0 {
			has = append(has, name)
		}
	}
	return has
}

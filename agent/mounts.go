package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// prepared is what actMounts has made for one task.
type prepared struct {
	mounts         []Mount
	hostname       string
	stdout, stderr string // FIFOs
	sink           *spec.LogSink
	// env is the file of secret variables; empty for none.
	env string
	// live are the versions of the files that change in running tasks.
	live map[spec.DatumKey]spec.ContentID
}

func (a *Agent) taskDir(t spec.TaskID) string { return filepath.Join(a.c.RunDir, "tasks", string(t)) }
func (a *Agent) anonDir(t spec.TaskID) string { return filepath.Join(a.c.DataDir, "anon", string(t)) }

// LogDir is the folder of a task's log, for ReadLogs.
func LogDir(dataDir string, t spec.TaskID) string { return filepath.Join(dataDir, "logs", string(t)) }

// prepare makes everything of the node's file system that a container needs.
// It may be repeated at any time. Errors of class spec.ErrInvalid cannot be
// mended by repeating.
//
// The files that tell of the network are those of the task that has it.
func (a *Agent) prepare(ctx context.Context, o orders, image *ImageConfig, had map[spec.DatumKey]spec.ContentID) (*prepared, error) {
	t, tmpl, vols, net := o.task, o.tmpl, o.vols, o.network()
	if err := checkFilled(tmpl); err != nil {
		return nil, err
	}
	dir := a.taskDir(t.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of task: %w", err)
	}
	host, err := readHostInfo()
	if err != nil {
		return nil, err
	}
	gateways, err := a.gateways(net.task, net.tmpl)
	if err != nil {
		return nil, err
	}
	etc, err := compileEtc(net.task, net.tmpl, host, gateways)
	if err != nil {
		return nil, err
	}
	if err := writeEtc(dir, etc); err != nil {
		return nil, err
	}
	a.effect("etc files")
	p := &prepared{hostname: strings.TrimSpace(etc.hostname)}
	if err := a.prepareLog(t.ID, tmpl, p); err != nil {
		return nil, err
	}
	if tmpl.HasData() {
		if p.live, err = a.prepareData(ctx, t, tmpl, o.svc, had); err != nil {
			return nil, err
		}
		if len(tmpl.SecretEnv) > 0 {
			p.env = a.data.env(t.ID)
		}
	}
	taken := map[string]bool{} // :: clean target
	for i, m := range tmpl.Mounts {
		taken[path.Clean(m.Target)] = true
		mount, err := a.prepareMount(ctx, t, tmpl, vols, i)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		p.mounts = append(p.mounts, mount)
	}
	for i, target := range image.Volumes {
		if taken[path.Clean(target)] {
			continue
		}
		source := filepath.Join(a.anonDir(t.ID), strconv.Itoa(i))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return nil, fmt.Errorf("make anonymous volume %s: %w", target, err)
		}
		a.effect("anonymous volume")
		p.mounts = append(p.mounts, Mount{Source: source, Target: target, CopyUp: true})
	}
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		if target := "/etc/" + name; !taken[target] {
			p.mounts = append(p.mounts, Mount{Source: filepath.Join(dir, name), Target: target})
		}
	}
	// A folder is mounted before what is mounted in it.
	slices.SortStableFunc(p.mounts, func(x, y Mount) int { return cmp.Compare(depth(x.Target), depth(y.Target)) })
	return p, nil
}

func depth(target string) int {
	if target = path.Clean(target); target == "/" {
		return 0
	}
	return strings.Count(target, "/")
}

// prepareLog makes the FIFOs and the log's folder.
func (a *Agent) prepareLog(t spec.TaskID, tmpl *spec.Template, p *prepared) error {
	if tmpl.Log.Disabled {
		return nil
	}
	logs := LogDir(a.c.DataDir, t)
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return fmt.Errorf("make folder of log: %w", err)
	}
	p.stdout = filepath.Join(a.taskDir(t), "stdout")
	fifos := []string{p.stdout}
	if !tmpl.TTY {
		p.stderr = filepath.Join(a.taskDir(t), "stderr")
		fifos = append(fifos, p.stderr)
	}
	for _, f := range fifos {
		if err := unix.Mkfifo(f, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make FIFO %s: %w", f, err)
		}
	}
	a.effect("fifos")
	p.sink = &spec.LogSink{
		Task: t, Stdout: p.stdout, Stderr: p.stderr, File: filepath.Join(logs, logName),
		MaxSize: tmpl.Log.MaxSize, MaxFiles: tmpl.Log.MaxFiles,
	}
	if p.sink.MaxSize <= 0 {
		p.sink.MaxSize = spec.DefaultLogSize
	}
	if p.sink.MaxFiles <= 0 {
		p.sink.MaxFiles = spec.DefaultLogFiles
	}
	return nil
}

// prepareMount makes the source of the i-th mount of a template.
func (a *Agent) prepareMount(ctx context.Context, t *spec.Task, tmpl *spec.Template, vols []spec.Volume, i int) (Mount, error) {
	m := tmpl.Mounts[i]
	out := Mount{Target: m.Target, ReadOnly: m.ReadOnly, NonRecursive: m.NonRecursive, Propagation: m.Propagation}
	var err error
	switch m.Type {
	case spec.MountTmpfs:
		out.Tmpfs, out.Options = true, tmpfsOptions(m)
	case spec.MountBind:
		out.Tree = treeMode(m)
		out.Source, err = a.prepareBind(m)
	case spec.MountContent:
		out.ReadOnly = true
		out.Source, err = a.prepareContent(ctx, t.ID, i, m)
	case spec.MountSecret, spec.MountConfig:
		out = a.data.mount(t.ID, i, &m)
	case spec.MountVolume:
		out.CopyUp = !m.NoCopy && m.Subpath == ""
		out.Source, err = a.prepareVolume(ctx, t, vols, m)
	case spec.MountImage:
		out.ReadOnly, out.Subpath = true, m.Subpath
		out.Image, err = a.prepareImage(ctx, m, tmpl.Platform)
	default:
		err = spec.Invalidf("mounts of type %q are not known to this node", m.Type)
	}
	return out, err
}

func treeMode(m spec.Mount) TreeMode {
	switch {
	case !m.ReadOnly, m.NonRecursive, m.Submounts == "writable":
		return TreeAsIs
	case m.Submounts == "readonly":
		return TreeStrict
	}
	return TreeReadOnly
}

func (a *Agent) prepareBind(m spec.Mount) (string, error) {
	if !filepath.IsAbs(m.Source) {
		return "", spec.Invalidf("the source %q is not an absolute path", m.Source)
	}
	_, err := os.Stat(m.Source)
	switch {
	case err == nil:
		return m.Source, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the source: %w", err)
	case m.MustExist:
		return "", spec.Invalidf("the source %s does not exist on this node; make it, or let it be made (create_host_path: true)", m.Source)
	}
	if err := os.MkdirAll(m.Source, 0o755); err != nil {
		return "", fmt.Errorf("make the source: %w", err)
	}
	a.effect("bind source")
	return m.Source, nil
}

// prepareContent returns the shared copy of a content, or one for this task
// alone when the mount says whose the files are.
func (a *Agent) prepareContent(ctx context.Context, t spec.TaskID, i int, m spec.Mount) (string, error) {
	o := owner{uid: m.UID, gid: m.GID, mode: m.Mode}
	if o.empty() {
		return a.blobs.ensure(ctx, m.Content)
	}
	dir := filepath.Join(a.taskDir(t), "content")
	dst := filepath.Join(dir, strconv.Itoa(i))
	if _, err := os.Lstat(dst); err == nil {
		return dst, nil
	}
	files, err := a.blobs.get(ctx, m.Content)
	if err != nil {
		return "", err
	}
	tmp := dst + ".new"
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.RemoveAll(tmp)); err != nil {
		return "", fmt.Errorf("write content: %w", err)
	}
	if err := writeContent(tmp, files, o, false); err != nil {
		return "", fmt.Errorf("write content: %w", err)
	}
	if err := os.Rename(tmp, dst); err != nil {
		return "", fmt.Errorf("write content: %w", err)
	}
	a.effect("content copy")
	return dst, nil
}

func (a *Agent) prepareImage(ctx context.Context, m spec.Mount, platform string) (ref string, err error) {
	image, err := a.c.Images.Ensure(ctx, ImageRequest{Image: m.Source, Digest: m.Digest, Platform: platform})
	if errors.Is(err, spec.ErrNotFound) {
		err = spec.Invalidf("%v", err) // asking again does not help
	}
	return image.Ref, err
}

func (a *Agent) prepareVolume(ctx context.Context, t *spec.Task, vols []spec.Volume, m spec.Mount) (string, error) {
	b := slices.IndexFunc(t.Volumes, func(b spec.VolumeBinding) bool { return b.Target == m.Target })
	if b < 0 {
		return "", spec.Unavailablef("the managers have not said yet which volume it is")
	}
	v := slices.IndexFunc(vols, func(v spec.Volume) bool { return v.ID == t.Volumes[b].ID })
	if v < 0 {
		return "", spec.Unavailablef("the managers have not described volume %s yet", t.Volumes[b].Name)
	}
	data, err := a.vols.use(ctx, vols[v], func() ([]spec.ContentFile, error) { return a.blobs.get(ctx, vols[v].Spec.Seed) })
	if err != nil {
		return "", err
	}
	return subpath(data, m.Subpath)
}

// tmpfsOptions are Docker's, but for what the file says.
func tmpfsOptions(m spec.Mount) []string {
	var out []string
	for _, o := range []string{"noexec", "nosuid", "nodev"} {
		if !slices.Contains(m.Options, strings.TrimPrefix(o, "no")) && !slices.Contains(m.Options, o) {
			out = append(out, o)
		}
	}
	out = append(out, m.Options...)
	if m.Size > 0 {
		out = append(out, fmt.Sprintf("size=%d", m.Size))
	}
	if m.Mode != nil {
		out = append(out, fmt.Sprintf("mode=%o", *m.Mode&0o7777))
	}
	return out
}

// sandbox is the network side of a task.
func (a *Agent) sandbox(t *spec.Task, tmpl *spec.Template) spec.Sandbox {
	s := spec.Sandbox{Task: t.ID, Name: spec.TaskName(t, a.c.NodeName), Stack: t.Stack, Mode: tmpl.NetworkMode, Addresses: t.Addresses, DNS: tmpl.DNS}
	for k, v := range tmpl.Sysctls {
		if strings.HasPrefix(k, "net.") {
			if s.Sysctls == nil {
				s.Sysctls = map[string]string{}
			}
			s.Sysctls[k] = v
		}
	}
	return s
}

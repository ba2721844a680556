package compose

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// defaultDatumMode is the mode of secrets and configs that say nothing else.
const defaultDatumMode = 0o444

// relativeBind is what becomes of a path of the client, which no node has: a
// read-only content, or a volume that the content seeds.
type relativeBind struct {
	name    string // as written
	abs     string
	writers bool // some service may write to it
	content spec.ContentID
	volume  string
	refusal string
	hint    string
	note    string
}

// surveyBinds decides for every relative path what it becomes, for all
// services alike.
func (c *conversion) surveyBinds(services []string) {
	for _, name := range services {
		for _, v := range c.p.Services[name].Volumes {
			if v.Type != types.VolumeTypeBind || !isRelative(v.Source) || spec.HasPlaceholder(v.Source) || c.pinned(name, v) {
				continue
			}
			abs := c.resolve(v.Source)
			b := c.binds[abs]
			if b == nil {
				b = &relativeBind{name: v.Source, abs: abs}
				c.binds[abs] = b
			}
			b.writers = b.writers || !v.ReadOnly
		}
	}
	for _, abs := range sortedKeys(c.binds) {
		c.decideBind(c.binds[abs])
	}
}

// windowsPath begins with a drive.
var windowsPath = regexp.MustCompile(`^[A-Za-z]:[\\/]|^\\\\`)

func isRelative(source string) bool {
	return source != "" && !filepath.IsAbs(source) && !windowsPath.MatchString(source)
}

// bindVolumeName derives the name of a volume from the path it stands for: a
// readable part, and a hash that keeps different paths apart.
func bindVolumeName(source string) string {
	source = filepath.ToSlash(filepath.Clean(source))
	sum := sha256.Sum256([]byte(source))
	slug := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(source), "-"), "-")
	if len(slug) > 40 {
		slug = slug[len(slug)-40:]
	}
	return "bind-" + strings.TrimLeft(slug+"-"+hex.EncodeToString(sum[:])[:6], "-")
}

// placed is a mount and where it was written.
type placed struct {
	spec.Mount
	at path
}

func (c *conversion) mounts(at path, s types.ServiceConfig, t *spec.Template) []spec.Mount {
	var all []placed
	for i, v := range s.Volumes {
		where := c.volumePath(at, i, v)
		if m, ok := c.mount(where, v); ok {
			all = append(all, placed{m, where})
		}
	}
	for i, t := range s.Tmpfs {
		target, opts, _ := strings.Cut(t, ":")
		m := spec.Mount{Type: spec.MountTmpfs, Target: filepath.Clean(target)}
		if opts != "" {
			m.Options = strings.Split(opts, ",")
		}
		all = append(all, placed{m, at.key("tmpfs").index(i)})
	}
	general := c.generalOnChange(at, s)
	var secrets, configs []types.FileReferenceConfig
	for _, r := range s.Secrets {
		secrets = append(secrets, types.FileReferenceConfig(r))
	}
	for _, r := range s.Configs {
		configs = append(configs, types.FileReferenceConfig(r))
	}
	all = append(all, c.dataMounts(at, spec.DatumSecret, secrets, t, general)...)
	all = append(all, c.dataMounts(at, spec.DatumConfig, configs, t, general)...)
	slices.SortStableFunc(all, func(a, b placed) int { return cmp.Compare(a.Target, b.Target) })
	var out []spec.Mount
	for i, m := range all {
		c.origins[at.key("template").key("mounts").index(i).String()] = m.at
		out = append(out, m.Mount)
	}
	return out
}

// volumePath is where a mount was written. Merged files may have changed the
// order, so the target decides.
func (c *conversion) volumePath(at path, i int, v types.ServiceVolumeConfig) path {
	at = at.key("volumes")
	list := c.tree.get(at...)
	if list == nil {
		return at
	}
	for j := range list.items {
		j = (i + j) % len(list.items)
		item := list.items[j]
		target := c.substitute(item.get("target").text())
		if item.kind == scalarNode {
			parts := strings.Split(c.substitute(item.text()), ":")
			target = parts[0]
			if len(parts) > 1 {
				target = parts[1]
			}
		}
		if filepath.Clean(target) == filepath.Clean(v.Target) {
			return at.index(j)
		}
	}
	return at
}

func (c *conversion) mount(at path, v types.ServiceVolumeConfig) (spec.Mount, bool) {
	m := spec.Mount{Type: spec.MountType(v.Type), Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
	if !filepath.IsAbs(v.Target) {
		hint := ""
		if v.Source == "" { // a name alone is taken for the target
			hint = "write " + v.Target + ":/PATH to mount the volume " + v.Target
		}
		c.refuse(at, hint, "the target %q is not an absolute path of the container", v.Target)
		return m, false
	}
	switch v.Type {
	case types.VolumeTypeVolume:
		if v.Source != "" {
			c.usedVolumes[v.Source] = true
		}
		if v.Volume != nil {
			m.NoCopy, m.Subpath = v.Volume.NoCopy, v.Volume.Subpath
		}
		if m.Subpath != "" && (filepath.IsAbs(m.Subpath) || !filepath.IsLocal(m.Subpath)) {
			c.refuse(at, "", "the subpath %q leaves the volume", m.Subpath)
		}
		if m.Source == "" && m.Subpath != "" {
			c.refuse(at, "name the volume", "an anonymous volume has no subpath")
		}
		return m, true
	case types.VolumeTypeTmpfs:
		m.Source = ""
		if v.Tmpfs != nil {
			m.Size = int64(v.Tmpfs.Size)
			if v.Tmpfs.Mode != 0 {
				mode := v.Tmpfs.Mode & 0o7777
				m.Mode = &mode
			}
		}
		return m, true
	case types.VolumeTypeBind:
		return c.bindMount(at, v, m)
	case types.VolumeTypeImage:
		return c.imageMount(at, v, m)
	case types.VolumeTypeNamedPipe:
		c.refuse(at, "use a volume, a bind or a tmpfs", "mounts of type npipe: %s", onlyWindows)
	default:
		c.refuse(at, "name the shared storage by driver_opts of a volume (type, o, device)", "mounts of type %s: there are no CSI drivers", v.Type)
	}
	return m, false
}

// imageMount mounts the files of an image, which never can be written to.
func (c *conversion) imageMount(at path, v types.ServiceVolumeConfig, m spec.Mount) (spec.Mount, bool) {
	if v.Source == "" {
		c.refuse(at, "set source", "an image to mount needs a name")
		return m, false
	}
	var err error
	if m.Source, m.Digest, err = NormalizeImage(v.Source); err != nil {
		c.refuse(at, "", "%v", err)
		return m, false
	}
	m.ReadOnly = true
	if v.Image == nil || v.Image.SubPath == "" {
		return m, true
	}
	if !filepath.IsLocal(v.Image.SubPath) {
		c.refuse(at, "write it from the root of the image, without a slash before it", "the subpath %q leaves the image", v.Image.SubPath)
		return m, false
	}
	m.Subpath = filepath.Clean(v.Image.SubPath)
	return m, true
}

func (c *conversion) bindMount(at path, v types.ServiceVolumeConfig, m spec.Mount) (spec.Mount, bool) {
	if windowsPath.MatchString(v.Source) {
		c.refuse(at, "use a path of the node or a volume", "%q is a path of Windows", v.Source)
		return m, false
	}
	if v.Source == "" {
		c.refuse(at, "set source", "a bind needs a source")
		return m, false
	}
	if v.Bind != nil {
		m.Propagation, m.MustExist = v.Bind.Propagation, !bool(v.Bind.CreateHostPath)
		switch r := v.Bind.Recursive; r { // the schema knows no others
		case "", "enabled":
		case "disabled":
			m.NonRecursive = true
		case "writable", "readonly":
			if isRelative(v.Source) && !c.pinned(at[1], v) {
				c.noEffect(at, "recursive: %s is about the mounts below a path of the node", r)
			} else if m.ReadOnly {
				m.Submounts = r
			} else if r == "readonly" {
				c.refuse(at, "add read_only: true", "recursive: readonly is for a bind that is read-only")
			}
		}
	}
	if !isRelative(v.Source) {
		m.Source = filepath.Clean(v.Source)
		if strings.HasSuffix(m.Source, "/docker.sock") {
			m.MustExist = true // a folder in its place would keep Docker from starting there one day
			c.note(at, "%s is the socket of a Docker engine on the node, which shows Docker's containers, not those of Wherry, and gives root on the node; a node without it rejects the task", m.Source)
		}
		return m, true
	}
	if spec.HasPlaceholder(v.Source) {
		c.refuse(at, "write an absolute path of the nodes", "a path of the client has no placeholders")
		return m, false
	}
	if c.pinned(at[1], v) {
		return c.pinMount(at, m)
	}
	return c.relative(at, m)
}

// relative turns the mount of a path of the client into that of a content or a
// volume.
func (c *conversion) relative(at path, m spec.Mount) (spec.Mount, bool) {
	b := c.binds[c.resolve(m.Source)]
	switch {
	case b == nil:
		return m, false
	case b.refusal != "":
		c.refuse(at, b.hint, "%s", b.refusal)
		return m, false
	case m.MustExist && !exists(b.abs):
		c.refuse(at, "create it, or remove create_host_path: false", "the path %s does not exist", b.name)
		return m, false
	}
	c.note(at, "%s", b.note)
	out := spec.Mount{Type: spec.MountContent, Target: m.Target, ReadOnly: true, Content: b.content}
	if b.volume != "" {
		out = spec.Mount{Type: spec.MountVolume, Source: b.volume, Target: m.Target, ReadOnly: m.ReadOnly}
	}
	return out, true
}

// id reads a numeric user or group.
func (c *conversion) id(at path, s string) *uint32 {
	if s == "" {
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		c.refuse(at, "", "%q is not a numeric ID", s)
		return nil
	}
	id := uint32(n)
	return &id
}

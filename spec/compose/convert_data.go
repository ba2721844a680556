package compose

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// variableName is what a shell takes for the name of a variable.
var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// datum is what became of a declared secret or config that a service uses.
type datum struct {
	spec spec.DatumSpec
	// shown is how errors call it, text its bytes; known is false for an external
	// one, whose bytes the cluster has.
	shown, text string
	known       bool
	// folder of a config, which is mounted as content.
	folder spec.ContentID
	// at is where it gets its bytes from.
	at path
	ok bool
}

// declared returns the secret or config of that name as Compose has it.
func (c *conversion) declared(k spec.DatumKind, name string) (types.FileObjectConfig, bool) {
	if k == spec.DatumSecret {
		d, ok := c.p.Secrets[name]
		return types.FileObjectConfig(d), ok
	}
	d, ok := c.p.Configs[name]
	return types.FileObjectConfig(d), ok
}

// datum returns a declared secret or config, reading it when it is first used.
func (c *conversion) datum(k spec.DatumKind, name string) *datum {
	key := spec.KeyOf(k, name)
	if c.data[key] == nil {
		c.data[key] = c.readDatum(k, name)
	}
	return c.data[key]
}

func (c *conversion) readDatum(k spec.DatumKind, name string) *datum {
	from, found := c.declared(k, name)
	top := path{string(k) + "s", name}
	d := &datum{at: top}
	if !found {
		return d // refused by checkConsistency
	}
	d.spec = spec.DatumSpec{External: bool(from.External), Labels: nonEmpty(from.Labels)}
	scoped := name
	if !d.spec.External {
		scoped = spec.ScopedName(c.p.Name, name)
	}
	if from.Name != scoped {
		d.spec.Name = from.Name
	}
	switch from.TemplateDriver {
	case "":
	case "golang":
		d.spec.Render = true
	default:
		c.refuse(top.key("template_driver"), suggestion(from.TemplateDriver, "golang"), "the driver %q does not exist, want golang", from.TemplateDriver)
	}
	if d.spec.External {
		c.externalDatum(k, top, from, d)
		return d
	}
	switch {
	case from.File != "":
		d.at = top.key("file")
		d.shown = from.File
		d.text, d.ok = c.fileDatum(k, d, from.File)
	case from.Environment != "":
		d.at, d.shown = top.key("environment"), from.Environment
		d.text, d.ok = c.p.Environment[from.Environment]
		if !d.ok {
			c.refuse(d.at, "set it in the environment, or in the .env file", "the variable %s is not set", from.Environment)
		}
	case from.Content != "" || c.tree.get(append(top, "content")...) != nil:
		d.at, d.shown, d.text, d.ok = top.key("content"), name, from.Content, true
	default: // which Compose has refused, or has lost while it was being refused for something else
		return d
	}
	if d.folder != "" || !d.ok {
		return d
	}
	d.known = true
	if len(d.text) > k.MaxSize() {
		d.ok = false
		c.refuse(d.at, "put it into the image or on a volume", "%s has %d bytes: a %s has at most %d KiB", d.shown, len(d.text), k, k.MaxSize()>>10)
		return d
	}
	if d.text == "" {
		c.note(d.at, "the %s is empty", k)
	}
	id, err := c.pack([]spec.ContentFile{{Path: ".", Mode: defaultDatumMode, Data: []byte(d.text)}})
	if err != nil {
		c.refuse(d.at, "", "%v", err)
		d.ok = false
	}
	d.spec.Content, d.spec.Size = id, len(d.text)
	return d
}

// externalDatum is what the cluster has by itself.
func (c *conversion) externalDatum(k spec.DatumKind, top path, from types.FileObjectConfig, d *datum) {
	d.ok = true
	for key, given := range map[string]bool{"file": from.File != "", "environment": from.Environment != "", "content": from.Content != "",
		"template_driver": from.TemplateDriver != "", "labels": len(from.Labels) > 0} {
		if given {
			c.refuse(top.key(key), fmt.Sprintf("leave it out; it is said when the %s is made by \"wherry %s create\"", k, k), "the %s is external and brings that along itself", k)
			d.ok = false
		}
	}
	d.spec.Render, d.spec.Labels = false, nil
}

// fileDatum reads the file of a secret or config. A config may also be a folder,
// as in Compose, which has no versions of its own.
func (c *conversion) fileDatum(k spec.DatumKind, d *datum, name string) (string, bool) {
	if c.misplaced(d.at) {
		return "", false
	}
	abs := c.resolve(name)
	files, _, err := readContent(abs)
	switch {
	case errors.Is(err, errTooLarge):
		c.refuse(d.at, "put it into the image or on a volume", "%s is too large: a %s has at most %d KiB", name, k, k.MaxSize()>>10)
		return "", false
	case err != nil:
		hint := "create it, or give the content by content:"
		if k == spec.DatumSecret {
			hint = "create it, or give the value by environment:"
		}
		c.refuse(d.at, hint, "the file %s cannot be read: %s", c.display(abs), reason(err))
		return "", false
	case !files[0].Dir:
		return string(files[0].Data), true
	case k == spec.DatumSecret:
		c.refuse(d.at, "declare one secret for each file", "%s is a folder, and a secret is a single file", name)
		return "", false
	case d.spec.Render:
		c.refuse(d.at, "declare one config for each file", "%s is a folder, and a template is a single file", name)
		return "", false
	}
	if d.folder, err = c.pack(files); err != nil {
		c.refuse(d.at, "", "%v", err)
	}
	return "", err == nil
}

// dataMounts converts services.*.secrets or configs.
func (c *conversion) dataMounts(at path, k spec.DatumKind, refs []types.FileReferenceConfig, t *spec.Template, general spec.OnChange) []placed {
	var out []placed
	list := at.key(string(k) + "s")
	for i, ref := range refs {
		where := c.datumPath(list, i, k, ref)
		d := c.datum(k, ref.Source)
		// Compose fills in the target.
		target := c.tree.get(where.key("target")...) != nil
		own, ok := c.ownOfDatum(where.key("x-wherry"), k, ref, target)
		m := c.datumMount(where, k, ref)
		if !ok || !d.ok {
			continue
		}
		if own.env != "" {
			t.SecretEnv = append(t.SecretEnv, spec.SecretVar{Name: own.env, Source: ref.Source})
			if !target {
				c.onlyVariable(where, ref)
				continue
			}
		}
		m.OnChange = general
		if own.onChange != nil {
			m.OnChange = *own.onChange
		}
		if m.Type == spec.MountContent && m.OnChange.Live() {
			if own.onChange != nil {
				c.refuse(where.key("x-wherry").key("on_change"), "mount the files one by one", "the config %s is a folder, whose files do not change in running tasks", ref.Source)
			}
			m.OnChange = ""
		}
		out = append(out, placed{m, where})
	}
	slices.SortFunc(t.SecretEnv, func(a, b spec.SecretVar) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// octalMode is how a mode is written.
var octalMode = regexp.MustCompile(`^0?o?[0-7]{1,4}$`)

// checkModes looks at the modes of secrets and configs as they were written,
// since Compose refuses all of a file for one that is none, and takes 440 for
// what nobody means by it.
func (l *loading) checkModes() {
	services := l.tree.get("services")
	if services == nil {
		return
	}
	for _, name := range services.keys {
		for _, k := range spec.DatumKinds {
			list := path{"services", name, string(k) + "s"}
			uses := l.tree.get(list...)
			if uses == nil || !l.active(services.get(name)) {
				continue
			}
			for i, use := range uses.items {
				if n := use.get("mode"); n.text() != "" {
					l.checkMode(list.index(i).key("mode"), n)
				}
			}
		}
	}
}

func (l *loading) checkMode(at path, n *node) {
	text := l.substitute(n.text())
	decimal := n.scalar.Tag == "!!int" && !strings.HasPrefix(text, "0")
	value, _ := strconv.Atoi(text)
	switch {
	case decimal && value > 0o7777, !decimal && !octalMode.MatchString(text):
		l.refuse(at, "write it in octal, such as 0440", "%q is no file mode", text)
	case decimal && octalMode.MatchString(text):
		l.note(at, "the decimal number %s is the mode %04o; write 0%s for what it looks like", text, value, text)
	}
}

// onlyVariable says that what concerns a file has no effect without one.
func (c *conversion) onlyVariable(where path, ref types.FileReferenceConfig) {
	for key, given := range map[string]bool{"uid": ref.UID != "", "gid": ref.GID != "", "mode": ref.Mode != nil} {
		if given {
			c.noEffect(where.key(key), "the secret is a variable and no file; set target for both")
		}
	}
}

// generalOnChange is what x-wherry of a service says of all its secrets and
// configs.
func (c *conversion) generalOnChange(at path, s types.ServiceConfig) spec.OnChange {
	keys, _ := s.Extensions["x-wherry"].(map[string]any)
	v, ok := keys["on_change"]
	if !ok {
		return ""
	}
	where := at.key("x-wherry").key("on_change")
	if len(s.Secrets)+len(s.Configs) == 0 {
		c.noEffect(where, "the service has neither secrets nor configs")
	}
	o, _ := c.onChange(where, v)
	return o
}

// datumPath is where a use was written; merged files may have changed the order.
func (c *conversion) datumPath(list path, i int, k spec.DatumKind, ref types.FileReferenceConfig) path {
	n := c.tree.get(list...)
	if n == nil {
		return list
	}
	for j := range n.items {
		j = (i + j) % len(n.items)
		item := n.items[j]
		source, target := item.get("source").text(), item.get("target").text()
		if item.kind == scalarNode {
			source = item.text()
		}
		source = c.substitute(source)
		if source == ref.Source && datumTarget(k, source, c.substitute(target)) == datumTarget(k, ref.Source, ref.Target) {
			return list.index(j)
		}
	}
	return list.index(i)
}

// ownDatum is what x-wherry says of one use of a secret or config.
type ownDatum struct {
	env      string
	onChange *spec.OnChange
}

func (c *conversion) ownOfDatum(at path, k spec.DatumKind, ref types.FileReferenceConfig, target bool) (ownDatum, bool) {
	var out ownDatum
	v, ok := ref.Extensions["x-wherry"]
	if !ok || v == nil {
		return out, true
	}
	keys, ok := v.(map[string]any)
	if !ok {
		c.refuse(at, "write for instance x-wherry: {on_change: none}", "%v is no mapping", v)
		return out, false
	}
	good := true
	if v, ok := keys["on_change"]; ok {
		var o spec.OnChange
		o, good = c.onChange(at.key("on_change"), v)
		out.onChange = &o
	}
	v, ok = keys["env"]
	if !ok || k != spec.DatumSecret {
		return out, good // a config has no such key, which the table says
	}
	out.env = fmt.Sprint(v)
	if !variableName.MatchString(out.env) {
		c.refuse(at.key("env"), "", "%q is not the name of a variable", out.env)
		good = false
	}
	if out.onChange != nil && out.onChange.Live() && !target {
		c.refuse(at.key("on_change"), "leave it out, or take the secret as a file", "a variable cannot change in a running process")
		return out, false
	}
	c.note(at.key("env"), "the secret is in the environment of the program: whatever it starts, and whoever may run wherry exec there, can read it, and many programs print theirs when they fail; a file is safer")
	return out, good
}

// onChange reads what a new version does to running tasks.
func (c *conversion) onChange(at path, v any) (spec.OnChange, bool) {
	s := strings.TrimSpace(fmt.Sprint(v))
	if s == "restart" {
		return "", true
	}
	o := spec.OnChange(s)
	if sig := o.Signal(); sig != "" {
		name := strings.ToUpper(sig)
		if name[0] > '9' && !strings.HasPrefix(name, "SIG") {
			name = "SIG" + name
		}
		o = spec.SignalOnChange(name)
	}
	if err := spec.CheckOnChange(o); err != nil || s == "" {
		if s == "" {
			err = spec.CheckOnChange(" ")
		}
		c.refuse(at, suggestion(s, "restart", "none"), "%v", err)
		return "", false
	}
	return o, true
}

// datumMount is the mount of a secret or config, but for what x-wherry says.
func (c *conversion) datumMount(at path, k spec.DatumKind, ref types.FileReferenceConfig) spec.Mount {
	d := c.datum(k, ref.Source)
	m := spec.Mount{Type: k.Mount(), Source: ref.Source, Target: ref.Target, ReadOnly: true}
	if d.folder != "" {
		m.Type, m.Source, m.Content = spec.MountContent, "", d.folder
	}
	m.Target = datumTarget(k, ref.Source, ref.Target)
	mode := uint32(defaultDatumMode)
	if ref.Mode != nil {
		mode = uint32(*ref.Mode) & 0o7777 // checkModes has refused more
	}
	m.Mode = &mode
	m.UID = c.id(at.key("uid"), ref.UID)
	m.GID = c.id(at.key("gid"), ref.GID)
	return m
}

// datumTarget is where a secret or config is mounted.
func datumTarget(k spec.DatumKind, source, target string) string {
	folder := "/"
	if k == spec.DatumSecret {
		folder = spec.SecretDir
	}
	if target = cmp.Or(target, source); !filepath.IsAbs(target) {
		target = filepath.Join(folder, target)
	}
	return filepath.Clean(target)
}

// declareData adds the secrets and configs that services use, and says of the others
// that nobody does.
func (c *conversion) declareData() {
	for _, k := range spec.DatumKinds {
		var names []string
		if k == spec.DatumSecret {
			names = sortedKeys(c.p.Secrets)
		} else {
			names = sortedKeys(c.p.Configs)
		}
		out := map[string]spec.DatumSpec{}
		for _, name := range names {
			d := c.data[spec.KeyOf(k, name)]
			if d == nil {
				c.noEffect(path{string(k) + "s", name}, "no active service uses the %s", k)
				continue
			}
			if d.ok && d.folder == "" {
				out[name] = d.spec
			}
		}
		if len(out) > 0 {
			c.stack.SetData(k, out)
		}
	}
	c.checkTemplates()
}

// checkTemplates refuses what will never render, where it was written.
func (c *conversion) checkTemplates() {
	resolved := c.stack
	resolved.ResolveData() // tells the mounts what is a template
	for _, p := range spec.CheckTemplates(&resolved, func(k spec.DatumKind, short string) (string, string, bool) {
		d := c.data[spec.KeyOf(k, short)]
		return d.shown, d.text, d.ok && d.known
	}) {
		d := c.data[spec.KeyOf(p.Kind, p.Name)]
		by := ""
		if p.Service != "" {
			by = fmt.Sprintf(" for service %s", p.Service)
		}
		c.refuse(d.at, "", "the template cannot be rendered%s: %v", by, p.Err)
	}
}

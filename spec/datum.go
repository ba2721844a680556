package spec

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// DatumKind tells secrets from configs. Together they are called data: bytes
// with a name that tasks get as files. What is said of one holds for the other
// but where the kinds are named.
type DatumKind string

// The kinds of data.
const (
	// DatumSecret: the bytes are sealed in the state, go only to nodes with a
	// task that uses them, are there in memory only, and leave by no other way.
	DatumSecret DatumKind = "secret"
	// DatumConfig: the bytes are no secret.
	DatumConfig DatumKind = "config"
)

// DatumKinds are both kinds, secrets first.
var DatumKinds = []DatumKind{DatumSecret, DatumConfig}

const (
	// MaxSecret is the largest secret in bytes.
	MaxSecret = 500 << 10
	// MaxConfig is the largest config in bytes.
	MaxConfig = 1000 << 10
	// MaxDatumVersions is how many versions of an external datum are listed.
	MaxDatumVersions = 20
)

// MaxSize is the largest datum of the kind in bytes.
func (k DatumKind) MaxSize() int {
	if k == DatumSecret {
		return MaxSecret
	}
	return MaxConfig
}

// Mount is the type of the mounts that show data of the kind.
func (k DatumKind) Mount() MountType { return MountType(k) }

// DatumSpec declares a secret or a config of a stack.
type DatumSpec struct {
	// Name overrides the cluster-wide name "stack_name".
	Name string `json:"name,omitempty"`
	// External: the datum must exist by itself. Data of other stacks are not
	// found that way.
	External bool `json:"external,omitempty"`
	// Content names the version. That of an external datum is the newest when
	// the stack is written, unless one is given, as an older revision of the
	// stack does that comes back.
	Content ContentID `json:"content,omitempty"`
	// Size of the datum in bytes, without its archive.
	Size int `json:"size,omitempty"`
	// Render: the bytes are a template that every node renders for its tasks.
	Render bool              `json:"render,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// ClusterName returns the cluster-wide name of the datum that a stack calls
// short. An external datum is not scoped by the stack.
func (d DatumSpec) ClusterName(stack, short string) string {
	return clusterName(d.Name, d.External, stack, short)
}

// Data returns the secrets or the configs that the stack declares.
func (s *Stack) Data(k DatumKind) map[string]DatumSpec {
	if k == DatumSecret {
		return s.Secrets
	}
	return s.Configs
}

// SetData replaces the secrets or the configs.
func (s *Stack) SetData(k DatumKind, m map[string]DatumSpec) {
	if k == DatumSecret {
		s.Secrets = m
	} else {
		s.Configs = m
	}
}

// Datum is the stored form of a secret or config that exists by itself. Those
// of stacks are in the revisions of these.
type Datum struct {
	Kind   DatumKind         `json:"kind"`             // user
	Name   string            `json:"name"`             // user
	Labels map[string]string `json:"labels,omitempty"` // user
	Render bool              `json:"render,omitempty"` // user
	// Versions, oldest first; the last one is in force. Older ones are listed as
	// long as their content is there.
	Versions []DatumVersion `json:"versions"` // user
	// Version is the log index of the last write.
	Version uint64 `json:"version"` // apply
}

// DatumVersion is one version of a datum.
type DatumVersion struct {
	Number  uint64    `json:"number"` // from 1
	Content ContentID `json:"content"`
	Size    int       `json:"size"` // bytes
	Created time.Time `json:"created"`
	Author  string    `json:"author,omitempty"`
}

// Newest is the version in force.
func (d *Datum) Newest() *DatumVersion { return &d.Versions[len(d.Versions)-1] }

// DatumKey names a datum within a stack: "secret tls".
type DatumKey string

// KeyOf returns the key of the datum that a stack calls short.
func KeyOf(k DatumKind, short string) DatumKey { return DatumKey(string(k) + " " + short) }

// OnChange says what a new version of a datum does to the tasks that have it.
// The zero value replaces them, as any change of their template does; with the
// others the file changes in the running container. "signal:SIGHUP" then also
// sends that signal.
type OnChange string

// OnChangeNone changes the file and does nothing else.
const OnChangeNone OnChange = "none"

const onChangeSignal = "signal:"

// SignalOnChange changes the file and then sends a signal.
func SignalOnChange(signal string) OnChange { return OnChange(onChangeSignal + signal) }

// Live reports whether the file changes in running tasks.
func (o OnChange) Live() bool { return o != "" }

// Signal is the signal to be sent after the change; empty for none.
func (o OnChange) Signal() string {
	s, ok := strings.CutPrefix(string(o), onChangeSignal)
	if !ok {
		return ""
	}
	return s
}

// Short is what people see of an ID: enough to tell versions apart.
func (id ContentID) Short() string {
	_, hash, _ := strings.Cut(string(id), ":")
	return hash[:min(len(hash), 12)]
}

// SecretVar gives a secret to a container as an environment variable.
type SecretVar struct {
	// Name of the variable.
	Name string `json:"name"`
	// Source is the stack-scoped name of the secret.
	Source string `json:"source"`
	// Content is the version, filled in when the stack is written.
	Content ContentID `json:"content,omitempty"`
}

// Datum names the datum that m shows; false for a mount of another kind.
func (m *Mount) Datum() (kind DatumKind, short string, ok bool) {
	switch m.Type {
	case MountSecret, MountConfig:
		return DatumKind(m.Type), m.Source, true
	}
	return "", "", false
}

// HasData reports whether the template uses secrets or configs.
func (t *Template) HasData() bool {
	return len(t.SecretEnv) > 0 || slices.ContainsFunc(t.Mounts, func(m Mount) bool { _, _, ok := m.Datum(); return ok })
}

// LiveKeys are the data whose files change in running tasks, sorted.
func (t *Template) LiveKeys() []DatumKey {
	var keys []DatumKey
	for i := range t.Mounts {
		if k, short, ok := t.Mounts[i].Datum(); ok && t.Mounts[i].OnChange.Live() {
			keys = append(keys, KeyOf(k, short))
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// LiveOf restricts the versions of a service to those that change in running
// tasks of the template; nil when there are none.
func (t *Template) LiveOf(versions map[DatumKey]ContentID) map[DatumKey]ContentID {
	var out map[DatumKey]ContentID
	for _, k := range t.LiveKeys() {
		if v, ok := versions[k]; ok {
			if out == nil {
				out = map[DatumKey]ContentID{}
			}
			out[k] = v
		}
	}
	return out
}

// Contents are all contents that the template refers to, in the order of its
// mounts and variables.
func (t *Template) Contents() []ContentID {
	var ids []ContentID
	for i := range t.Mounts {
		if id := t.Mounts[i].Content; id != "" {
			ids = append(ids, id)
		}
	}
	for _, v := range t.SecretEnv {
		if v.Content != "" {
			ids = append(ids, v.Content)
		}
	}
	return ids
}

// ResolveData fills in the versions of the data that the services use: what
// replaces tasks becomes part of their template, what changes in running ones
// becomes part of the service. Maps and slices that it changes are replaced, so
// that s may share them.
func (s *Stack) ResolveData() {
	if !slices.ContainsFunc(slices.Collect(maps.Values(s.Services)), func(v ServiceSpec) bool { return v.Live != nil || v.Template.HasData() }) {
		return
	}
	s.Services = maps.Clone(s.Services)
	for name, svc := range s.Services { // each on its own
		t := &svc.Template
		svc.Live = nil
		t.Mounts = slices.Clone(t.Mounts)
		for i := range t.Mounts {
			m := &t.Mounts[i]
			kind, short, ok := m.Datum()
			if !ok {
				continue
			}
			d := s.Data(kind)[short]
			m.Render, m.Content = d.Render, d.Content
			if m.OnChange.Live() {
				m.Content = ""
				if svc.Live == nil {
					svc.Live = map[DatumKey]ContentID{}
				}
				svc.Live[KeyOf(kind, short)] = d.Content
			}
		}
		t.SecretEnv = slices.Clone(t.SecretEnv)
		for i := range t.SecretEnv {
			t.SecretEnv[i].Content = s.Secrets[t.SecretEnv[i].Source].Content
		}
		s.Services[name] = svc
	}
}

// DatumUsers are the services that use a datum of the stack, sorted.
func (s *Stack) DatumUsers(k DatumKind, short string) []string {
	var out []string
	for name, svc := range s.Services {
		uses := slices.ContainsFunc(svc.Template.Mounts, func(m Mount) bool {
			mk, ms, ok := m.Datum()
			return ok && mk == k && ms == short
		})
		uses = uses || k == DatumSecret && slices.ContainsFunc(svc.Template.SecretEnv, func(v SecretVar) bool { return v.Source == short })
		if uses {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

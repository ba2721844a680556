package store

import (
	"reflect"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// firstFields are the fields of a template that every program knows, each with
// all below it unless that is listed by itself.
var firstFields = strings.Fields(`
	Image Digest Platform Entrypoint Command Env User GroupAdd WorkingDir Hostname Domainname TTY StdinOpen Labels Annotations
	Mounts.Type Mounts.Source Mounts.Target Mounts.ReadOnly Mounts.Content Mounts.UID Mounts.GID Mounts.Mode Mounts.Size Mounts.Options
	Mounts.Propagation Mounts.MustExist Mounts.NonRecursive Mounts.NoCopy Mounts.Subpath
	NetworkMode Networks.Network Networks.Aliases DNS DNSSearch DNSOptions ExtraHosts Health Restart StopSignal StopGrace
	Resources.NanoCPUs Resources.Memory Resources.MemorySwap Resources.Pids Resources.CPUShares Resources.CPUQuota Resources.CPUPeriod
	Resources.Cpuset Resources.ReserveCPUs Resources.ReserveMemory Resources.ShmSize Resources.OOMScoreAdj
	Ulimits Sysctls CapAdd CapDrop Privileged SecurityOpt ReadOnly Init PIDMode IPCMode Devices Log`)

// TestNewFieldsOfTemplatesNeedTheirFormat: an older manager stops at an entry
// with a field that it does not know, so such an entry must not reach it.
func TestNewFieldsOfTemplatesNeedTheirFormat(t *testing.T) {
	known := map[string]bool{}
	for _, f := range firstFields {
		known[f] = true
	}
	withFields(reflect.TypeFor[spec.Template](), "", func(name string, set func(reflect.Value)) {
		var tmpl spec.Template
		set(reflect.ValueOf(&tmpl).Elem())
		c := Command{PutStack: &PutStack{Stack: spec.Stack{Services: map[string]spec.ServiceSpec{"web": {Template: tmpl}}}}}
		got := c.NeedsFormat()
		switch {
		case known[name] && got != 1:
			t.Errorf("%s is known to all programs and needs format %d", name, got)
		case !known[name] && got == 1:
			t.Errorf("%s is not known to all programs, but needs no newer format", name)
		}
		delete(known, name)
	})
	for name := range known {
		t.Errorf("%s is no field of a template", name)
	}
}

// withFields calls do for every field of a struct, and for those of the
// structs that it holds or lists, with a function that makes the field alone
// other than zero.
func withFields(typ reflect.Type, prefix string, do func(name string, set func(reflect.Value))) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() != reflect.Struct || !strings.Contains(" Mounts Networks Resources ", " "+f.Name+" ") {
			do(prefix+f.Name, func(v reflect.Value) { fill(v.Field(i)) })
			continue
		}
		withFields(inner, prefix+f.Name+".", func(name string, set func(reflect.Value)) {
			do(name, func(v reflect.Value) {
				v = v.Field(i)
				if v.Kind() == reflect.Slice {
					v.Set(reflect.MakeSlice(v.Type(), 1, 1))
					v = v.Index(0)
				}
				set(v)
			})
		})
	}
}

// fill makes v other than zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem())
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Struct:
		fill(v.Field(0))
	default:
		panic("no value for " + v.Type().String())
	}
}

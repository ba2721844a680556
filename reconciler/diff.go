package reconciler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"wherry.dev/spec"
)

// diffFields compares two values field by field, in their JSON form. Either
// may be nil: then all fields of the other are added or removed. Paths are
// joined by dots, elements of lists are in brackets.
func diffFields(old, new any) []spec.FieldDiff {
	a, b := flatten(old), flatten(new)
	var out []spec.FieldDiff
	for _, path := range slices.Sorted(maps.Keys(union(a, b))) {
		if a[path] != b[path] {
			out = append(out, spec.FieldDiff{Path: path, Old: a[path], New: b[path]})
		}
	}
	return out
}

func union(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// diffPaths returns the fields of two templates that differ, without list
// indexes and parts of maps: what to name in one line.
func diffPaths(a, b *spec.Template) []string {
	var out []string
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range va.NumField() {
		x, _ := json.Marshal(va.Field(i).Interface())
		y, _ := json.Marshal(vb.Field(i).Interface())
		if !bytes.Equal(x, y) {
			name, _, _ := bytes.Cut([]byte(va.Type().Field(i).Tag.Get("json")), []byte(","))
			out = append(out, string(name))
		}
	}
	return out
}

// flatten returns the leaves of a value by path.
func flatten(v any) map[string]string {
	out := map[string]string{}
	if v == nil || reflect.ValueOf(v).Kind() == reflect.Pointer && reflect.ValueOf(v).IsNil() {
		return out
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("reconciler: %T does not encode: %v", v, err)) // no field of the model can fail
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		panic(fmt.Sprintf("reconciler: %T does not decode: %v", v, err))
	}
	flattenInto(out, "", tree)
	return out
}

func flattenInto(out map[string]string, path string, v any) {
	switch v := v.(type) {
	case nil:
	case map[string]any:
		if len(v) == 0 && path != "" {
			out[path] = "{}" // that it is there says something
		}
		for k, x := range v {
			if path != "" {
				k = path + "." + k
			}
			flattenInto(out, k, x)
		}
	case []any:
		if len(v) == 0 {
			out[path] = "[]"
		}
		for i, x := range v {
			flattenInto(out, path+"["+strconv.Itoa(i)+"]", x)
		}
	case string:
		out[path] = v
	default:
		out[path] = fmt.Sprint(v)
	}
}

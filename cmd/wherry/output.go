package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"text/template"
	"time"

	"gopkg.in/yaml.v3"

	"wherry.dev/spec"
)

// show prints objects in the wanted format: as a table with the given header
// and rows, or as one array of the API's objects, or each through a template
// that sees the fields by their JSON names.
func show[T any](a *app, items []T, header []string, row func(T) []string) error {
	switch {
	case a.format == "table" || a.format == "":
		rows := make([][]string, 0, len(items))
		for _, it := range items {
			rows = append(rows, row(it))
		}
		return table(a.out, header, rows)
	case a.format == "json":
		if items == nil {
			items = []T{}
		}
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(items)
	case a.format == "yaml":
		v, err := plain(items)
		if err != nil {
			return err
		}
		enc := yaml.NewEncoder(a.out)
		enc.SetIndent(2)
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("print yaml: %w", err)
		}
		return enc.Close()
	case strings.Contains(a.format, "{{"):
		tpl, err := template.New("format").Funcs(template.FuncMap{"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		}}).Parse(a.format)
		if err != nil {
			return exitWith(exitUsage, "--format: %w", err)
		}
		for _, it := range items {
			v, err := plain(it)
			if err != nil {
				return err
			}
			if err := tpl.Execute(a.out, v); err != nil {
				return exitWith(exitUsage, "--format: %w", err)
			}
			fmt.Fprintln(a.out)
		}
		return nil
	}
	return exitWith(exitUsage, "--format %q: want table, json, yaml or a template with {{ }}", a.format)
}

// plain turns an object into maps and slices with its JSON names.
func plain(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("print: %w", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	var out any
	if err := dec.Decode(&out); err != nil {
		return nil, fmt.Errorf("print: %w", err)
	}
	return numbers(out), nil
}

// numbers turns json.Number into int64 where it fits, else into float64, so
// that YAML prints numbers and not quoted text.
func numbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = numbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = numbers(e)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
	}
	return v
}

// table prints rows in columns two spaces apart; the last column is not padded.
func table(w io.Writer, header []string, rows [][]string) error {
	width := make([]int, len(header))
	all := append([][]string{header}, rows...)
	for _, r := range all {
		for i, c := range r {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for _, r := range all {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c)
			if i < len(r)-1 {
				line.WriteString(strings.Repeat(" ", width[i]-len([]rune(c))+2))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ago prints how long ago t was, in one unit.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return short(time.Since(t))
}

func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// shortImage leaves out what Docker Hub's names have by default.
func shortImage(image string) string {
	image = strings.TrimPrefix(image, "docker.io/library/")
	image = strings.TrimPrefix(image, "docker.io/")
	if name, digest, ok := strings.Cut(image, "@"); ok && len(digest) > 19 {
		return name + "@" + digest[:19]
	}
	return image
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "KMGTP"
	i := -1
	for f >= unit && i < len(units)-1 {
		f /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func portText(p spec.Port) string {
	published := fmt.Sprint(p.Published)
	if p.HostIP != "" {
		published = net.JoinHostPort(p.HostIP, published)
	}
	return fmt.Sprintf("%s→%d/%s", published, p.Target, p.Protocol)
}

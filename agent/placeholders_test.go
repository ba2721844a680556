package agent_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
)

func TestPlaceholders(t *testing.T) {
	bubble(t, forever, func(n *node) {
		dir := t.TempDir()
		n.template.Placeholders = true
		n.template.Hostname = "{{.Service.Name}}-{{.Task.Slot}}"
		n.template.Env = map[string]string{"ALL": "{{.Node.Hostname}} {{.Node.ID}} {{.Node.Platform.OS}} {{.Node.Platform.Architecture}} {{.Task.ID}} {{.Task.Name}}"}
		n.template.Labels = map[string]string{"slot": "{{.Task.Slot}}"}
		n.template.Mounts = []spec.Mount{{Type: spec.MountBind, Source: dir + "/{{.Task.Name}}", Target: "/data"}}
		n.want(spec.DesiredRunning)
		settle(time.Second)
		c, _ := n.host.Container(task)
		if c.Template.Hostname != "shop_web-1" || c.Hostname != "shop_web-1" {
			t.Errorf("host name %q, %q", c.Template.Hostname, c.Hostname)
		}
		if want := "alpha n1 linux " + runtime.GOARCH + " 1-1 shop.web.1"; c.Template.Env["ALL"] != want {
			t.Errorf("environment %q, want %q", c.Template.Env["ALL"], want)
		}
		if c.Template.Labels["slot"] != "1" {
			t.Errorf("labels %v", c.Template.Labels)
		}
		if _, err := os.Stat(filepath.Join(dir, "shop.web.1")); err != nil || c.Mounts[0].Source != filepath.Join(dir, "shop.web.1") {
			t.Errorf("mounts %+v, %v", c.Mounts, err)
		}
		hosts, err := os.ReadFile(filepath.Join(n.run, "tasks", string(task), "hosts"))
		if err != nil || !strings.Contains(string(hosts), "10.0.1.7\tshop_web-1\n") {
			t.Errorf("hosts: %q, %v", hosts, err)
		}
	})
}

// TestPlaceholdersMakeANameTooLong: that shows only on the node.
func TestPlaceholdersMakeANameTooLong(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.template.Placeholders, n.template.Hostname = true, strings.Repeat("x", 60)+"{{.Task.Name}}"
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskRejected || !strings.Contains(s.Reason, "as its placeholders make it") {
			t.Errorf("status: %+v", s)
		}
	})
}

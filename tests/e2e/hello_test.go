//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"wherry.dev/tests/lab"
)

const helloFile = "../../examples/hello/stack.yml"

// TestHello runs the example as its README does.
func TestHello(t *testing.T) {
	l, h := oneHost(t)
	client := l.Plug("client")
	_ = client
	h.Must("apply", "-f", helloFile)

	if got := h.Must("ls", "--format", "{{.name}} {{.state}} {{.services}}"); strings.TrimSpace(got) != "hello running 3" {
		t.Errorf("ls: %q", got)
	}
	web := tasks(t, h, "hello/web")
	if len(web) != 2 {
		t.Fatalf("hello/web has %d tasks, want 2", len(web))
	}

	t.Run("published page", func(t *testing.T) {
		for from, url := range map[string]string{
			h.Name:   "http://127.0.0.1:8080/",
			"client": "http://" + h.IP + ":8080/",
		} {
			page, err := fetch(l, from, url)
			if err != nil || !strings.Contains(page, "Hello from Wherry") || !strings.Contains(page, "visit number") {
				t.Errorf("from %s: %v\n%s", from, err, page)
			}
		}
		// A container reaches it by the host's address, too.
		if out := h.Must("exec", "hello/api", "--", "timeout", "5", "wget", "-q", "-O", "-", "http://"+h.IP+":8080/"); !strings.Contains(out, "visit number") {
			t.Errorf("from a container: %s", out)
		}
	})

	t.Run("names", func(t *testing.T) {
		for _, name := range []string{"store", "hello_store", "tasks.store", "STORE"} {
			r := h.Wherry("exec", "hello/web", "--", "nslookup", name, "127.0.0.11")
			want := strings.TrimSpace(h.Must("service", "inspect", "hello/store", "--format", "{{(index .vips 0).address}}"))
			if name == "tasks.store" {
				want = strings.Split(one(t, h, "hello/store").Addresses[0], "/")[0]
			}
			if r.Code != 0 || !strings.Contains(r.Stdout, want) {
				t.Errorf("%s: exit %d, want %s:\n%s%s", name, r.Code, want, r.Stdout, r.Stderr)
			}
		}
		if r := h.Wherry("exec", "hello/web", "--", "nslookup", "nobody", "127.0.0.11"); r.Code == 0 {
			t.Errorf("a name that does not exist resolves:\n%s", r.Stdout)
		}
	})

	t.Run("a killed container comes back with its volume", func(t *testing.T) {
		before := one(t, h, "hello/store")
		visits := strings.TrimSpace(h.Must("exec", "hello/store", "--", "sh", "-c", "wc -l </data/visits"))
		if err := syscall.Kill(before.Status.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, soon, "another process runs", func() error {
			now := one(t, h, "hello/store")
			if now.Status.PID == 0 || now.Status.PID == before.Status.PID {
				return fmt.Errorf("pid %d", now.Status.PID)
			}
			_, err := os.Stat(fmt.Sprintf("/proc/%d", now.Status.PID))
			return err
		})
		now := one(t, h, "hello/store")
		if now.ID != before.ID {
			t.Errorf("task %s was replaced by %s, want another attempt of it", before.ID, now.ID)
		}
		if n := len(now.Attempts); n != 1 || now.Attempts[0].Signal != 9 || now.Attempts[0].ExitCode != 137 {
			t.Errorf("attempts: %+v, want one, killed by signal 9", now.Attempts)
		}
		if got := strings.TrimSpace(h.Must("exec", "hello/store", "--", "sh", "-c", "wc -l </data/visits")); got != visits {
			t.Errorf("visits after the restart: %s, before: %s", got, visits)
		}
	})

	t.Run("applying again changes nothing", func(t *testing.T) {
		r := h.Wherry("plan", "-f", helloFile, "--exit-code")
		if r.Code != 0 || !strings.Contains(r.Stdout, "nothing to do") {
			t.Errorf("plan: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		pid := one(t, h, "hello/api").Status.PID
		if r := h.Wherry("apply", "-f", helloFile); r.Code != 0 || !strings.Contains(r.Stderr, "unchanged") {
			t.Errorf("apply: exit %d\n%s", r.Code, r.Stderr)
		}
		if now := one(t, h, "hello/api").Status.PID; now != pid {
			t.Errorf("hello/api: pid %d became %d", pid, now)
		}
	})

	t.Run("scale", func(t *testing.T) {
		kept := map[string]int{}
		for _, ti := range tasks(t, h, "hello/web") {
			kept[ti.Name] = ti.Status.PID
		}
		h.Must("service", "scale", "hello/web=4")
		if n := len(tasks(t, h, "hello/web")); n != 4 {
			t.Errorf("%d tasks, want 4", n)
		}
		h.Must("service", "scale", "hello/web=2")
		lab.Eventually(t, soon, "two tasks left", func() error {
			if n := len(tasks(t, h, "hello/web")); n != 2 {
				return fmt.Errorf("%d tasks", n)
			}
			return nil
		})
		for _, ti := range tasks(t, h, "hello/web") {
			if kept[ti.Name] != ti.Status.PID {
				t.Errorf("%s: pid %d became %d by scaling", ti.Name, kept[ti.Name], ti.Status.PID)
			}
		}
	})

	t.Run("update replaces one task at a time", func(t *testing.T) {
		others := one(t, h, "hello/api").ID
		f := strings.ReplaceAll(mustRead(t, helloFile), "Hello from Wherry", "Ahoy")
		dir := copyDir(t, "../../examples/hello")
		if err := os.WriteFile(dir+"/stack.yml", []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
		plan := h.Wherry("plan", "-f", dir+"/stack.yml", "--exit-code")
		if plan.Code != 10 || strings.Count(plan.Stdout, "± task hello.web.") != 2 || !strings.Contains(plan.Stdout, "GREETING") {
			t.Errorf("plan: exit %d\n%s%s", plan.Code, plan.Stdout, plan.Stderr)
		}
		h.Must("apply", "-f", dir+"/stack.yml")
		page, err := fetch(l, "client", "http://"+h.IP+":8080/")
		if err != nil || !strings.Contains(page, "Ahoy") {
			t.Errorf("page after the update: %v\n%s", err, page)
		}
		if now := one(t, h, "hello/api").ID; now != others {
			t.Errorf("hello/api was replaced too: %s became %s", others, now)
		}
	})

	t.Run("remove keeps the volume", func(t *testing.T) {
		h.Must("rm", "hello")
		if got := h.Must("volume", "ls", "--format", "{{.name}} {{.in_use}}"); strings.TrimSpace(got) != "hello_data false" {
			t.Errorf("volumes: %q", got)
		}
		h.Must("apply", "-f", helloFile)
		if got := strings.TrimSpace(h.Must("exec", "hello/store", "--", "sh", "-c", "wc -l </data/visits")); got == "0" {
			t.Error("the volume is empty after rm and apply")
		}
		if r := h.Wherry("volume", "rm", "hello_data"); r.Code != 1 || !strings.Contains(r.Stderr, "used by task hello.store.1") {
			t.Errorf("volume rm of a used one: exit %d %s", r.Code, r.Stderr)
		}
	})
}

func mustRead(t *testing.T, f string) string {
	t.Helper()
	b, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return dir
}

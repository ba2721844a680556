package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// datum gives the managers a secret or config and returns its content.
func (n *node) datum(kind spec.DatumKind, text string) spec.ContentID {
	n.t.Helper()
	b, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o444, Data: []byte(text)}})
	if err != nil {
		n.t.Fatal(err)
	}
	id := spec.KeyedContentID([]byte("key"), b)
	if kind == spec.DatumSecret {
		if id, _, err = spec.SealContent([]byte("key"), b); err != nil {
			n.t.Fatal(err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.host.Contents[id] = b // opened by the managers
	return id
}

// live says which versions running tasks ought to have.
func (n *node) live(versions map[spec.DatumKey]spec.ContentID) {
	n.mu.Lock()
	n.wanted.Services = map[string]spec.WantedService{"shop/web": {ID: "1-9", Labels: map[string]string{"tier": "front"}, Live: versions}}
	n.mu.Unlock()
	n.want(spec.DesiredRunning)
}

func (n *node) sees(target, want string) {
	n.t.Helper()
	if got := n.host.File(task, target); got != want {
		n.t.Errorf("the task has %q at %s, want %q", got, target, want)
	}
}

const key, conf = spec.DatumKey("secret key"), spec.DatumKey("config conf")

// rotating is a node whose task has a secret that is changed with a signal, a
// config that is changed without, and a template of both.
func rotating(n *node) (v1, v2 map[spec.DatumKey]spec.ContentID) {
	n.template.Env = map[string]string{"PORT": "80"}
	n.template.Mounts = []spec.Mount{
		{Type: spec.MountSecret, Source: "key", Target: "/run/secrets/key", OnChange: spec.SignalOnChange("SIGHUP"), Mode: new(uint32(0o400))},
		{Type: spec.MountConfig, Source: "conf", Target: "/conf", OnChange: spec.OnChangeNone},
		{Type: spec.MountConfig, Source: "both", Target: "/both", OnChange: spec.SignalOnChange("SIGUSR1"), Render: true},
	}
	both := n.datum(spec.DatumConfig, `{{secret "key"}} {{config "conf"}} {{env "PORT"}} {{.Service.Name}} {{.Service.ID}} {{.Service.Labels.tier}} {{.Task.Name}} {{.Task.Slot}} {{.Node.Hostname}}`)
	v1 = map[spec.DatumKey]spec.ContentID{key: n.datum(spec.DatumSecret, "hunter1"), conf: n.datum(spec.DatumConfig, "conf1"), "config both": both}
	v2 = map[spec.DatumKey]spec.ContentID{key: n.datum(spec.DatumSecret, "hunter2"), conf: n.datum(spec.DatumConfig, "conf1"), "config both": both}
	return v1, v2
}

const bothText = " 80 shop_web 1-9 front shop.web.1 1 alpha"

func TestData(t *testing.T) {
	bubble(t, forever, func(n *node) {
		id := n.datum(spec.DatumSecret, "hunter2\n")
		n.template.Mounts = []spec.Mount{
			{Type: spec.MountSecret, Source: "key", Target: "/run/secrets/key", Content: id},
			{Type: spec.MountConfig, Source: "conf", Target: "/conf", Content: n.datum(spec.DatumConfig, "text"), Mode: new(uint32(0o750))},
		}
		n.template.SecretEnv = []spec.SecretVar{{Name: "A", Source: "key", Content: id}, {Name: "B", Source: "other", Content: n.datum(spec.DatumSecret, "x\r\n\n")}}
		n.live(nil)
		settle(time.Second)
		n.sees("/run/secrets/key", "hunter2\n")
		n.sees("/conf", "text")
		n.sees("env", "A=hunter2\x00B=x\r\n\x00")
		c, _ := n.host.Container(task)
		dir := filepath.Join(n.run, "files", "tasks", string(task))
		for _, want := range []agent.Mount{
			{Source: dir + "/1", Target: "/conf", ReadOnly: true, Options: []string{"nosuid", "nodev"}},
			{Source: dir + "/0", Target: "/run/secrets/key", ReadOnly: true, Options: []string{"nosuid", "nodev", "noexec"}},
		} {
			if i := slices.IndexFunc(c.Mounts, func(m agent.Mount) bool { return m.Target == want.Target }); i < 0 || fmt.Sprint(c.Mounts[i]) != fmt.Sprint(want) {
				t.Errorf("the mounts are %+v, want among them %+v", c.Mounts, want)
			}
		}
		for name, mode := range map[string]fs.FileMode{"0": 0o444, "1": 0o750, "env": 0o444, ".": fs.ModeDir | 0o700} {
			if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != mode {
				t.Errorf("%s has the mode %v, want %v (%v)", name, st.Mode(), mode, err)
			}
		}
		if m := n.host.Memory(); !slices.Equal(m, []string{filepath.Join(n.run, "files")}) {
			t.Errorf("memory at %v", m)
		}
		n.nowhere("hunter2")

		n.want("")
		settle(time.Minute)
		n.empty()
		if m := n.host.Memory(); len(m) != 0 {
			t.Errorf("the memory of secrets outlives the last task: %v", m)
		}
		if _, err := os.Stat(filepath.Join(n.run, "files")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("files are left: %v", err)
		}
	})
}

// nowhere fails when a text is in a file that is not memory, or in what a
// runtime was told.
func (n *node) nowhere(text string) {
	n.t.Helper()
	memory := n.host.Memory()
	for _, root := range []string{n.data, n.run} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if slices.Contains(memory, path) {
				return fs.SkipDir
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(text)) {
				n.t.Errorf("%s holds the secret", path)
			}
			return err
		})
		if err != nil {
			n.t.Error(err)
		}
	}
	if c, _ := n.host.Container(task); strings.Contains(fmt.Sprintf("%+v", c), text) {
		n.t.Errorf("the runtime was told the secret: %+v", c)
	}
	for _, s := range n.host.History(task) {
		if strings.Contains(fmt.Sprintf("%+v", s), text) {
			n.t.Errorf("the secret was reported: %+v", s)
		}
	}
}

func TestRotate(t *testing.T) {
	bubble(t, forever, func(n *node) {
		v1, v2 := rotating(n)
		n.live(v1)
		settle(10 * time.Second)
		n.sees("/run/secrets/key", "hunter1")
		n.sees("/both", "hunter1 conf1"+bothText)
		if s := n.status(); !maps.Equal(s.Files, v1) || s.Reason != "" {
			t.Errorf("reported %+v", s)
		}
		if k := n.host.Kills(task); len(k) != 0 {
			t.Errorf("signals %v for nothing", k)
		}
		pid := n.status().PID

		n.live(v2)
		settle(time.Second)
		n.sees("/run/secrets/key", "hunter2")
		n.sees("/conf", "conf1")
		n.sees("/both", "hunter2 conf1"+bothText)
		s := n.status()
		if !maps.Equal(s.Files, v2) || s.PID != pid || s.Started != 1 || s.Reason != "" {
			t.Errorf("reported %+v", s)
		}
		if k := n.host.Kills(task); !slices.Equal(k, []int{1, 10}) {
			t.Errorf("signals %v, want SIGHUP for the secret and SIGUSR1 for the template, once each", k)
		}

		// Only what changed is exchanged, and only who asks is told.
		v3 := maps.Clone(v2)
		v3[conf] = n.datum(spec.DatumConfig, "conf3")
		n.live(v3)
		settle(time.Second)
		n.sees("/conf", "conf3")
		n.sees("/both", "hunter2 conf3"+bothText)
		if k := n.host.Kills(task); !slices.Equal(k, []int{1, 10, 10}) {
			t.Errorf("signals %v", k)
		}

		// A restart of the agent repeats nothing, with or without managers.
		n.stop()
		n.agent()
		settle(20 * time.Second)
		n.live(v3)
		settle(20 * time.Second)
		if k := n.host.Kills(task); !slices.Equal(k, []int{1, 10, 10}) || n.host.Starts(task) != 1 {
			t.Errorf("signals %v after a restart of the agent, %d starts", k, n.host.Starts(task))
		}

		// What came while there was no agent is made up for.
		n.stop()
		n.agent()
		v4 := maps.Clone(v3)
		v4[key] = n.datum(spec.DatumSecret, "hunter4")
		n.live(v4)
		settle(20 * time.Second)
		n.sees("/run/secrets/key", "hunter4")
		if k := n.host.Kills(task); !slices.Equal(k, []int{1, 10, 10, 1, 10}) {
			t.Errorf("signals %v", k)
		}
		for _, old := range []spec.ContentID{v1[key], v2[key]} {
			if _, err := os.Stat(filepath.Join(n.run, "files", "contents", strings.Replace(string(old), ":", "-", 1))); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("version %s is still here: %v", old.Short(), err)
			}
		}
		n.nowhere("hunter")

		// The next process of the task begins with the newest.
		n.host.End(task, 1)
		settle(time.Minute)
		n.sees("/run/secrets/key", "hunter4")
		n.sees("/both", "hunter4 conf3"+bothText)
		if k := n.host.Kills(task); len(k) != 5 || n.host.Starts(task) != 2 || !maps.Equal(n.status().Files, v4) {
			t.Errorf("signals %v, %d starts, %+v", k, n.host.Starts(task), n.status())
		}
	})
}

// A version that comes while a task starts is neither missed nor told to a
// program that does not listen yet.
func TestRotateWhileStarting(t *testing.T) {
	for _, op := range []string{"Content", "Create", "Start", "Report"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				v1, v2 := rotating(n)
				done := false
				n.before(func(_ context.Context, o string, _ spec.TaskID) error {
					if o == op && !done && (o != "Report" || n.host.Starts(task) > 0) {
						done = true
						go n.live(v2)
						time.Sleep(time.Millisecond)
					}
					return nil
				})
				n.live(v1)
				settle(2 * time.Second)
				early := n.host.Kills(task)
				settle(10 * time.Second)
				n.sees("/run/secrets/key", "hunter2")
				n.sees("/both", "hunter2 conf1"+bothText)
				if k := n.host.Kills(task); len(early) != 0 || len(k) != 0 && !slices.Equal(k, []int{1, 10}) {
					t.Errorf("signals %v, then %v", early, k)
				}
				if s := n.status(); !maps.Equal(s.Files, v2) || s.Started != 1 {
					t.Errorf("reported %+v", s)
				}
			})
		})
	}
}

// A program that has a health check is told when it is well.
func TestRotateWaitsForHealth(t *testing.T) {
	bubble(t, forever, func(n *node) {
		v1, v2 := rotating(n)
		n.template.Health = &spec.HealthCheck{Test: []string{"CMD", "check"}, Interval: seconds(1), Retries: 1000}
		well := false
		n.host.OnExec = func(context.Context, spec.TaskID, []string) (string, int, error) {
			if well {
				return "", 0, nil
			}
			return "", 1, nil
		}
		n.live(v1)
		settle(5 * time.Second)
		n.live(v2)
		settle(20 * time.Second)
		if k := n.host.Kills(task); len(k) != 0 {
			t.Errorf("signals %v before it is healthy", k)
		}
		well = true
		settle(10 * time.Second)
		if k := n.host.Kills(task); !slices.Equal(k, []int{1, 10}) {
			t.Errorf("signals %v", k)
		}
	})
}

// Without managers a task goes on, and starts again, with what it has.
func TestDataWithoutManagers(t *testing.T) {
	bubble(t, forever, func(n *node) {
		v1, v2 := rotating(n)
		away := false
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if away && op == "Content" {
				return spec.Unavailablef("no manager answers")
			}
			return nil
		})
		n.live(v1)
		settle(10 * time.Second)
		away = true
		n.live(v2) // the last word before they went away
		settle(10 * time.Second)
		n.sees("/run/secrets/key", "hunter1")
		s := n.status()
		if !strings.Contains(s.Reason, "change files of the task: secret key: fetch content") || !strings.Contains(s.Reason, "no manager answers") || !maps.Equal(s.Files, v1) {
			t.Errorf("reported %+v", s)
		}
		for i, again := range []func(){func() { n.host.End(task, 1) }, func() { n.stop(); n.host.End(task, 1); n.agent() }} {
			again()
			settle(time.Minute)
			n.sees("/run/secrets/key", "hunter1")
			n.sees("/both", "hunter1 conf1"+bothText)
			if s := n.status(); n.host.Starts(task) != i+2 || !maps.Equal(s.Files, v1) {
				t.Errorf("%d starts, reported %+v", n.host.Starts(task), s)
			}
		}
		away = false
		settle(2 * time.Minute)
		n.sees("/run/secrets/key", "hunter2")
		if k, s := n.host.Kills(task), n.status(); !slices.Equal(k, []int{1, 10}) || s.Reason != "" || !maps.Equal(s.Files, v2) {
			t.Errorf("signals %v, reported %+v", k, s)
		}
	})
}

// A host that was switched off has no secrets, and asks for them again.
func TestDataAfterReboot(t *testing.T) {
	bubble(t, forever, func(n *node) {
		v1, _ := rotating(n)
		n.live(v1)
		settle(10 * time.Second)
		n.stop()
		n.host.Reboot()
		if err := errors.Join(os.RemoveAll(filepath.Join(n.run, "files")), os.RemoveAll(filepath.Join(n.run, "tasks"))); err != nil {
			t.Fatal(err)
		}
		n.agent()
		settle(time.Minute)
		n.sees("/run/secrets/key", "hunter1")
		if k := n.host.Kills(task); len(k) != 0 || n.host.Starts(task) != 2 || n.status().State != spec.TaskRunning {
			t.Errorf("signals %v, %d starts, %+v", k, n.host.Starts(task), n.status())
		}
	})
}

func TestDataRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		setup func(n *node)
		state spec.TaskState
		want  string
	}{
		"template fails": {func(n *node) {
			n.template.Mounts = []spec.Mount{{Type: spec.MountConfig, Source: "c", Target: "/c", Render: true, Content: n.datum(spec.DatumConfig, "ok\n{{secret \"none\"}}")}}
		}, spec.TaskRejected, "config c: c:2:2: executing \"c\" at <secret \"none\">: "},
		"zero byte": {func(n *node) {
			n.template.SecretEnv = []spec.SecretVar{{Name: "A", Source: "s", Content: n.datum(spec.DatumSecret, "hunter\x002")}}
		}, spec.TaskRejected, "secret s has a zero byte, which cannot be in the variable A"},
		"not told yet": {func(n *node) {
			n.template.Mounts = []spec.Mount{{Type: spec.MountSecret, Source: "s", Target: "/s", OnChange: spec.OnChangeNone}}
		}, spec.TaskPreparing, "secret s: the managers have not told its version yet"},
		"a secret as content": {func(n *node) {
			n.template.Mounts = []spec.Mount{{Type: spec.MountContent, Target: "/s", Content: n.datum(spec.DatumSecret, "hunter2")}}
		}, spec.TaskRejected, "does not belong to this place"},
		"not there": {func(n *node) {
			n.template.Mounts = []spec.Mount{{Type: spec.MountSecret, Source: "s", Target: "/s", Content: "sealed:none"}}
		}, spec.TaskPreparing, "secret s: fetch content"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				tc.setup(n)
				n.live(nil)
				settle(5 * time.Second)
				if s := n.status(); s.State != tc.state || !strings.Contains(s.Reason, tc.want) || strings.Contains(s.Reason, "hunter") {
					t.Errorf("reported %+v, want %s %q", s, tc.state, tc.want)
				}
				n.nowhere("hunter")
			})
		})
	}
}

// A task that is to stop is not held up by a fetch that hangs.
func TestRotationThatHangs(t *testing.T) {
	bubble(t, forever, func(n *node) {
		v1, v2 := rotating(n)
		hang := false
		n.before(func(ctx context.Context, op string, _ spec.TaskID) error {
			if hang && op == "Content" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		n.live(v1)
		settle(10 * time.Second)
		hang = true
		n.live(v2)
		settle(time.Second)
		n.want(spec.DesiredStopped)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskStopped {
			t.Errorf("reported %+v", s)
		}
	})
}

// rotateStory is a task whose files are changed after 10 s, on an agent that is
// killed after so many side effects.
func rotateStory(t *testing.T, left int) (effects int) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, forever)
		n.clock = func() time.Duration { return time.Hour }
		v1, v2 := rotating(n)
		c := &crasher{left: left, died: make(chan struct{})}
		end := n.life(c)
		n.live(v1)
		settle(10 * time.Second)
		n.live(v2)
		settle(30 * time.Second)
		n.sees("/run/secrets/key", "hunter2")
		n.sees("/conf", "conf1")
		if s := n.status(); !maps.Equal(s.Files, v2) || s.Started != 1 || n.host.Starts(task) != 1 {
			t.Errorf("crash at %q: reported %+v, %d starts", c.where, s, n.host.Starts(task))
		}
		k := n.host.Kills(task)
		slices.Sort(k)
		once := slices.Equal(k, []int{1, 10})
		if !once && (left < 0 || !slices.Equal(slices.Compact(slices.Clone(k)), []int{1, 10}) || len(k) > 4 || c.where != "Kill") {
			t.Errorf("crash at %q: signals %v", c.where, k)
		}
		n.nowhere("hunter")
		n.want("")
		settle(time.Minute)
		n.empty()
		if m := n.host.Memory(); len(m) != 0 {
			t.Errorf("crash at %q: memory is left: %v", c.where, m)
		}
		end()
		n.check()
		effects = c.count
	})
	return effects
}

// Whenever the agent is killed, the files come to their newest version and no
// signal is missed. One is repeated only when it was sent and not yet noted.
func TestCrashWhileRotating(t *testing.T) {
	effects := rotateStory(t, -1)
	if effects < 20 {
		t.Fatalf("the story has only %d effects", effects)
	}
	for k := range effects {
		t.Run(fmt.Sprint(k), func(t *testing.T) { rotateStory(t, k) })
	}
}

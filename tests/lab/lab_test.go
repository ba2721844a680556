//go:build e2e

package lab

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSwitch: what is cut does not arrive, and everything else does.
func TestSwitch(t *testing.T) {
	l := New(t)
	a, b, c := l.Host("a"), l.Host("b"), l.Host("c")
	check := func(t *testing.T, tcp, udp string) {
		t.Helper()
		var noTCP, noUDP []string
		probe := l.Probe()
		if len(probe) != 6 {
			t.Fatalf("%d pairs probed, want 6", len(probe))
		}
		for _, r := range probe {
			if !r.TCP {
				noTCP = append(noTCP, r.From+r.To)
			}
			if !r.UDP {
				noUDP = append(noUDP, r.From+r.To)
			}
		}
		if got := strings.Join(noTCP, " "); got != tcp {
			t.Errorf("no connection %q, want %q", got, tcp)
		}
		if got := strings.Join(noUDP, " "); got != udp {
			t.Errorf("no packet %q, want %q", got, udp)
		}
	}
	check(t, "", "")
	l.Cut(a, b)
	check(t, "ab ba", "ab")
	l.CutBoth(b, c)
	check(t, "ab ba bc cb", "ab bc cb")
	l.Heal()
	check(t, "", "")
	l.Isolate(c)
	check(t, "ac bc ca cb", "ac bc ca cb")
	l.Loss(100)
	check(t, "ab ac ba bc ca cb", "ab ac ba bc ca cb")
	l.Heal()
	b.ChangeAddress(subnet + "77")
	check(t, "", "")

	l.Loss(20)
	if got := arrived(t, l, a, b, 1000); got < 720 || got > 880 {
		t.Errorf("%d of 1000 packets arrive, want about 800", got)
	}
	l.Heal()

	c.PowerOff()
	if got := len(l.Probe()); got != 2 {
		t.Errorf("%d pairs with one host off, want 2", got)
	}
}

// arrived counts how many of n packets from one host to another come through.
func arrived(t *testing.T, l *Lab, from, to *Host, n int) int {
	t.Helper()
	var in net.PacketConn
	l.within(to.Name, func() (err error) {
		in, err = net.ListenPacket("udp4", net.JoinHostPort(to.IP, "9"))
		return err
	})
	if in == nil {
		t.FailNow()
	}
	defer in.Close()
	got := make(chan int)
	go func() {
		count := 0
		for b := make([]byte, 8); ; {
			k, _, err := in.ReadFrom(b)
			if err != nil || k == 2 {
				got <- count
				return
			}
			count++
		}
	}()
	l.within(from.Name, func() error {
		c, err := net.Dial("udp4", net.JoinHostPort(to.IP, "9"))
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range n + 50 {
			packet := []byte{1}
			if i >= n {
				packet = []byte{1, 2} // the end, so often that one arrives
			}
			if _, err := c.Write(packet); err != nil {
				return err
			}
			if i%20 == 0 {
				time.Sleep(time.Millisecond) // the receiver's buffer is small
			}
		}
		return nil
	})
	select {
	case n := <-got:
		return n
	case <-time.After(10 * time.Second):
		t.Fatal("no packet of the end has arrived")
		return 0
	}
}

// TestPower: at a power-off all of a host ends, containers too, and its disk
// stays; a wiped one is new.
func TestPower(t *testing.T) {
	l := New(t)
	a, b := l.Host("a"), l.Host("b")
	a.Launch()
	b.Launch()
	image, err := filepath.Abs("../../build/images/busybox.tar")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "stack.yml")
	if err := os.WriteFile(file, []byte("name: s\nservices: {web: {image: wherry-examples/busybox:1.35, init: true, command: [sleep, '1000']}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.hosts {
		h.WaitReady()
		h.Must("image", "load", image)
		h.Must("apply", "-f", file)
	}
	parts := []string{"daemon", "containerd", "keeper", "shim"}
	for _, p := range parts {
		if n := len(a.Part(p)); n != 1 {
			t.Errorf("host a has %d processes %s", n, p)
		}
	}
	procs := a.Processes()
	if len(procs) < len(parts)+2 { // init and sleep of the container
		t.Errorf("host a has only processes %v", procs)
	}
	if slices.ContainsFunc(b.Processes(), func(pid int) bool { return slices.Contains(procs, pid) }) {
		t.Error("two hosts have a process in common")
	}

	a.PowerOff()
	if got := a.Processes(); len(got) != 0 {
		t.Errorf("processes %v outlive the power-off", got)
	}
	if got := len(b.Processes()); got != len(procs) {
		t.Errorf("the other host has %d processes, want %d", got, len(procs))
	}
	if len(a.cgroups())+len(a.mounts()) != 0 {
		t.Errorf("outlive the power-off: %v %v", a.cgroups(), a.mounts())
	}
	if _, err := os.Stat(a.RunDir); err == nil {
		t.Error("the run folder outlives the power-off")
	}
	a.PowerOn()
	a.WaitReady()
	Eventually(t, 30*time.Second, "the container runs again", func() error {
		if out := a.Must("ps", "s", "--format", "{{.state}}"); strings.TrimSpace(out) != "running" {
			return fmt.Errorf("state %s", out)
		}
		if n := len(a.Part("shim")); n != 1 {
			return fmt.Errorf("%d shims", n)
		}
		return nil
	})

	b.Freeze("keeper")
	if r := b.Within(500*time.Millisecond, "ls"); r.Code != -1 {
		t.Errorf("a frozen daemon answers: %+v", r)
	}
	b.Thaw()
	b.Must("ls")

	b.Wipe()
	b.PowerOn()
	b.WaitReady()
	if out := b.Must("ls", "--format", "{{.name}}"); out != "" {
		t.Errorf("a wiped host has stacks: %s", out)
	}
}

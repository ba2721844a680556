//go:build e2e

package lab

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMesh: a Mesh loses nothing where nothing is lost, and accounts for all
// that is.
func TestMesh(t *testing.T) {
	l := New(t)
	a, b, c := l.Host("a"), l.Host("b"), l.Host("c")
	load := Load{Packets: 200, Conns: 20, Lookups: 20}
	var members []Member
	for _, h := range []*Host{a, b, c} {
		members = append(members, Member{Space: l.Space(h.Name), IP: h.IP, Asks: "three.example", Answers: []string{"10.0.0.3"}, Resolver: nameServer(t, l.Space(h.Name))})
	}
	m := NewMesh(t, members, load)
	run := func(d time.Duration) Report {
		t.Helper()
		time.Sleep(d) // the traffic is the experiment
		r := m.Report()
		t.Log(r)
		return r
	}
	r := run(2 * time.Second)
	if err := r.Err(); err != nil {
		t.Errorf("without a fault: %v", err)
	}
	if err := r.Complete(load, m.Pairs(), 70); err != nil {
		t.Error(err)
	}

	l.Cut(a, b)
	r = run(2 * time.Second)
	l.Heal()
	for _, o := range r.Outages {
		if o.From != "a" || o.To != "b" {
			t.Errorf("lost from %s to %s, which is not cut", o.From, o.To)
		}
	}
	if r.Lost < 280 || r.Lost > 440 {
		t.Errorf("%d packets lost in a cut of 2 s, want about 400", r.Lost)
	}
	if worst := r.Worst(); worst < 1400*time.Millisecond || worst > 2300*time.Millisecond {
		t.Errorf("an outage of %s, want about 2 s", worst)
	}
	if r.Unanswered > 0 || r.Broken > 0 {
		t.Errorf("lookups or long connections suffer: %v", r.Err())
	}
	run(6 * time.Second) // connections of the cut come to their end
	r = run(2 * time.Second)
	if err := r.Err(); err != nil {
		t.Errorf("after the cut: %v", err)
	}

	l.Loss(20)
	r = run(2 * time.Second)
	l.Heal()
	if share := 100 * r.Lost / r.Packets; share < 15 || share > 25 {
		t.Errorf("%d %% lost, want 20", share)
	}

	// Whoever does not answer is told.
	m.Stop()
	if err := m.Report().Complete(load, m.Pairs(), 70); err == nil {
		t.Error("a mesh that stands still is complete")
	}
	gone := NewMesh(t, []Member{{Space: l.Space("a"), IP: a.IP}, {Space: l.Space("b"), IP: subnet + "99"}}, load)
	time.Sleep(time.Second)
	gone.Stop()
	if r := gone.Report(); r.Lost == 0 || len(r.Failures) == 0 {
		t.Errorf("nobody has the address, and all is well: %s", r)
	}
}

// nameServer answers each question with 10.0.0.3, but the names that begin
// with "no".
func nameServer(t *testing.T, s Space) string {
	t.Helper()
	c, err := s.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for b := make([]byte, 1500); ; {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			out := slices.Clone(b[:n])
			out[2] |= 0x80
			if strings.HasPrefix(string(out[13:]), "no") {
				out[3] = 3
			} else {
				binary.BigEndian.PutUint16(out[6:], 1)
				out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0, 3)
			}
			_, _ = c.WriteToUDPAddrPort(out, from) // the test sees what is missing
		}
	}()
	return c.LocalAddr().String()
}

func TestLookup(t *testing.T) {
	l := New(t)
	l.Host("a")
	s := l.Space("a")
	server := nameServer(t, s)
	if got, asked, err := s.Lookup(server, "three.example."); err != nil || asked != 1 || !slices.Equal(got, []string{"10.0.0.3"}) {
		t.Errorf("%v after %d questions: %v", got, asked, err)
	}
	if got, _, err := s.Lookup(server, "nobody"); err == nil {
		t.Errorf("nobody is %v", got)
	}
	if _, asked, err := s.Lookup("127.0.0.1:9", "three.example"); err == nil || asked < 2 {
		t.Errorf("nobody listens: %d questions, %v", asked, err)
	}
}

func TestAnswers(t *testing.T) {
	whole := ask(7, "a.b")
	binary.BigEndian.PutUint16(whole[6:], 2)
	whole = append(whole, 0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 0, 0, 1, 9)
	whole = append(whole, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4)
	if got, err := answers(whole); err != nil || !slices.Equal(got, []string{"1.2.3.4"}) {
		t.Errorf("%v %v", got, err)
	}
	for n := range len(whole) {
		if got, err := answers(whole[:n]); err == nil {
			t.Errorf("%d bytes: %v", n, got)
		}
	}
}

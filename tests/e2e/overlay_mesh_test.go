//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// publishedPorts: each node serves a published port, also one without a task,
// and the task sees who asks. Ports of mode host and of one address are there
// and nowhere else. What a host listens on itself stays its own.
func publishedPorts(t *testing.T, c *lab.Cluster) {
	first, last := c.Hosts[0], c.Hosts[len(c.Hosts)-1]
	// The last host has a service of its own on a port that gets published.
	own, err := c.Space(last.Name).Listen("tcp4", ":8104")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			con, err := own.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(con, "the host's own") // the asker sees what is missing
			_ = con.Close()
		}
	})
	defer served.Wait()
	defer own.Close()
	apply(t, c, stack(t, `
name: ports
services:
  web:
    image: `+images.Serve+`
    stop_signal: SIGKILL
    ports: ["8101:80", "8101:80/udp"]
    deploy: {placement: {constraints: [node.hostname==`+first.Name+`]}}
  local:
    image: `+images.Serve+`
    stop_signal: SIGKILL
    ports: [{target: 80, published: "8102", mode: host}]
    deploy: {placement: {constraints: [node.hostname==`+first.Name+`]}}
  bound:
    image: `+images.Serve+`
    stop_signal: SIGKILL
    ports: [{target: 80, published: "8103", host_ip: `+first.IP+`, mode: host}]
    deploy: {placement: {constraints: [node.hostname==`+first.Name+`]}}
`))
	defer c.Leader().Must("rm", "ports")
	from, ip := outside(c)
	for _, h := range c.Hosts {
		what := "via " + h.Name
		if h == first {
			what += ", which has the task"
		}
		lab.Eventually(t, soon, "the port is served "+what, func() error {
			_, err := consult(from, h.IP+":8101")
			return err
		})
		for range 10 {
			if r, err := consult(from, h.IP+":8101"); err != nil || r.client != ip {
				t.Errorf("TCP %s: the task sees %q, want %s: %v", what, r.client, ip, err)
			}
			if _, seen, err := knock(from, h.IP+":8101"); err != nil || seen != ip {
				t.Errorf("UDP %s: the task sees %q, want %s: %v", what, seen, ip, err)
			}
		}
		// The host itself, by its address and by the loopback's.
		for _, to := range []string{h.IP, "127.0.0.1"} {
			if _, err := consult(c.Space(h.Name), to+":8101"); err != nil {
				t.Errorf("from %s itself by %s: %v", h.Name, to, err)
			}
		}
		// Tasks on all hosts, the one that serves included.
		for _, m := range append(members(t, c, "pairs/a"), members(t, c, "ports/web")...) {
			if _, err := consult(m.Space, h.IP+":8101"); err != nil {
				t.Errorf("from %s %s: %v", m.Name, what, err)
			}
		}

		r, err := consult(from, h.IP+":8102")
		if h == first && (err != nil || r.client != ip) {
			t.Errorf("mode host %s: the task sees %q, want %s: %v", what, r.client, ip, err)
		}
		if h != first && err == nil {
			t.Errorf("mode host: %s serves the port, and has no task", h.Name)
		}
		_, err = consult(from, h.IP+":8103")
		if (h == first) != (err == nil) {
			t.Errorf("a port of %s %s: %v", first.IP, what, err)
		}
	}
	if _, err := consult(c.Space(first.Name), "127.0.0.1:8103"); err == nil {
		t.Errorf("a port of %s is served at 127.0.0.1, too", first.IP)
	}

	// A port of one address through the mesh is served by the host that has the
	// address, wherever the task is, and no failure of those that have it not.
	c.Step(t, "one address through the mesh", func(t *testing.T) {
		apply(t, c, stack(t, `
name: bound
services:
  web:
    image: `+images.Serve+`
    stop_signal: SIGKILL
    ports: ["`+first.IP+`:8105:80"]
    deploy: {placement: {constraints: [node.hostname==`+last.Name+`]}}
`))
		defer c.Leader().Must("rm", "bound")
		for _, h := range c.Hosts {
			r, err := consult(from, h.IP+":8105")
			if h == first && (err != nil || r.client != ip) {
				t.Errorf("via %s the task sees %q, want %s: %v", h.Name, r.client, ip, err)
			}
			if h != first && err == nil {
				t.Errorf("%s serves a port of %s", h.Name, first.IP)
			}
		}
	})

	// apply tells of the port that it cannot have, and takes nothing.
	steal := stack(t, `
name: steal
services:
  web:
    image: `+images.Serve+`
    stop_signal: SIGKILL
    ports: ["8104:80"]
    deploy: {placement: {constraints: [node.hostname==`+first.Name+`]}}
`)
	r := c.Leader().Wherry("apply", "-f", steal, "--timeout", "20s")
	defer c.Leader().Must("rm", "steal")
	if r.Code == 0 || !strings.Contains(r.Stderr, "8104") {
		t.Errorf("a port that %s has itself: exit %d, want a refusal that names it: %s", last.Name, r.Code, r.Stderr)
	}
	for range 10 {
		con, err := from.Dial("tcp4", last.IP+":8104", time.Second)
		if err != nil {
			t.Errorf("the host's own port: %v", err)
			continue
		}
		b, err := io.ReadAll(con)
		if string(b) != "the host's own" {
			t.Errorf("the host's own port says %q: %v", b, err)
		}
		_ = con.Close()
	}
}

// virtualAddresses: connections to a service's name are spread, refused at once
// when there is nobody, and move when their end has died.
func virtualAddresses(t *testing.T, c *lab.Cluster) {
	withPairs(t, c, `
  web: {image: `+images.Serve+`, stop_signal: SIGKILL, deploy: {replicas: 3}}
  none: {image: `+images.Serve+`, deploy: {replicas: 0}}
  two: {image: `+images.Serve+`, stop_signal: SIGKILL, deploy: {replicas: 2}}
  rr: {image: `+images.Serve+`, stop_signal: SIGKILL, deploy: {replicas: 2, endpoint_mode: dnsrr}}
`)
	defer withPairs(t, c, "")
	asker := members(t, c, "pairs/a")
	web := vip(t, asker[0].Space, "web")

	idle := span(t, "IDLE", 10*time.Second)
	silent, err := asker[0].Dial("tcp4", web+":81", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := hello(silent); err != nil {
		t.Fatal(err)
	}
	silence := time.Now()

	c.Step(t, "spread", func(t *testing.T) {
		for _, a := range append(asker, members(t, c, "pairs/web")...) {
			if got := vip(t, a.Space, "web"); got != web {
				t.Errorf("web is %s for %s and %s for %s", web, asker[0].Name, got, a.Name)
			}
			heard := map[string]int{}
			for range 150 {
				r, err := consult(a.Space, web+":80")
				if err != nil {
					t.Errorf("from %s: %v", a.Name, err)
					break
				}
				heard[r.server]++
			}
			// Each of three gets 50 ± 6; one in a million runs is outside of this.
			for _, n := range heard {
				if n < 20 || len(heard) != 3 {
					t.Errorf("150 connections from %s: %v, want about 50 for each of 3", a.Name, heard)
					break
				}
			}
			for range 5 {
				if _, _, err := knock(a.Space, web+":80"); err != nil {
					t.Errorf("packets from %s: %v", a.Name, err)
				}
			}
		}
	})

	c.Step(t, "nobody there", func(t *testing.T) {
		for _, a := range asker {
			to := vip(t, a.Space, "none")
			started := time.Now()
			_, err := a.Dial("tcp4", to+":80", 5*time.Second)
			took := time.Since(started)
			if err == nil || took > 500*time.Millisecond {
				t.Errorf("from %s: %v after %s, want a refusal at once", a.Name, err, short(took))
			}
			if err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("from %s: %v, want refused or unreachable", a.Name, err)
			}
		}
	})

	c.Step(t, "dnsrr", func(t *testing.T) {
		var want []string
		for _, m := range members(t, c, "pairs/rr") {
			want = append(want, m.IP)
		}
		slices.Sort(want)
		for _, a := range asker {
			got, _, err := a.Lookup(lab.Resolver, "rr")
			if slices.Sort(got); err != nil || !slices.Equal(got, want) {
				t.Errorf("rr is %v for %s, want %v: %v", got, a.Name, want, err)
			}
		}
	})

	c.Step(t, "packets move when their end dies", func(t *testing.T) {
		to := vip(t, asker[0].Space, "two") + ":80"
		var gaps []time.Duration
		for range count(t, "RUNS", 2) {
			lab.Eventually(t, soon, "two has two tasks", func() error {
				if n := len(on(t, c.Leader(), "pairs/two")); n != 2 {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
			gap, err := udpGap(t, c, asker[0], to)
			if err != nil {
				t.Fatal(err)
			}
			gaps = append(gaps, gap)
		}
		figure(t, "packets of one socket go to another task when theirs was killed", gaps, 0, time.Second)
	})

	c.Step(t, "an idle connection stays", func(t *testing.T) {
		pause(t.Context(), idle-time.Since(silence))
		took := time.Since(silence)
		if err := hello(silent); err != nil {
			t.Errorf("after %s of silence: %v", took, err)
		}
		t.Logf("figure idle connection through a virtual address: alive after %s", short(took))
	})
}

// hello says something to the port that returns it.
func hello(con net.Conn) error {
	_ = con.SetDeadline(time.Now().Add(5 * time.Second)) // a socket that is closed fails below
	if _, err := io.WriteString(con, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(con, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("%q comes back", b)
	}
	return nil
}

// udpGap sends packets from one socket, kills who answers them, and returns
// the longest silence.
func udpGap(t *testing.T, c *lab.Cluster, from lab.Member, to string) (time.Duration, error) {
	con, err := from.Dial("udp4", to, time.Second)
	if err != nil {
		return 0, err
	}
	defer con.Close()
	type heard struct {
		at   time.Time
		from string
	}
	answers := make(chan heard, 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(answers)
		for b := make([]byte, 1500); ; {
			n, err := con.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // refused is as good as silent
				answers <- heard{time.Now(), strings.Fields(string(b[:n]))[0]}
			}
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wg.Go(func() {
		for ctx.Err() == nil {
			_, _ = con.Write([]byte("x")) // refused is as good as lost
			pause(ctx, 10*time.Millisecond)
		}
		_ = con.Close()
	})
	var first heard
	select {
	case first = <-answers:
	case <-time.After(5 * time.Second):
		stop()
		wg.Wait()
		return 0, errors.New("nobody answers packets")
	}
	time.Sleep(500 * time.Millisecond) // a flow, not a packet
	killed := false
	for _, ti := range tasks(t, c.Leader(), "pairs/two") {
		if address(t, ti) == first.from {
			killed = syscall.Kill(ti.Status.PID, syscall.SIGKILL) == nil
		}
	}
	time.Sleep(4 * time.Second) // as long as a silence may be, and more
	stop()
	wg.Wait()
	if !killed {
		return 0, fmt.Errorf("%s answers and is no task of the service", first.from)
	}
	last, gap := first.at, time.Duration(0)
	for h := range answers {
		gap, last = max(gap, h.at.Sub(last)), h.at
	}
	return max(gap, time.Since(last)), nil
}

// demand is requests from several sides, each of which must be answered.
type demand struct {
	mu       sync.Mutex
	answered int
	conns    int
	late     int // on connections that came after the server was told to end
	loads    int // downloads that came to their end
	versions map[string]int
	failures []string
}

func (d *demand) fail(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures = append(d.failures, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// ask asks without end: on a new connection each time, or on one for as long
// as the server does not say that it was the last answer. Nothing is tried
// again.
func (d *demand) ask(ctx context.Context, from lab.Space, to string, keep bool) {
	err := from.Do(func() error {
		for ctx.Err() == nil {
			con, err := net.DialTimeout("tcp4", to, 10*time.Second)
			if err != nil {
				d.fail("connect %s → %s: %v", from.Name, to, err)
				pause(ctx, 50*time.Millisecond)
				continue
			}
			d.mu.Lock()
			d.conns++
			d.mu.Unlock()
			r := bufio.NewReader(con)
			for n := 0; ctx.Err() == nil; n++ {
				a, err := question(con, r, "/", !keep)
				if err != nil {
					d.fail("request %d on a connection %s → %s: %v", n, from.Name, to, err)
					break
				}
				d.mu.Lock()
				d.answered++
				d.versions[a.version]++
				if a.late && n == 0 {
					d.late++
				}
				d.mu.Unlock()
				pause(ctx, 10*time.Millisecond)
				if a.last {
					break
				}
			}
			_ = con.Close() // all that was asked is answered
		}
		return nil
	})
	if err != nil {
		d.fail("%s: %v", from.Name, err)
	}
}

// download gets something that takes a while, and checks its bytes.
func (d *demand) download(from lab.Space, to string, length time.Duration) {
	const every = 50 * time.Millisecond
	kib := int(length / every)
	err := func() error {
		con, err := from.Dial("tcp4", to, 10*time.Second)
		if err != nil {
			return err
		}
		defer con.Close()
		_ = con.SetDeadline(time.Now().Add(4*length + 30*time.Second)) // a socket that is closed fails below
		if _, err := fmt.Fprintf(con, "GET /drip?kib=%d&ms=%d HTTP/1.1\r\nHost: test\r\n\r\n", kib, every.Milliseconds()); err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(con), nil)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return fmt.Errorf("after %d of %d KiB: %w", len(b)>>10, kib, err)
		}
		for i, x := range b {
			if x != byte(i%1024)^byte(i/1024) {
				return fmt.Errorf("byte %d is wrong", i)
			}
		}
		if len(b) != kib<<10 {
			return fmt.Errorf("%d bytes, want %d", len(b), kib<<10)
		}
		return nil
	}()
	if err != nil {
		d.fail("download %s → %s: %v", from.Name, to, err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loads++
}

// rolling: a service of six is updated and scaled under load from inside and
// from outside, through nodes with and without a task of it. REQUESTS is how
// many are made, DOWNLOAD how long a download takes.
func rolling(t *testing.T, c *lab.Cluster) {
	want, length := count(t, "REQUESTS", 3000), span(t, "DOWNLOAD", 8*time.Second)
	placement := ""
	if len(c.Hosts) > 1 { // the last host has none
		placement = ", placement: {constraints: [node.hostname!=" + c.Hosts[len(c.Hosts)-1].Name + "]}"
	}
	file := func(version, replicas int) string {
		return stack(t, fmt.Sprintf(`
name: roll
services:
  web:
    image: %s
    environment: {VERSION: "%d"}
    stop_grace_period: 60s
    ports: ["8110:80"]
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, "http://127.0.0.1/"], interval: 1s, timeout: 5s, retries: 5}
    deploy: {replicas: %d%s}
  asker: {image: %s, command: [sleep, "7511"], stop_signal: SIGKILL, deploy: {mode: global}}
`, images.Serve, version, replicas, placement, image))
	}
	apply(t, c, file(1, 6))
	defer c.Leader().Must("rm", "roll")
	type way struct {
		from lab.Space
		to   string
	}
	var ways []way
	from, _ := outside(c)
	for _, h := range c.Hosts {
		ways = append(ways, way{from, h.IP + ":8110"})
	}
	for _, m := range members(t, c, "roll/asker") {
		ways = append(ways, way{m.Space, vip(t, m.Space, "web") + ":80"})
	}
	for _, w := range ways {
		lab.Eventually(t, soon, w.from.Name+" is served at "+w.to, func() error {
			_, err := consult(w.from, w.to)
			return err
		})
	}
	d := &demand{versions: map[string]int{}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg, downloads sync.WaitGroup
	for _, w := range ways {
		for _, keep := range []bool{false, true} {
			wg.Go(func() { d.ask(ctx, w.from, w.to, keep) })
		}
	}
	updates, scales := 0, 0
	for version := 2; ; version++ {
		for _, w := range ways {
			downloads.Go(func() { d.download(w.from, w.to, length) })
		}
		pause(ctx, 200*time.Millisecond) // they have begun
		started := time.Now()
		apply(t, c, file(version, 6))
		updates++
		t.Logf("update %d took %s", version, short(time.Since(started)))
		for _, n := range []string{"2", "6"} {
			c.Leader().Must("service", "scale", "roll/web="+n)
			scales++
		}
		downloads.Wait()
		d.mu.Lock()
		answered, failed := d.answered, len(d.failures)
		d.mu.Unlock()
		if answered >= want || failed > 100 {
			break
		}
	}
	stop()
	wg.Wait()
	t.Logf("figure rolling updates under load: %d updates, %d changes of scale, %d requests on %d connections, %d failed; %d downloads of %s; %d connections came after the signal",
		updates, scales, d.answered, d.conns, len(d.failures), d.loads, length, d.late)
	if len(d.versions) < 2 {
		t.Errorf("all answers are of versions %v", d.versions)
	}
	if d.late > 0 {
		t.Errorf("%d connections came to a task that had been told to end", d.late)
	}
	for i, f := range d.failures {
		if i == 30 {
			t.Errorf("… and %d more", len(d.failures)-i)
			break
		}
		t.Error(f)
	}
}

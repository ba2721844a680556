//go:build e2e

package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// path is a way from one namespace to another.
type path struct {
	name     string
	from, to lab.Space
	address  string // that from connects to, with a port
	port     string // that to listens on
}

// rates are figures of one path, taken several times: Gbit/s, how long a
// question and its answer take, and how long a connection takes to be made.
type rates struct {
	flow         []float64
	trip, making series
}

func middle(v []float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[len(sorted)/2]
}

// BenchmarkOverlay compares the network between hosts and inside of one with
// what the kernel gives to hands, and the ways of the network with each other,
// each in rounds of A, B, A.
func BenchmarkOverlay(b *testing.B) {
	c := lab.New(b).Cluster(1, 1)
	first, second := c.Hosts[0], c.Hosts[1]
	c.Plug("client")
	f := filepath.Join(b.TempDir(), "image.tar")
	if err := os.WriteFile(f, images.Must(b, image, ""), 0o600); err != nil {
		b.Fatal(err)
	}
	first.Must("image", "load", f)
	machine(b)
	file := filepath.Join(b.TempDir(), "stack.yml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(`
name: bench
services:
  a: {image: %[1]s, command: [sleep, "8401"], stop_signal: SIGKILL, deploy: {mode: global}}
  b: {image: %[1]s, command: [sleep, "8402"], stop_signal: SIGKILL, ports: ["8403:5201"], deploy: {placement: {constraints: [node.hostname==%[2]s]}}}
  l: {image: %[1]s, command: [sleep, "8404"], stop_signal: SIGKILL, deploy: {placement: {constraints: [node.hostname==%[3]s]}}}
`, image, second.Name, first.Name)), 0o600); err != nil {
		b.Fatal(err)
	}
	first.Must("apply", "-f", file)
	var all []api.TaskInfo
	if err := json.Unmarshal([]byte(first.Must("ps", "bench", "--format", "json")), &all); err != nil {
		b.Fatal(err)
	}
	space, ip := map[string]lab.Space{}, map[string]string{}
	for _, ti := range all {
		space[ti.Name] = c.Host(ti.Node).TaskSpace(ti.Name, string(ti.ID))
		ip[ti.Name] = strings.Split(ti.Addresses[0], "/")[0]
	}
	from, far, near := space["bench.a."+first.Name], space["bench.b.1"], space["bench.l.1"]
	const port = "5201"
	hand := handMade(b, c, first, second)
	bare := bareVeth(b, c)
	direct := path{"between hosts", from, far, ip["bench.b.1"] + ":" + port, port}
	answer, _, err := from.Lookup(lab.Resolver, "b")
	if err != nil || len(answer) != 1 {
		b.Fatalf("b is %v: %v", answer, err)
	}
	outside := c.Space("client")
	for _, pair := range []struct{ ours, floor path }{
		{direct, hand},
		{path{"inside a host", from, near, ip["bench.l.1"] + ":" + port, port}, bare},
		{path{"virtual address", from, far, answer[0] + ":" + port, port}, direct},
		{path{"published port, node without the task", outside, far, first.IP + ":8403", port}, direct},
		{path{"published port, node with the task", outside, far, second.IP + ":8403", port}, direct},
	} {
		b.Run(strings.ReplaceAll(pair.ours.name, " ", "_"), func(b *testing.B) {
			var ours, floor rates
			for range 5 {
				floor.take(b, pair.floor)
				ours.take(b, pair.ours)
				floor.take(b, pair.floor)
			}
			flow := middle(ours.flow) / middle(floor.flow)
			trip := float64(ours.trip.median()) / float64(floor.trip.median())
			making := float64(ours.making.median()) / float64(floor.making.median())
			b.Logf("%s against %s: %.2f and %.2f Gbit/s, ratio %.3f (%.2f); round trip %s and %s, ratio %.3f; connection %s and %s, ratio %.3f",
				pair.ours.name, pair.floor.name, middle(ours.flow), middle(floor.flow), flow, ours.flow,
				ours.trip.median(), floor.trip.median(), trip, ours.making.median(), floor.making.median(), making)
			b.ReportMetric(flow, "×flow")
			b.ReportMetric(trip, "×rtt")
			b.ReportMetric(making, "×connect")
		})
	}
}

// take measures a path once.
func (r *rates) take(b *testing.B, p path) {
	b.Helper()
	const flow, trips, conns = 1500 * time.Millisecond, 2000, 200
	l, err := p.to.Listen("tcp4", ":"+p.port)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	// What is said first decides: e to hear it again, s to be swallowed.
	go func() {
		for {
			con, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer con.Close()
				kind := make([]byte, 1)
				if _, err := io.ReadFull(con, kind); err != nil {
					return
				}
				if kind[0] == 'e' {
					for buf := make([]byte, 1); ; {
						if _, err := io.ReadFull(con, buf); err != nil {
							return
						}
						if _, err := con.Write(buf); err != nil {
							return
						}
					}
				}
				n := int64(0)
				for buf := make([]byte, 1<<20); ; {
					k, err := con.Read(buf)
					if n += int64(k); err != nil {
						break
					}
				}
				_, _ = fmt.Fprintf(con, "%d\n", n) // who asked sees what is missing
			}()
		}
	}()
	connect := func(kind string) *net.TCPConn {
		con, err := p.from.Dial("tcp4", p.address, 5*time.Second)
		if err != nil {
			b.Fatalf("%s: %v", p.name, err)
		}
		if _, err := io.WriteString(con, kind); err != nil {
			b.Fatalf("%s: %v", p.name, err)
		}
		return con.(*net.TCPConn)
	}

	con := connect("s")
	started, buf := time.Now(), make([]byte, 1<<20)
	for time.Since(started) < flow {
		if _, err := con.Write(buf); err != nil {
			b.Fatalf("%s: %v", p.name, err)
		}
	}
	if err := con.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	var n int64
	if _, err := fmt.Fscan(con, &n); err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	r.flow = append(r.flow, float64(n)*8/1e9/time.Since(started).Seconds())
	_ = con.Close() // all was counted

	con = connect("e")
	var times series
	one := []byte{1}
	for range trips {
		started := time.Now()
		if _, err := con.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(con, one); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(started))
	}
	_ = con.Close() // all was answered
	r.trip = append(r.trip, times.median())

	times = nil
	err = p.from.Do(func() error {
		for range conns {
			started := time.Now()
			con, err := net.DialTimeout("tcp4", p.address, 5*time.Second)
			if err != nil {
				return err
			}
			times = append(times, time.Since(started))
			if err := con.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	r.making = append(r.making, times.median())
}

func sh(b *testing.B, format string, args ...any) {
	b.Helper()
	line := fmt.Sprintf(format, args...)
	if out, err := exec.Command("sh", "-ec", line).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", line, err, out)
	}
}

// spare makes a namespace beside those of the lab.
func spare(b *testing.B, c *lab.Cluster, name string) lab.Space {
	b.Helper()
	s := lab.Space{Name: name, Path: c.NSPath(name)}
	sh(b, "ip netns add %[1]s; ip -n %[1]s link set lo up", filepath.Base(s.Path))
	b.Cleanup(func() { sh(b, "ip netns del %s", filepath.Base(s.Path)) })
	return s
}

// handMade is a way between two hosts as an administrator would lay it: a
// namespace, a veth, a bridge and a VXLAN device on each.
func handMade(b *testing.B, c *lab.Cluster, hosts ...*lab.Host) path {
	b.Helper()
	var ends []lab.Space
	for i, h := range hosts {
		s := spare(b, c, fmt.Sprintf("hand-%d", i+1))
		ends = append(ends, s)
		sh(b, `h=%[1]s s=%[2]s
ip -n $h link add hbr type bridge mcast_snooping 0
ip -n $h link add hvx mtu 1450 type vxlan id 99 local %[3]s remote %[4]s dstport 4799
ip -n $h link set hvx master hbr up
ip -n $h link add hve mtu 1450 type veth peer name eth0 mtu 1450 netns $s
ip -n $h link set hve master hbr up
ip -n $h link set hbr up
ip -n $s addr add 10.99.0.%[5]d/24 dev eth0
ip -n $s link set eth0 up`, filepath.Base(c.NSPath(h.Name)), filepath.Base(s.Path), h.IP, hosts[1-i].IP, i+1)
		b.Cleanup(func() {
			sh(b, "h=%s; ip -n $h link del hvx; ip -n $h link del hbr", filepath.Base(c.NSPath(h.Name)))
		})
	}
	return path{"a VXLAN pair laid by hand", ends[0], ends[1], "10.99.0.2:5201", "5201"}
}

// bareVeth is two namespaces with a cable.
func bareVeth(b *testing.B, c *lab.Cluster) path {
	b.Helper()
	one, two := spare(b, c, "bare-1"), spare(b, c, "bare-2")
	sh(b, `a=%s b=%s
ip -n $a link add eth0 type veth peer name eth0 netns $b
ip -n $a addr add 10.98.0.1/24 dev eth0; ip -n $a link set eth0 up
ip -n $b addr add 10.98.0.2/24 dev eth0; ip -n $b link set eth0 up`, filepath.Base(one.Path), filepath.Base(two.Path))
	return path{"a bare veth", one, two, "10.98.0.2:5201", "5201"}
}

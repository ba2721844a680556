package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wherry.dev/spec"
)

// million is what one round of BenchmarkMillion asks.
const million = 1_000_000

// bigTable is a network of many services, each of three tasks behind a virtual
// address, with a named port.
func bigTable(services int) spec.NameTable {
	t := spec.NameTable{Network: "1-1"}
	address := func(i int) string { return fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255) }
	port := spec.NamedPort{Name: "http", Protocol: "tcp", Port: 80}
	for i := range services {
		vip, name := address(4*i), fmt.Sprintf("svc%d", i)
		tasks := spec.Name{Name: "tasks." + name}
		for slot := 1; slot <= 3; slot++ {
			ip := address(4*i + slot)
			tasks.Addresses = append(tasks.Addresses, ip)
			t.Names = append(t.Names, reverseName(fmt.Sprintf("shop.%s.%d", name, slot), ip))
		}
		t.Names = append(t.Names, tasks, reverseName(name, vip), reverseName("shop_"+name, vip))
		port.Addresses = append(append(port.Addresses, vip), tasks.Addresses...)
	}
	t.Ports = []spec.NamedPort{port}
	return t
}

// bigQuestions are what clients of such a network ask, as packets: most of them
// both addresses of a service.
func bigQuestions(services int) [][]byte {
	var out [][]byte
	add := func(name string, qtype uint16) {
		out = append(out, packed(new(dns.Msg).SetQuestion(name, qtype).SetEdns0(1232, false)))
	}
	for i := range services {
		name := fmt.Sprintf("svc%d.", i)
		for range 3 {
			add(name, dns.TypeA)
			add(name, dns.TypeAAAA)
		}
		add("tasks."+name, dns.TypeA)
		add("shop."+name+"1.", dns.TypeA)
		add("_http._tcp.tasks."+name, dns.TypeSRV)
		add(fmt.Sprintf("%d.%d.%d.10.in-addr.arpa.", 4*i&255, 4*i>>8&255, 1+4*i>>16), dns.TypePTR)
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// errSlow: a server outside got all the time there is, and no answer came.
var errSlow = errors.New("no server outside answered in time")

// askMany asks n questions through a socket, as many at a time as window says,
// and returns how long each took. Only NOERROR counts as an answer. What is lost
// on the way, as buffers are small without root, is asked again like any client
// does, and takes as long as it took.
func askMany(c net.Conn, questions [][]byte, n, window int) ([]time.Duration, error) {
	times := make([]time.Duration, 0, n)
	began := make([]time.Time, min(window, n)) // by ID of the question; zero when answered
	packets := make([][]byte, len(began))      // by ID
	sent := 0
	next := func(id int) error {
		packets[id] = append(packets[id][:0], questions[rand.IntN(len(questions))]...)
		binary.BigEndian.PutUint16(packets[id], uint16(id))
		sent++
		began[id] = time.Now()
		_, err := c.Write(packets[id])
		return err
	}
	for id := range began {
		if err := next(id); err != nil {
			return nil, err
		}
	}
	answer := make([]byte, maxUDP)
	const again = 5 * time.Second
	patience := 12 // times
	c.SetReadDeadline(time.Now().Add(again))
	for len(times) < n {
		_, err := c.Read(answer)
		switch {
		case isTimeout(err) && patience > 0:
			patience--
			c.SetReadDeadline(time.Now().Add(again))
			for id, at := range began {
				if time.Since(at) > again/2 && !at.IsZero() {
					c.Write(packets[id])
				}
			}
			continue
		case err != nil:
			return nil, fmt.Errorf("after %d answers: %w", len(times), err)
		}
		id := int(binary.BigEndian.Uint16(answer))
		if began[id].IsZero() {
			continue // answered twice
		}
		took, code := time.Since(began[id]), int(answer[3]&0xf)
		times = append(times, took)
		began[id] = time.Time{}
		switch {
		case code == dns.RcodeServerFailure && took >= firstTry+secondTry:
			return nil, errSlow
		case code != dns.RcodeSuccess:
			return nil, fmt.Errorf("answer %s after %v", dns.RcodeToString[code], took)
		}
		if len(times)%1000 == 0 {
			c.SetReadDeadline(time.Now().Add(again))
		}
		if sent < n {
			if err := next(id); err != nil {
				return nil, err
			}
		}
	}
	return times, nil
}

// BenchmarkMillion asks a keeper, in a process of its own, a million times for
// names of the cluster, from a few sockets. Nothing is asserted about times: the
// aim is a p99.9 of at most 10 ms.
//
//	go test -run '^$' -bench Million -benchtime 1x ./agent/keeper
func BenchmarkMillion(b *testing.B) {
	const services, clients = 1000, 4
	w := newWorld(b)
	ns := w.namespace("a")
	c := w.ensure("1")
	if err := c.SetDNS(w.ctx(), []spec.Resolver{resolverOf("1-7", ns)}, []spec.NameTable{bigTable(services)}); err != nil {
		b.Fatal(err)
	}
	server, questions := w.server(ns), bigQuestions(services)
	var conns []net.Conn
	for range clients {
		c, err := net.Dial("udp", server)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	b.Log(machine())
	for _, window := range []int{1, 16} {
		b.Run(fmt.Sprintf("sockets=%d/each=%d", clients, window), func(b *testing.B) {
			var all []time.Duration
			began := time.Now()
			for range b.N {
				var wg sync.WaitGroup
				var mu sync.Mutex
				for _, c := range conns {
					wg.Go(func() {
						times, err := askMany(c, questions, million/clients, window)
						if err != nil {
							b.Error(err)
						}
						mu.Lock()
						defer mu.Unlock()
						all = append(all, times...)
					})
				}
				wg.Wait()
			}
			if b.Failed() {
				return
			}
			rate := float64(len(all)) / time.Since(began).Seconds()
			slices.Sort(all)
			n := len(all)
			b.ReportMetric(rate, "lookups/s")
			for name, d := range map[string]time.Duration{"p50": all[n/2], "p99": all[n/100*99], "p99.9": all[n/1000*999], "max": all[n-1]} {
				b.ReportMetric(float64(d.Nanoseconds())/1e6, "ms-"+name)
			}
			b.Logf("%d lookups: p50 %v, p99 %v, p99.9 %v, max %v; load %s", n, all[n/2], all[n/100*99], all[n/1000*999], all[n-1], loadAverage())
		})
	}
}

// machine says what figures were taken on.
func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	info, _ := os.ReadFile("/proc/cpuinfo")
	cpu := "unknown CPU"
	for line := range strings.Lines(string(info)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
			break
		}
	}
	return fmt.Sprintf("machine: %d × %s, Linux %s, %s, load %s", runtime.NumCPU(), cpu, strings.TrimSpace(string(kernel)), runtime.Version(), loadAverage())
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	return strings.TrimSpace(string(b))
}

// TestParallel: ten thousand lookups of names of the cluster at once, of all
// kinds and from many sockets, get an answer each, and none is a failure.
func TestParallel(t *testing.T) {
	w := newWorld(t)
	ns := w.namespace("a")
	testParallel(t, w, ns, func() (net.Conn, error) { return net.Dial("udp", w.server(ns)) })
}

func testParallel(t *testing.T, w *world, ns string, dial func() (net.Conn, error)) {
	const services, clients, each = 100, 50, 200
	c := w.ensure("1")
	if err := c.SetDNS(w.ctx(), []spec.Resolver{resolverOf("1-7", ns)}, []spec.NameTable{bigTable(services)}); err != nil {
		t.Fatal(err)
	}
	questions := bigQuestions(services)
	var wg sync.WaitGroup
	for range clients {
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			if _, err := askMany(c, questions, each, each); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if st := mustStatus(t, c); st.Queries < clients*each || st.Failed+st.Forwarded != 0 {
		t.Errorf("the keeper counts %+v", st)
	}
}

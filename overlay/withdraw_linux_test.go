package overlay

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/spec"
)

// led is one address on network 1-1.
func led(ip string) []spec.Address { return []spec.Address{{Network: "1-1", IP: ip}} }

// leading are documents in which a port, a VIP and a name lead to one address
// each; ends are of tasks to which nothing leads.
func leading(index uint64, port, vip, name string) []spec.HostNetwork {
	n := spec.HostNetwork{
		Clock:   spec.Clock{Incarnation: 1, Index: index},
		Network: spec.Network{ID: "1-1", Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}, Subnet: "10.9.1.0/24", Gateway: "10.9.1.1", VNI: 4097}, HostNumber: 7,
		Tasks:  []spec.Endpoint{{Task: "1-10", IP: "10.9.1.2/24", MAC: "02:58:0a:09:01:02"}},
		Hosts:  []spec.NetworkHost{{Node: "n3", Number: 3, Address: "192.0.2.3"}, {Node: "n2", Number: 2, Address: "192.0.2.2"}},
		Remote: []spec.RemoteEndpoint{{IP: "10.9.1.9", MAC: "02:58:0a:09:01:09", Host: 2}},
	}
	if port != "" {
		n.Ports = []spec.PublishedPort{{Port: 8080, Protocol: "tcp", Owner: "shop/web", Targets: []string{port + ":80"}}}
	}
	if vip != "" {
		n.VIPs = []spec.VIP{{Address: "10.9.1.100", Owner: "shop/web", Targets: []string{vip}}}
	}
	if name != "" {
		n.Names = []spec.Name{{Name: "web", Addresses: []string{name}}}
	}
	return []spec.HostNetwork{n}
}

func TestWithdrawn(t *testing.T) {
	for what, with := range map[string][]spec.HostNetwork{
		"port": leading(1, "10.9.1.2", "", ""), "vip": leading(1, "", "10.9.1.2", ""), "name": leading(1, "", "", "10.9.1.2"),
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bench) {
				defer b.run(t)()
				b.Set(with)
				synctest.Wait()
				start, end := time.Now(), make(chan error)
				go func() { end <- b.Withdrawn(t.Context(), led("10.9.1.2/24")) }()
				time.Sleep(time.Minute)
				select {
				case err := <-end:
					t.Fatalf("it is led to, yet withdrawn: %v", err)
				default:
				}
				b.Set(leading(2, "", "", ""))
				if err := <-end; err != nil || time.Since(start) != time.Minute {
					t.Errorf("withdrawn: %v after %s, want at once after a minute", err, time.Since(start))
				}
				for _, a := range [][]spec.Address{led("10.9.1.9"), {{Network: "1-7", IP: "10.9.1.2"}}, led("x"), nil} {
					if err := b.Withdrawn(t.Context(), a); err != nil {
						t.Errorf("%v, to which nothing leads: %v", a, err)
					}
				}
			})
		})
	}
}

func TestWithdrawnEndsWithContext(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.Set(leading(1, "10.9.1.2", "", ""))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		both := []spec.Address{{Network: "1-1", IP: "10.9.1.3/24"}, {Network: "1-1", IP: "10.9.1.2/24"}}
		if err := b.Withdrawn(ctx, both); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one of two is led to: %v", err)
		}
		if got := b.Leads(both); !slices.Equal(got, both[1:]) {
			t.Errorf("led to: %v", got)
		}
		// Either of its addresses is enough.
		for _, six := range []spec.HostNetwork{
			{Names: []spec.Name{{Name: "web", Addresses: []string{"fd00::3"}}}},
			{VIPs: []spec.VIP{{Address: "fd00::c8", Targets: []string{"fd00::3"}}}},
			{Ports: []spec.PublishedPort{{Port: 80, Protocol: "tcp", Targets: []string{"[fd00::3]:80"}}}},
		} {
			six.Network, six.Clock = leading(2, "", "", "")[0].Network, spec.Clock{Incarnation: 2}
			b.Set([]spec.HostNetwork{six})
			synctest.Wait()
			a := []spec.Address{{Network: "1-1", IP: "10.9.1.3/24", IP6: "fd00::3/64"}, {Network: "1-1", IP: "10.9.1.4/24", IP6: "fd00::4/64"}}
			if got := b.Leads(a); !slices.Equal(got, a[:1]) {
				t.Errorf("%+v leads to %v", six, got)
			}
		}
	})
}

// What a process finds is not its own: until it has brought the kernel and the
// DNS to something, they may lead anywhere.
func TestWithdrawnBeforeTheFirstPass(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.Set(leading(1, "", "", ""))
		all := led("10.9.1.2")
		if len(b.Leads(all)) != 1 {
			t.Error("nothing was brought to the kernel")
		}
		b.dns.set(errors.New("no keeper"))
		defer b.run(t)()
		if len(b.Leads(all)) != 1 {
			t.Error("nothing was brought to the DNS")
		}
		b.dns.set(nil)
		if err := b.Withdrawn(t.Context(), all); err != nil {
			t.Error(err)
		}
	})
}

// Neither what was received only nor what did not succeed withdraws anything,
// and what may have succeeded in part leads.
func TestWithdrawnAfterFailures(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		a, c := led("10.9.1.2"), led("10.9.1.3")
		fail := func(err error) {
			b.k.mu.Lock()
			defer b.k.mu.Unlock()
			b.k.fail = nil
			if err != nil {
				b.k.fail = map[string]error{"add addr 10.9.2.1/24 dev wbr-1-2": err}
			}
		}
		other := spec.HostNetwork{Network: spec.Network{ID: "1-2", Subnet: "10.9.2.0/24", Gateway: "10.9.2.1"}, HostNumber: 7}
		check := func(when string, wantA, wantC int) {
			t.Helper()
			if gotA, gotC := len(b.Leads(a)), len(b.Leads(c)); gotA != wantA || gotC != wantC {
				t.Errorf("%s: leads to %d and %d, want %d and %d", when, gotA, gotC, wantA, wantC)
			}
		}
		b.Set(leading(1, "10.9.1.2", "", "10.9.1.2"))
		synctest.Wait()
		check("first", 1, 0)
		fail(errors.New("no luck"))
		b.Set(append(leading(2, "10.9.1.3", "", "10.9.1.3"), other))
		synctest.Wait()
		check("a pass that failed", 1, 1)
		b.Set(append(leading(3, "", "", ""), other))
		synctest.Wait()
		check("another one", 1, 1)
		fail(nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		check("a success", 0, 0)
		b.Set(append(leading(4, "", "", "10.9.1.2"), other))
		synctest.Wait()
		check("a name", 1, 0)
		b.dns.set(errors.New("no keeper"))
		b.Set(append(leading(5, "", "", "10.9.1.3"), other))
		synctest.Wait()
		check("a DNS that does not answer", 1, 1)
		b.Set(append(leading(6, "", "", ""), other))
		synctest.Wait()
		check("still not", 1, 1)
		b.dns.set(nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		check("the DNS is back", 0, 0)
		// What was told last counts before it is brought anywhere.
		b.k.looking = func() {
			b.k.looking = nil
			if len(b.Leads(a)) != 1 {
				t.Error("what is about to lead does not count")
			}
		}
		b.Set(append(leading(7, "10.9.1.2", "", ""), other))
		synctest.Wait()
	})
}

func TestPeers(t *testing.T) {
	b := newBench(t, t.TempDir())
	b.Set(leading(1, "", "", ""))
	got := b.Peers([]spec.Address{{Network: "1-1", IP: "10.9.1.2/24"}, {Network: "1-7"}, {Network: "1-1"}})
	if !slices.Equal(got, []spec.NodeID{"n2", "n3"}) {
		t.Errorf("peers: %v", got)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

func TestJudgePath(t *testing.T) {
	tests := []struct {
		found cluster.Path
		err   error
		want  string
	}{
		{cluster.Path{Answers: true, Fits: 1500}, nil, "ok: carries the 1500 bytes that networks need"},
		{cluster.Path{Answers: true, Fits: 1400}, nil, "fail: carries packets of 1400 bytes, and networks send up to 1500"},
		{cluster.Path{Answers: true, Fits: 1000}, nil, "fail: carries packets of 1000 bytes, and networks need 1280 at least"},
		{cluster.Path{}, nil, "ok: not known: the node does not answer, or is of a version that cannot"},
		{cluster.Path{}, errors.New("no route"), "ok: not known: no route"},
	}
	for _, tt := range tests {
		c := judgePath("host-2", triedPath{Path: overlay.Path{Node: "b", Address: netip.MustParseAddr("192.0.2.2"), Size: 1500}, found: tt.found, err: tt.err})
		if got := c.Status + ": " + c.What; got != tt.want || c.Where != "host-2 (192.0.2.2)" {
			t.Errorf("%s at %s, want %s", got, c.Where, tt.want)
		}
		if c.Status == api.CheckFail && tt.found.Fits >= overlay.LeastMTU && !strings.Contains(c.Do[0], "--mtu 1400,") {
			t.Errorf("advice: %q", c.Do)
		}
	}
}

// TestPathsAreTried: each way once a minute, and at once when it is new or
// needs more; what is found is logged once.
func TestPathsAreTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var log bytes.Buffer
		way := func(node spec.NodeID, size int) overlay.Path {
			return overlay.Path{Node: node, Address: netip.MustParseAddr("192.0.2.2"), Size: size}
		}
		ways, fits, tried := []overlay.Path{way("b", 1500)}, 1500, 0
		p := &paths{
			ways: func() []overlay.Path { mu.Lock(); defer mu.Unlock(); return ways },
			try: func(context.Context, spec.NodeID, netip.Addr, int) (cluster.Path, error) {
				mu.Lock()
				defer mu.Unlock()
				tried++
				return cluster.Path{Answers: true, Fits: fits}, nil
			},
			name: func(id spec.NodeID) string { return "host-" + string(id) },
			log:  slog.New(slog.NewTextHandler(&log, nil)),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		step := func(what string, d time.Duration, times int, change func()) {
			t.Helper()
			mu.Lock()
			change()
			tried = 0
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if tried != times {
				t.Errorf("%s: tried %d times, want %d", what, tried, times)
			}
		}
		step("ten minutes", 10*time.Minute+time.Second, 11, func() {})
		step("it needs more", 2*time.Second, 1, func() { ways = []overlay.Path{way("b", 9000)}; fits = 1500 })
		step("another host", 2*time.Second, 1, func() { ways = append(ways, way("c", 1500)) })
		step("two of them, ten minutes", 10*time.Minute, 20, func() {})
		if got := strings.Count(log.String(), "carries packets of 1500 bytes, and networks send up to 9000"); got != 1 {
			t.Errorf("said %d times:\n%s", got, &log)
		}
		checks := p.checks(ctx)
		if got := fmt.Sprint(len(checks), checks[0].Status, checks[1].Status); got != "2failok" {
			t.Errorf("checks: %+v", checks)
		}
		step("it is mended", time.Minute+time.Second, 2, func() { fits = 9000 })
		if got := strings.Count(log.String(), "arrive at another host again"); got != 1 {
			t.Errorf("said %d times:\n%s", got, &log)
		}
		step("they go", time.Minute, 0, func() { ways = nil })
		if len(p.checks(ctx)) != 0 {
			t.Error("what is no way any more is still told of")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

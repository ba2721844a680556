package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/api"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

type answers func(*http.Request) (int, string, error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	code, body, err := a(r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: r}, nil
}

// TestSenders: a host that does not answer, and one that still sends, is asked
// again until the time is over, one that does not know the question is not.
func TestSenders(t *testing.T) {
	addrs := []spec.Address{{Network: "1-2", IP: "10.0.1.7/24"}}
	tests := []struct {
		name   string
		answer func(n int) (int, string, error)
		asked  int
		took   time.Duration
		want   string
	}{
		{"nothing leads there", func(int) (int, string, error) { return 200, `{"still": []}`, nil }, 1, 0, ""},
		{"not any more", func(n int) (int, string, error) {
			if n < 3 {
				return 200, `{"still": [{"network": "1-2", "ip": "10.0.1.7/24"}]}`, nil
			}
			return 200, `{"still": []}`, nil
		}, 3, 2 * askAgain, ""},
		{"its daemon starts anew", func(n int) (int, string, error) {
			if n < 5 {
				return 0, "", errors.New("connection refused")
			}
			return 200, `{"still": []}`, nil
		}, 5, 4 * askAgain, ""},
		{"it is dead", func(int) (int, string, error) { return 0, "", errors.New("connection refused") }, 20, 2 * time.Second, "host-2 at 192.0.2.2:4477: connection refused"},
		{"it sends on", func(int) (int, string, error) {
			return 200, `{"still": [{"network": "1-2", "ip": "10.0.1.7/24"}]}`, nil
		}, 20, 2 * time.Second, "host-2 at 192.0.2.2:4477: it still sends to 10.0.1.7/24"},
		{"it is of an older version", func(int) (int, string, error) {
			return 404, `{"error": {"class": "not_found", "message": "no such call"}}`, nil
		}, 1, 0, "host-2 at 192.0.2.2:4477: no such call"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked, told := 0, &hearsay{}
				told.info.Store(&api.ClusterInfo{Nodes: []api.Peer{{ID: "n1"}, {ID: "n2", Name: "host-2", Address: "192.0.2.2:4477"}}})
				s := senders{node: "n1", told: told, way: func(n spec.NodeID) (http.RoundTripper, error) {
					return answers(func(r *http.Request) (int, string, error) { asked++; return tt.answer(asked) }), nil
				}}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				begin, got := time.Now(), ""
				if err := s.Withdrawn(ctx, "n2", addrs); err != nil {
					got = err.Error()
				}
				if took := time.Since(begin); got != tt.want || took != tt.took || min(asked, 20) != tt.asked {
					t.Errorf("%q, asked %d times in %s", got, asked, took)
				}
			})
		})
	}
}

func TestSendersAreThisHostAndItsPeers(t *testing.T) {
	network := overlay.New(overlay.Config{Node: "n1", RunDir: t.TempDir()})
	network.Set([]spec.HostNetwork{{Network: spec.Network{ID: "1-2"}, Hosts: []spec.NetworkHost{{Node: "n2"}}}})
	s := senders{node: "n1", own: network, told: &hearsay{}}
	if got := fmt.Sprint(s.Senders([]spec.Address{{Network: "1-2"}}), s.Senders([]spec.Address{{Network: "1-3"}})); got != "[n1 n2] [n1]" {
		t.Errorf("senders: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := s.Withdrawn(ctx, "n1", []spec.Address{{Network: "1-2", IP: "10.0.1.7/24"}})
	if err == nil || err.Error() != "it still sends to 10.0.1.7/24" { // it has brought nothing anywhere yet
		t.Errorf("this host: %v", err)
	}
}

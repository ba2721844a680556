package cluster

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/spec"
)

// A leader that is deposed while it sends entries gets them back refused. It
// must notice that, follow, and be able to end; with the library's pipelines it
// hangs instead.
func TestDeposedUnderLoad(t *testing.T) {
	f := newFabric()
	a := f.member(t, true, nil)
	a.await(a.Ready(), "ready")
	all := []*running{a, f.member(t, false, nil), f.member(t, false, nil)}
	byID := map[spec.NodeID]*running{}
	for _, m := range all {
		byID[m.Node()] = m
	}
	for _, m := range all[1:] {
		if err := a.raft.AddVoter(raft.ServerID(m.Node()), raft.ServerAddress(m.Node()), 0, patience).Error(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for _, m := range all {
		for w := range 4 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if !m.Status().Leader {
						wait(ctx, time.Millisecond)
						continue
					}
					// It is lost when m is deposed.
					_, _ = m.Propose(ctx, label(m.Member, fmt.Sprintf("w%d", w), fmt.Sprint(i)))
				}
			})
		}
	}
	var stranger spec.NodeID = "stranger"
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: streamLayer{fabricEnd{nowhere{newAlone()}, f, &stranger}, stranger, new(openStreams)}, Timeout: rpcTimeout, MsgpackUseNewTimeFormat: true,
	})
	defer trans.Close()
	leader := a
	for change := range 30 {
		next := all[change%3]
		if next == leader {
			continue
		}
		old := leader.Status().Term
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader.Node()), Addr: []byte(leader.Node())}
		if err := trans.TimeoutNow(raft.ServerID(next.Node()), raft.ServerAddress(next.Node()), &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{}); err != nil {
			t.Fatal(err)
		}
		a.until("a new leader", func() bool {
			for _, m := range all {
				if s := m.Status(); s.Leader && s.Term > old {
					leader = m
					return true
				}
			}
			return false
		})
		// Every follower gets entries.
		mark := fmt.Sprint(change)
		a.until("a write", func() bool {
			res, err := leader.Propose(t.Context(), label(leader.Member, "mark", mark))
			return err == nil && res.Err == nil || !leader.Status().Leader
		})
	}
	cancel()
	writers.Wait()
	for _, m := range all {
		_ = m.end() // the fabric's listener is closed twice
	}
}

// nowhere is a listener that nobody calls.
type nowhere struct{ *alone }

func (nowhere) Addr() net.Addr { return nodeAddr("nowhere") }

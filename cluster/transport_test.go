package cluster

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
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
				// It may have become the leader by itself just before.
				if s := m.Status(); s.Leader && (s.Term > old || m == next) {
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

// What says nothing new to a follower waits, but not for longer than until
// there is something new.
func TestIdleMessagesRest(t *testing.T) {
	same := raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 7, PrevLogTerm: 3, LeaderCommitIndex: 7}
	entries, heartbeat, uncommitted, newTerm := same, raft.AppendEntriesRequest{Term: 3}, same, same
	entries.Entries = []*raft.Log{command(8, 1)}
	uncommitted.LeaderCommitIndex = 6
	newTerm.Term = 4
	for _, c := range []struct {
		name  string
		args  raft.AppendEntriesRequest
		told  commit
		begun uint64 // the newest entry of the log
		next  bool   // an entry comes after 40 ms
		want  time.Duration
	}{
		{"nothing new", same, commit{3, 7}, 7, false, idleRest},
		{"nothing new since the start", same, commit{3, 7}, 0, false, idleRest},
		{"then an entry", same, commit{3, 7}, 7, true, 40 * time.Millisecond},
		{"an entry is there", same, commit{3, 7}, 8, false, 0},
		{"the follower does not know what is committed", same, commit{3, 6}, 7, false, 0},
		{"nor in this term", newTerm, commit{3, 7}, 7, false, 0},
		{"not all is committed", uncommitted, commit{3, 7}, 7, false, 0},
		{"entries", entries, commit{3, 7}, 7, false, 0},
		{"heartbeat", heartbeat, commit{3, 7}, 7, false, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := newFaultyStore(t)
			s.begun = c.begun
			none := newAlone()
			defer none.Close()
			trans := (&Member{logs: s, streams: none, log: s.log}).newTransport()
			defer trans.Close()
			trans.told["f"] = c.told
			if c.next {
				time.AfterFunc(40*time.Millisecond, func() { _ = s.StoreLog(command(c.begun+1, 1)) })
			}
			began := time.Now()
			if err := trans.AppendEntries("f", "f", &c.args, &raft.AppendEntriesResponse{}); err == nil {
				t.Fatal("sent to nobody")
			}
			if d := time.Since(began); d != c.want {
				t.Errorf("%s: sent after %s, want %s", c.name, d, c.want)
			}
		})
	}
}

// nowhere is a listener that nobody calls.
type nowhere struct{ *alone }

func (nowhere) Addr() net.Addr { return nodeAddr("nowhere") }

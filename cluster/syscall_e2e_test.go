//go:build e2e

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func init() {
	children["voter"] = voterChild
	children["steady"] = steadyChild
}

// fileCalls are the system calls by which a file or a name in a folder can
// change, be made durable or be looked at.
var fileCalls = []string{
	"openat", "close", "read", "pread64", "write", "pwrite64", "fsync", "fdatasync", "fallocate", "ftruncate",
	"rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdirat", "newfstatat", "fstat", "getdents64", "flock",
}

// The two things that are made to happen at a system call.
const (
	killed = "signal=SIGKILL"
	failed = "error=EIO"
)

// faultAtEach runs a part again and again, each time on a new folder, with a
// fault at the first, second, third … system call of every kind, until it
// comes to its end before that. check is given the words that the part put
// out. The result counts the faults.
func faultAtEach(t *testing.T, part, fault string, calls []string, check func(dir string, out []string)) map[string]int {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("this test needs strace: apt-get install strace")
	}
	faults := map[string]int{}
	total := 0
	for _, call := range calls {
		for k := 1; ; k++ {
			dir, trace := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "trace")
			var out, errs bytes.Buffer
			cmd := child(part, dir, "strace", "-f", "-qqq", "-o", trace,
				"-e", "trace="+call, "-e", "inject="+call+":"+fault+":when="+strconv.Itoa(k))
			cmd.Stdout, cmd.Stderr = &out, &errs
			// One thread makes all calls as far as it can be had: strace counts
			// by thread.
			cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			b, rerr := os.ReadFile(trace)
			if rerr != nil {
				t.Fatal(rerr)
			}
			fired := bytes.Contains(b, []byte("INJECTED"))
			if fault == killed {
				fired = exit != nil && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			}
			if err != nil && !fired || strings.Contains(errs.String(), "goroutine ") {
				t.Fatalf("%s at %s %d: %v\n%s", fault, call, k, err, errs.String())
			}
			check(dir, strings.Fields(out.String()))
			if t.Failed() {
				t.Fatalf("… with %s at %s number %d: %s", fault, call, k, errs.String())
			}
			os.RemoveAll(dir)
			if !fired {
				break
			}
			faults[call]++
			total++
		}
	}
	t.Logf("%d times %s: %v", total, fault, faults)
	return faults
}

// ballots are the states that a voter goes through, one call of Raft apart.
func ballots() []ballot {
	states := []ballot{{}}
	for term := uint64(1); term <= 3; term++ {
		b := states[len(states)-1]
		b.Term = term
		states = append(states, b)
		b.VoteTerm, b.VoteFor = term, fmt.Appendf(nil, "candidate-%d", term)
		states = append(states, b)
	}
	return states
}

// voterChild goes through ballots and says "at-N" when state N was
// acknowledged.
func voterChild(dir string) error {
	runtime.LockOSThread()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	s, err := openStable(filepath.Join(dir, stableFile), newHalt())
	if err != nil {
		return err
	}
	for i, b := range ballots() {
		switch {
		case i == 0:
		case i%2 == 1:
			err = s.SetUint64([]byte(keyCurrentTerm), b.Term)
		default:
			err = vote(s, b.VoteTerm, string(b.VoteFor))
		}
		if err != nil {
			return err
		}
		fmt.Printf("at-%d\n", i)
	}
	return s.close()
}

func TestVoterKilledAtEachSystemCall(t *testing.T) {
	states := ballots()
	kills := faultAtEach(t, "voter", killed, fileCalls, func(dir string, out []string) {
		acked := len(out) - 1 // -1: not even the empty file was acknowledged
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, stableFile)
		s, err := openStable(path, newHalt())
		if err != nil {
			t.Errorf("after state %d: %v", acked, err)
			return
		}
		got := read(t, s)
		ok := acked >= 0 && cmp.Equal(got, states[acked]) || acked+1 < len(states) && cmp.Equal(got, states[acked+1])
		if !ok {
			t.Errorf("state %d was acknowledged, found %+v", acked, got)
		}
		if err := errors.Join(vote(s, 9, "next"), s.close()); err != nil {
			t.Error(err)
		}
		s = mustStable(t, path)
		if got := read(t, s); got.VoteTerm != 9 || string(got.VoteFor) != "next" {
			t.Errorf("a vote after the crash is lost: %+v", got)
		}
		s.close()
	})
	// Making the file, opening it, and each state must have been synced.
	if kills["fsync"] < len(states) || kills["pwrite64"] == 0 || kills["openat"] == 0 {
		t.Error("the store writes less than it acknowledges")
	}
}

func steadyConfig(dir string) Config {
	c := testConfig(dir)
	c.SnapshotThreshold = 3
	return c
}

const steadyWrites = 6

// steadyChild forms a cluster, writes a few times and ends; it names
// each write after it.
func steadyChild(dir string) error {
	m, err := Open(context.Background(), steadyConfig(dir))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	wrote := make(chan error, 1)
	go func() {
		defer stop()
		wrote <- steadyWork(ctx, m)
	}()
	err = m.Run(ctx)
	stop()
	return errors.Join(err, <-wrote)
}

func steadyWork(ctx context.Context, m *Member) error {
	select {
	case <-m.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	for i := 1; i <= steadyWrites; i++ {
		res, err := m.Propose(ctx, label(m, "k"+strconv.Itoa(i), "v"))
		if err = errors.Join(err, res.Err); err != nil {
			return err
		}
		fmt.Printf("k%d\n", i)
	}
	// Some faults shall fall into a snapshot.
	_, err := await(ctx, m, func(r *raft.Raft) (struct{}, error) { return struct{}{}, r.Snapshot().Error() })
	return err
}

// The whole member, from the first start on an empty folder: whatever it dies
// in the middle of, it comes up again with every write it has acknowledged.
func TestMemberKilledAtEachSystemCall(t *testing.T) {
	faultAtEach(t, "steady", killed, []string{
		"mkdirat", "openat", "write", "pwrite64", "fsync", "fdatasync", "fallocate", "ftruncate", "renameat", "unlinkat",
	}, keepsWhatItNamed(t))
}

// A disk that fails once: the member may stop or, where nothing of what it
// keeps is concerned, go on, but it neither panics nor loses a write.
func TestMemberWithDiskErrorAtEachSystemCall(t *testing.T) {
	faultAtEach(t, "steady", failed, []string{
		"mkdirat", "pwrite64", "fsync", "fdatasync", "fallocate", "ftruncate", "renameat", "unlinkat",
	}, keepsWhatItNamed(t))
}

func keepsWhatItNamed(t *testing.T) func(string, []string) {
	return func(dir string, out []string) {
		r := start(t, steadyConfig(dir))
		defer r.end()
		for _, k := range out {
			if r.get(k) != "v" {
				t.Errorf("write %s was acknowledged and is lost", k)
			}
		}
		r.put("after", "crash")
	}
}

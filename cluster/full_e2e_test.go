//go:build e2e

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wherry.dev/spec"
)

func init() { children["full"] = fullChild }

// A member on a disk that is full, which here is a small tmpfs that only the
// child can see.
func TestFullDisk(t *testing.T) {
	cmd := child("full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v; got as far as: %s", err, out)
	}
	t.Logf("%s", out)
}

// fullMember is a member that the child runs.
type fullMember struct {
	*Member
	stop context.CancelFunc
	done chan error
}

func startFull(dir string) (*fullMember, error) {
	m, err := Open(context.Background(), testConfig(filepath.Join(dir, "data")))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	f := &fullMember{m, stop, make(chan error, 1)}
	go func() { f.done <- m.Run(ctx) }()
	select {
	case <-m.Ready():
		return f, nil
	case err := <-f.done:
		stop()
		return nil, fmt.Errorf("not ready: %w", err)
	case <-time.After(patience):
		stop()
		return nil, errors.New("not ready in time")
	}
}

func (f *fullMember) end() error {
	f.stop()
	return <-f.done
}

func (f *fullMember) label(key, value string) error {
	res, err := f.Propose(context.Background(), label(f.Member, key, value))
	return errors.Join(err, res.Err)
}

// refusedBy checks that a member on a full disk refuses a write, says why, and
// still vouches for what it has.
func refusedBy(m *fullMember) error {
	err := m.label("a", "refused")
	if !errors.Is(err, spec.ErrUnavailable) || !strings.Contains(err.Error(), "disk full") {
		return fmt.Errorf("write on a full disk: %w", err)
	}
	fmt.Println(err)
	if err := m.Linearizable(context.Background()); err != nil {
		return fmt.Errorf("read on a full disk: %w", err)
	}
	return nil
}

func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for b := make([]byte, 4096); ; {
		if _, err := f.Write(b); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func fullChild(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=40m"); err != nil {
		return err
	}
	filler := filepath.Join(dir, "filler")
	m, err := startFull(dir)
	if err != nil {
		return err
	}
	if err := m.label("a", "before"); err != nil {
		return err
	}

	if err := fill(filler); err != nil {
		return err
	}
	if err := refusedBy(m); err != nil {
		return err
	}

	// A restart must neither fail nor loop: nothing that it writes needs room.
	if err := m.end(); err != nil {
		return err
	}
	if m, err = startFull(dir); err != nil {
		return fmt.Errorf("restart on a full disk: %w", err)
	}
	if err := refusedBy(m); err != nil {
		return err
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	if err := m.label("a", "after"); err != nil {
		return fmt.Errorf("with space again: %w", err)
	}

	// The disk fills up behind the member's back, and its log has to grow.
	if err := fill(filler); err != nil {
		return err
	}
	acked := 0
	for {
		res, err := m.propose(context.Background(), label(m.Member, "n", fmt.Sprintf("%d %s", acked+1, strings.Repeat("x", 50<<10))))
		if err != nil {
			if !errors.Is(err, spec.ErrUnavailable) {
				return fmt.Errorf("write %d: %w", acked+1, err)
			}
			break
		}
		if res.Err != nil {
			return res.Err
		}
		if acked++; acked > 200 {
			return errors.New("the log grew on a full disk")
		}
	}
	err = <-m.done
	if err == nil || !strings.Contains(err.Error(), "disk of "+m.c.DataDir+" is full") {
		return fmt.Errorf("end on a full disk: %v", err)
	}
	fmt.Println("log out of space:", err)
	// The entry of a new term may just fit into the log's file, or not.
	if m, err := startFull(dir); err == nil {
		if err := refusedBy(m); err != nil {
			return err
		}
		m.end()
	} else if !strings.Contains(err.Error(), "is full") {
		return fmt.Errorf("start without room for the log: %w", err)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	if m, err = startFull(dir); err != nil {
		return fmt.Errorf("start with space again: %w", err)
	}
	var n int
	fmt.Sscan(m.Store().Snapshot().Node(m.Node()).Labels["n"], &n)
	if n < acked || n > acked+1 {
		return fmt.Errorf("%d writes were acknowledged, the state has %d", acked, n)
	}
	fmt.Println("acknowledged writes kept:", acked)
	return m.end()
}

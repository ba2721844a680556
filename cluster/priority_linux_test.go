package cluster

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { children["urgent"] = urgentChild }

// urgentChild raises its priority and lowers it again, and says what it is.
func urgentChild(string) error {
	for _, set := range []func() error{Urgent, Ordinary} {
		if err := set(); err != nil {
			return err
		}
		n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err != nil {
			return err
		}
		fmt.Println(20 - n)
	}
	return nil
}

// Only a process that may raise its priority can show anything.
func TestPriority(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may raise a priority")
	}
	out, err := child("urgent", "-").Output()
	if err != nil || strings.Join(strings.Fields(string(out)), " ") != "-10 0" {
		t.Errorf("%q, %v", out, err)
	}
}

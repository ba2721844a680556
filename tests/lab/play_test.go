//go:build play

package lab

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

// TestPlay brings up a host for a person to play with and takes it down again
// on Ctrl-C: `make lab`.
func TestPlay(t *testing.T) {
	l := New(t)
	h := l.Host("host-1")
	h.Start()
	if images, err := filepath.Glob("../../build/images/*.tar"); err == nil && len(images) > 0 {
		h.Must(append([]string{"image", "load"}, images...)...)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	fmt.Printf(`
host-1 runs, %s.

  export WHERRY_HOST=%s
  %s apply -f examples/hello/stack.yml
  nsenter --net=%s curl http://127.0.0.1:8080/     # from the host
  tail -f %s

Ctrl-C takes everything away again.
`, h.IP, h.Socket(), Binary(t), l.NSPath(h.Name), h.LogFile())
	<-stop
}

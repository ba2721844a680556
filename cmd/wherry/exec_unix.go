//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// windowSizes delivers the size of the terminal whenever it changes, until
// stop is called.
func windowSizes(fd int) (sizes <-chan [2]uint16, stop func()) {
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	out, done := make(chan [2]uint16), make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-winch:
			}
			w, h, err := term.GetSize(fd)
			if err != nil {
				continue
			}
			select {
			case out <- [2]uint16{uint16(w), uint16(h)}:
			case <-done:
				return
			}
		}
	}()
	return out, func() { signal.Stop(winch); close(done) }
}

package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/spec"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// stream answers every request with what the test writes into the pipe.
func stream(r *io.PipeReader) roundTrip {
	return func(q *http.Request) (*http.Response, error) {
		context.AfterFunc(q.Context(), func() { r.CloseWithError(q.Context().Err()) })
		return &http.Response{StatusCode: http.StatusOK, Body: r, Request: q}, nil
	}
}

// TestSessionSilence: a session is broken once nothing comes, and only then.
func TestSessionSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		start := time.Now()
		go func() {
			for range 5 {
				time.Sleep(2 * time.Second)
				_, _ = w.Write([]byte("{}\n"))
			}
		}()
		lines := 0
		err := NewNodeClient(stream(r)).Session(t.Context(), "n", "i", func(Document) error {
			lines++
			time.Sleep(4 * time.Second) // whoever acts on a document is not the manager's silence
			return nil
		})
		if !errors.Is(err, spec.ErrUnavailable) || err.Error() != "session of node n: nothing was heard of the manager for 3s" {
			t.Errorf("it ended with %v", err)
		}
		if want := 2*time.Second + 5*4*time.Second + SessionSilence; lines != 5 || time.Since(start) != want {
			t.Errorf("it ended after %s and %d lines, want %s and 5", time.Since(start), lines, want)
		}
	})
	synctest.Test(t, func(t *testing.T) { // also before the first line
		r, _ := io.Pipe()
		start := time.Now()
		if err := NewNodeClient(stream(r)).Session(t.Context(), "n", "i", nil); !errors.Is(err, spec.ErrUnavailable) || time.Since(start) != SessionSilence {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the caller's end is no silence
		r, _ := io.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := NewNodeClient(stream(r)).Session(ctx, "n", "i", nil); errors.Is(err, spec.ErrUnavailable) {
			t.Errorf("the caller's end: %v", err)
		}
	})
}

// TestErrorClasses: each class has one name and a status, and survives a wire.
func TestErrorClasses(t *testing.T) {
	names := map[string]bool{}
	for _, c := range classes {
		err := ErrorOfClass(c.name, "text")
		if names[c.name] || !errors.Is(err, c.err) || ErrorClass(err) != c.name || ErrorStatus(err) != c.status || err.Error() != "text" {
			t.Errorf("%s: %v of class %s with status %d", c.name, err, ErrorClass(err), ErrorStatus(err))
		}
		names[c.name] = true
		// What package spec knows it must call the same.
		if got := spec.ErrorClass(err); got != "" && got != c.name {
			t.Errorf("package spec calls %s %s", c.name, got)
		}
	}
	if err := ErrorOfClass("", "text"); ErrorClass(err) != "" || ErrorStatus(err) != http.StatusInternalServerError {
		t.Errorf("no class: %v", err)
	}
}

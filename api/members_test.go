package api

import (
	"context"
	"errors"
	"fmt"
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
	tests := []struct {
		class  error
		name   string
		status int
	}{
		{ErrRemoved, "removed", 403},
		{ErrForbidden, "forbidden", 403},
		{ErrNotManager, "not_manager", 421},
		{spec.ErrInvalid, "invalid", 422},
		{spec.ErrNotFound, "not_found", 404},
		{spec.ErrConflict, "conflict", 409},
		{spec.ErrUnavailable, "unavailable", 503},
	}
	for i, tt := range tests {
		sent := fmt.Errorf("outer: %w", Errorf(tt.class, "inner"))
		if name, status := ErrorClass(sent), ErrorStatus(sent); name != tt.name || status != tt.status {
			t.Errorf("%v: class %q with status %d, want %q with %d", tt.class, name, status, tt.name, tt.status)
		}
		got := ErrorOfClass(tt.name, sent.Error())
		if ErrorClass(got) != tt.name || ErrorStatus(got) != tt.status || got.Error() != "outer: inner" {
			t.Errorf("%s: came back as %v of class %q with status %d", tt.name, got, ErrorClass(got), ErrorStatus(got))
		}
		for j, other := range tests {
			if errors.Is(got, other.class) != (i == j) {
				t.Errorf("%s: is %v: %t", tt.name, other.class, i != j)
			}
		}
	}
	if len(statuses) != len(tests) {
		t.Errorf("%d classes have a status, want %d", len(statuses), len(tests))
	}
	// What is of no class, or of one that this version does not know, is internal.
	for _, err := range []error{nil, errors.New("text"), ErrorOfClass("", "text"), ErrorOfClass("newer", "text")} {
		if ErrorClass(err) != "" || ErrorStatus(err) != http.StatusInternalServerError || err != nil && err.Error() != "text" {
			t.Errorf("no class: %v of class %q with status %d", err, ErrorClass(err), ErrorStatus(err))
		}
	}
	// Of two classes, that of this package is told.
	if err := errors.Join(spec.ErrConflict, ErrForbidden); ErrorClass(err) != "forbidden" {
		t.Errorf("two classes: %q", ErrorClass(err))
	}
}

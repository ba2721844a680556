package api

import (
	"errors"
	"fmt"
	"net/http"

	"wherry.dev/spec"
)

// The classes of errors that exist between a caller and a daemon only; all
// others are those of package spec.
var (
	// ErrForbidden: who calls may not do this.
	ErrForbidden = errors.New("not allowed")
	// ErrRemoved: the node that calls was removed from the cluster. Only a
	// manager that has asked the leader says so.
	ErrRemoved = errors.New("removed from the cluster")
	// ErrNotManager: the node that was asked is a worker.
	ErrNotManager = errors.New("not a manager")
)

// classes are the names and statuses of errors on the wire.
var classes = []struct {
	err    error
	name   string
	status int
}{
	{ErrRemoved, "removed", http.StatusForbidden},
	{ErrForbidden, "forbidden", http.StatusForbidden},
	{ErrNotManager, "not_manager", http.StatusMisdirectedRequest},
	{spec.ErrInvalid, "invalid", http.StatusUnprocessableEntity},
	{spec.ErrNotFound, "not_found", http.StatusNotFound},
	{spec.ErrConflict, "conflict", http.StatusConflict},
	{spec.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
}

// classed carries a class without printing it.
type classed struct {
	class error
	msg   string
}

func (e *classed) Error() string { return e.msg }
func (e *classed) Unwrap() error { return e.class }

// Errorf returns an error of the given class (ErrRemoved, ErrForbidden, …).
func Errorf(class error, format string, args ...any) error {
	return &classed{class, fmt.Sprintf(format, args...)}
}

// ErrorClass names the class of err for the wire; "" for an internal error.
func ErrorClass(err error) string {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return ""
}

// ErrorOfClass is the inverse of ErrorClass: an error with the given message
// that errors.Is recognises as of the named class.
func ErrorOfClass(class, msg string) error {
	for _, c := range classes {
		if c.name == class {
			return &classed{c.err, msg}
		}
	}
	return errors.New(msg)
}

// ErrorStatus returns the HTTP status for an error.
func ErrorStatus(err error) int {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.status
		}
	}
	return http.StatusInternalServerError
}

package api

import (
	"cmp"
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

// classes are the names of these errors on the wire.
var classes = []struct {
	err  error
	name string
}{
	{ErrRemoved, "removed"},
	{ErrForbidden, "forbidden"},
	{ErrNotManager, "not_manager"},
}

// statuses has the HTTP status of each class, by its name.
var statuses = map[string]int{
	"removed":     http.StatusForbidden,
	"forbidden":   http.StatusForbidden,
	"not_manager": http.StatusMisdirectedRequest,
	"invalid":     http.StatusUnprocessableEntity,
	"not_found":   http.StatusNotFound,
	"conflict":    http.StatusConflict,
	"unavailable": http.StatusServiceUnavailable,
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
	return spec.ErrorClass(err)
}

// ErrorOfClass is the inverse of ErrorClass: an error with the given message
// that errors.Is recognises as of the named class.
func ErrorOfClass(class, msg string) error {
	for _, c := range classes {
		if c.name == class {
			return &classed{c.err, msg}
		}
	}
	return spec.ErrorOfClass(class, msg)
}

// ErrorStatus returns the HTTP status for an error.
func ErrorStatus(err error) int {
	return cmp.Or(statuses[ErrorClass(err)], http.StatusInternalServerError)
}

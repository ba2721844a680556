package spec

import (
	"errors"
	"fmt"
)

// The classes of errors that survive every boundary of the system: package api
// maps them to HTTP statuses and back, so errors.Is works across the network.
var (
	// ErrInvalid: the input is wrong; repeating it unchanged is pointless.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: the named object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the object has changed since it was read, or is in use.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable: no manager, no leader or no runtime to do it now.
	ErrUnavailable = errors.New("unavailable")
)

// classed carries a class without printing it: the message says what is wrong,
// the class says how the caller may react.
type classed struct {
	class error
	msg   string
}

func (e *classed) Error() string { return e.msg }
func (e *classed) Unwrap() error { return e.class }

// Invalidf returns an error of class ErrInvalid.
func Invalidf(format string, args ...any) error {
	return &classed{ErrInvalid, fmt.Sprintf(format, args...)}
}

// NotFoundf returns an error of class ErrNotFound.
func NotFoundf(format string, args ...any) error {
	return &classed{ErrNotFound, fmt.Sprintf(format, args...)}
}

// Conflictf returns an error of class ErrConflict.
func Conflictf(format string, args ...any) error {
	return &classed{ErrConflict, fmt.Sprintf(format, args...)}
}

// Unavailablef returns an error of class ErrUnavailable.
func Unavailablef(format string, args ...any) error {
	return &classed{ErrUnavailable, fmt.Sprintf(format, args...)}
}

// ErrorClass names the class of err for the wire: "invalid", "not_found",
// "conflict", "unavailable", or "" for an error of no class.
func ErrorClass(err error) string {
	switch {
	case errors.Is(err, ErrInvalid):
		return "invalid"
	case errors.Is(err, ErrNotFound):
		return "not_found"
	case errors.Is(err, ErrConflict):
		return "conflict"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	}
	return ""
}

// ErrorOfClass is the inverse of ErrorClass: an error with the given message
// that errors.Is recognises as of the named class.
func ErrorOfClass(class, msg string) error {
	switch class {
	case "invalid":
		return &classed{ErrInvalid, msg}
	case "not_found":
		return &classed{ErrNotFound, msg}
	case "conflict":
		return &classed{ErrConflict, msg}
	case "unavailable":
		return &classed{ErrUnavailable, msg}
	}
	return errors.New(msg)
}

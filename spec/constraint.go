package spec

import (
	"net/netip"
	"regexp"
	"strings"
)

// ConstraintOp is the operator of a placement constraint.
type ConstraintOp string

// The operators of constraints.
const (
	ConstraintEqual    ConstraintOp = "=="
	ConstraintNotEqual ConstraintOp = "!="
)

// NodeLabelPrefix begins the keys of constraints and spread preferences that
// look at the labels of a node.
const NodeLabelPrefix = "node.labels."

// Constraint is a placement constraint taken apart. A node that lacks a label
// has the empty value for it, so "!=" holds there and "==" does not.
type Constraint struct {
	// Key is one of node.id, node.hostname, node.role, node.ip,
	// node.platform.os, node.platform.arch, or node.labels.NAME.
	Key string
	Op  ConstraintOp
	// Value to compare with, never empty. For node.ip it is an address or a
	// prefix ("10.0.0.0/24").
	Value string
}

// String returns the canonical form, which ParseConstraint accepts.
func (c Constraint) String() string { return c.Key + string(c.Op) + c.Value }

// Label returns the name of the node label that the constraint looks at.
func (c Constraint) Label() (name string, ok bool) {
	return strings.CutPrefix(c.Key, NodeLabelPrefix)
}

// constraintKeys are the keys that take any node; labels come on top.
var constraintKeys = map[string]bool{
	"node.id": true, "node.hostname": true, "node.role": true, "node.ip": true,
	"node.platform.os": true, "node.platform.arch": true,
}

var (
	labelName       = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?$`)
	constraintValue = regexp.MustCompile(`^[A-Za-z0-9:_*.\s/-]+$`)
)

// ParseConstraint takes a constraint such as "node.labels.disk == ssd" apart.
// Keys are not case-sensitive save for the names of labels. The error is of
// class ErrInvalid and says what is accepted.
func ParseConstraint(s string) (Constraint, error) {
	op := ConstraintNotEqual
	key, value, ok := strings.Cut(s, string(op))
	if k, v, eq := strings.Cut(s, string(ConstraintEqual)); eq && (!ok || len(k) < len(key)) {
		op, key, value, ok = ConstraintEqual, k, v, true
	}
	if !ok {
		return Constraint{}, Invalidf("constraint %q has no operator, want KEY==VALUE or KEY!=VALUE", s)
	}
	c := Constraint{Key: strings.TrimSpace(key), Op: op, Value: strings.TrimSpace(value)}
	if c.Value == "" || !constraintValue.MatchString(c.Value) {
		return Constraint{}, Invalidf("constraint %q has no valid value after %s", s, op)
	}
	var err error
	if c.Key, err = nodeKey(c.Key); err != nil {
		return Constraint{}, Invalidf("constraint %q: %v", s, err)
	}
	return c, checkConstraintValue(s, c)
}

// checkConstraintValue refuses values that no node can ever have.
func checkConstraintValue(s string, c Constraint) error {
	switch c.Key {
	case "node.role":
		if c.Value != string(RoleManager) && c.Value != string(RoleWorker) {
			return Invalidf("constraint %q: a role is manager or worker", s)
		}
	case "node.ip":
		if _, err := netip.ParseAddr(c.Value); err == nil {
			return nil
		}
		if _, err := netip.ParsePrefix(c.Value); err != nil {
			return Invalidf("constraint %q: %q is neither an address nor a prefix such as 10.0.0.0/24", s, c.Value)
		}
	}
	return nil
}

// nodeKey returns the canonical form of the key of a node's property.
func nodeKey(key string) (string, error) {
	lower := strings.ToLower(key)
	if constraintKeys[lower] {
		return lower, nil
	}
	if strings.HasPrefix(lower, NodeLabelPrefix) && labelName.MatchString(key[len(NodeLabelPrefix):]) {
		return NodeLabelPrefix + key[len(NodeLabelPrefix):], nil
	}
	return "", Invalidf("unknown key %q, want node.id, node.hostname, node.role, node.ip, node.platform.os, node.platform.arch or node.labels.NAME", key)
}

// ParseSpread checks a spread preference and returns its canonical key: the
// key of a node's property or label over whose values tasks are spread.
func ParseSpread(s string) (string, error) {
	key, err := nodeKey(strings.TrimSpace(s))
	if err != nil {
		return "", Invalidf("spread %q: %v", s, err)
	}
	return key, nil
}

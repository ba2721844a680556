package spec

import (
	"fmt"
	"strings"
)

// Identifiers of stored objects. All but NodeID, RevisionID and ContentID have
// the form "incarnation-counter", are assigned by the state machine and are
// never used twice in the life of a cluster.
type (
	// StackID identifies one life of a stack, from its first apply to its removal.
	StackID string
	// ServiceID identifies one life of a service.
	ServiceID string
	// TaskID identifies a task.
	TaskID string
	// NetworkID identifies a network.
	NetworkID string
	// VolumeID identifies a volume.
	VolumeID string
	// NodeID is the identity of a host: 16 hex digits made at its first start
	// and kept in its data folder. A node's name and address may change, its
	// ID never does.
	NodeID string
	// RevisionID is the hash of a Template's canonical encoding (HashTemplate).
	RevisionID string
	// ContentID names a blob by a hash of its bytes. In a stack on its way from
	// the client it is the plain SHA-256 ("sha256:…"); in the state it is keyed
	// with a secret of the cluster ("hmac:…"), so that the name of a blob says
	// nothing about its bytes. What is sealed besides is called "sealed:…".
	ContentID string
)

// MakeID forms an identifier from the incarnation of the state and a counter.
func MakeID(incarnation, counter uint64) string {
	return fmt.Sprintf("%d-%d", incarnation, counter)
}

// ServiceKey is the key of a service in the state: "stack/service".
func ServiceKey(stack, service string) string { return stack + "/" + service }

// SplitServiceKey is the inverse of ServiceKey; ok is false when key holds no
// slash, in which case key is returned as the stack.
func SplitServiceKey(key string) (stack, service string, ok bool) {
	return strings.Cut(key, "/")
}

// ScopedName is the cluster-wide name of a stack's network or volume, as
// Compose and Swarm form it: "stack_name".
func ScopedName(stack, name string) string { return stack + "_" + name }

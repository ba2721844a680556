package spec

import (
	"strings"
	"time"
)

// Authority is the cluster's certificate authority as the state holds it. It
// is for managers only: no answer of the API may contain it.
type Authority struct {
	// Roots that members trust, oldest first; never empty. More than one while
	// the authority is being exchanged.
	Roots []Root `json:"roots"`
	// Signer is the hash of the root that signs from now on.
	Signer string `json:"signer"`
	// Tokens that let a host join, by the role that it gets.
	Tokens map[NodeRole]JoinToken `json:"tokens"`
	// Version is the log index of the last write.
	Version uint64 `json:"version"` // apply
}

// RootsPEM is the certificates of the roots, oldest first.
func (a *Authority) RootsPEM() string {
	var b strings.Builder
	for _, r := range a.Roots {
		b.WriteString(strings.TrimSpace(r.Certificate) + "\n")
	}
	return b.String()
}

// Root is one self-signed certificate of the authority.
type Root struct {
	// Hash names the root: the SHA-256 of the certificate, as ca.Hash writes it.
	Hash string `json:"hash"`
	// Certificate and Key in PEM.
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// JoinToken is what is stored of a join token: never the secret itself, which
// managers derive from the data key, the role, Generation and Salt.
type JoinToken struct {
	// Generation counts the rotations, from 1.
	Generation uint64 `json:"generation"`
	// Salt is random, and another one in each generation: the data key does not
	// tell the tokens of generations to come.
	Salt []byte `json:"salt"`
	// Hash is the SHA-256 of the secret.
	Hash []byte `json:"hash"`
	// Expires is when the token ends; zero is never.
	Expires time.Time `json:"expires,omitzero"`
}

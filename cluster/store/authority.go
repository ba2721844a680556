package store

import (
	"crypto/sha256"
	"maps"
	"slices"

	"wherry.dev/spec"
)

// setAuthority replaces the certificate authority.
func (r *reducer) setAuthority(c *SetAuthority) error {
	have := uint64(0)
	if old := r.authority.get(r.txn, authorityKey); old != nil {
		have = old.Version
	}
	switch {
	case have == c.Base:
	case c.Base == 0:
		return spec.Conflictf("the cluster has a certificate authority already, at version %d", have)
	default:
		return spec.Conflictf("the certificate authority is at version %d, the write is based on %d: read it again", have, c.Base)
	}
	if err := checkAuthority(&c.Authority); err != nil {
		return err
	}
	next := c.Authority
	next.Version = r.index
	put(r, &r.authority, next)
	return nil
}

// checkAuthority refuses an authority that could not sign or let nobody join.
func checkAuthority(a *spec.Authority) error {
	if !slices.ContainsFunc(a.Roots, func(x spec.Root) bool { return x.Hash == a.Signer && x.Hash != "" }) {
		return spec.Invalidf("the certificate authority is to sign with root %q, which is none of its %d", a.Signer, len(a.Roots))
	}
	for _, x := range a.Roots {
		if x.Hash == "" || x.Certificate == "" || x.Key == "" {
			return spec.Invalidf("the certificate authority has a root %q without certificate, key or hash", x.Hash)
		}
	}
	for _, role := range slices.Sorted(maps.Keys(a.Tokens)) {
		t := a.Tokens[role]
		switch {
		case role != spec.RoleManager && role != spec.RoleWorker:
			return spec.Invalidf("a join token for the role %q, which is neither manager nor worker", role)
		case t.Generation == 0 || len(t.Hash) != sha256.Size:
			return spec.Invalidf("the join token for a %s has no generation or no hash", role)
		}
	}
	return nil
}

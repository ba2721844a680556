package store

import (
	"bytes"
	"slices"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

// putContent adds a part of a content.
func (r *reducer) putContent(c *PutContent) error {
	if err := checkChunk(c); err != nil {
		return err
	}
	var have []byte
	if old := r.contents.get(r.txn, textKey(c.ID)); old != nil {
		known := old.Data[min(c.Offset, len(old.Data)):min(c.Offset+len(c.Data), len(old.Data))]
		fits := old.Size == c.Size && bytes.HasPrefix(c.Data, known)
		switch {
		case fits:
			have = old.Data
		case len(old.Data) == old.Size || c.Offset > 0:
			return spec.Conflictf("content %s has other bytes already", c.ID)
		}
	}
	if c.Offset > len(have) {
		return spec.Conflictf("content %s has %d bytes so far, the part begins at %d: send it from there", c.ID, len(have), c.Offset)
	}
	next := spec.Content{ID: c.ID, Size: c.Size, Data: have, Index: r.index}
	if end := c.Offset + len(c.Data); end > len(have) {
		next.Data = slices.Concat(have[:c.Offset], c.Data)
	}
	put(r, &r.contents, next)
	return nil
}

func checkChunk(c *PutContent) error {
	if err := checkName("content", string(c.ID)); err != nil {
		return err
	}
	switch {
	case c.Size < 1 || c.Size > MaxArchive:
		return spec.Invalidf("content %s has %d bytes: the limit is %d KiB", c.ID, c.Size, MaxArchive>>10)
	case len(c.Data) == 0 || len(c.Data) > spec.MaxChunk:
		return spec.Invalidf("content %s: a part of %d bytes, they have 1 to %d", c.ID, len(c.Data), spec.MaxChunk)
	case c.Offset < 0 || c.Offset > c.Size-len(c.Data):
		return spec.Invalidf("content %s: the part at %d is outside of its %d bytes", c.ID, c.Offset, c.Size)
	}
	return nil
}

// contentInUse reports whether anything refers to a content.
func (t *tables) contentInUse(txn *memdb.Txn, id spec.ContentID) bool {
	k := textsKey(string(id))
	return t.stackRevisions.first(txn, byContent, k) != nil ||
		t.volumes.first(txn, byContent, k) != nil ||
		t.services.first(txn, byContent, k) != nil ||
		t.data.first(txn, byContent, k) != nil ||
		t.revisions.first(txn, byContent, k) != nil
}

package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"strconv"
	"strings"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

// table is a typed view of one table of the database. All access goes through
// it, so that rows are of one type and found by functions instead of by
// reflection.
type table[T any] struct {
	name string
	// since is the first format that has the table; 0 is all.
	since int
	// key of a row, unique; nil when the row has none and may not be stored.
	key func(*T) []byte
	// indexes by which rows are also found.
	indexes []index[T]
}

// index finds rows by other values than their key, in the order of value and
// then key. Values have a fixed length or an end mark, so that none is the
// beginning of another.
type index[T any] struct {
	name   string
	unique bool
	values func(*T) [][]byte
}

// row is what the database holds. put takes the object by value: writing
// without copying first is not possible.
type row[T any] struct {
	v T
	// sum of v when it was stored, 0 when checksums are off.
	sum uint64
}

// primary is the name that memdb wants for the index by key.
const primary = "id"

func (t *table[T]) schema() *memdb.TableSchema {
	s := &memdb.TableSchema{Name: t.name, Indexes: map[string]*memdb.IndexSchema{
		primary: {Name: primary, Unique: true, Indexer: keyIndexer[T]{t.key}},
	}}
	for _, x := range t.indexes {
		s.Indexes[x.name] = &memdb.IndexSchema{Name: x.name, Unique: x.unique, AllowMissing: true, Indexer: valueIndexer[T]{x.values}}
	}
	return s
}

// get returns the row with the key, or nil.
func (t *table[T]) get(txn *memdb.Txn, key []byte) *T {
	if key == nil {
		return nil
	}
	return unwrap[T](must(txn.First(t.name, primary, key)))
}

// first returns the first row of an index with the value, or nil.
func (t *table[T]) first(txn *memdb.Txn, index string, value []byte) *T {
	if value == nil {
		return nil
	}
	return unwrap[T](must(txn.First(t.name, index, value)))
}

// all returns every row in the order of its key. Rows may be written while the
// sequence is read; it does not see them.
func (t *table[T]) all(txn *memdb.Txn) iter.Seq[*T] {
	return rows[T](must(txn.Get(t.name, primary)))
}

// under returns the rows whose key begins with prefix, in order.
func (t *table[T]) under(txn *memdb.Txn, prefix []byte) iter.Seq[*T] {
	return rows[T](must(txn.Get(t.name, primary+"_prefix", prefix)))
}

// from returns the rows from key on, in order.
func (t *table[T]) from(txn *memdb.Txn, key []byte) iter.Seq[*T] {
	return rows[T](must(txn.LowerBound(t.name, primary, key)))
}

// with returns the rows of an index whose value begins with the one given, in
// the order of value and key.
func (t *table[T]) with(txn *memdb.Txn, index string, value []byte) iter.Seq[*T] {
	if value == nil {
		return func(func(*T) bool) {}
	}
	return rows[T](must(txn.Get(t.name, index, value)))
}

// insert stores v in place of the row with the same key.
func (t *table[T]) insert(txn *memdb.Txn, v T, guarded bool) error {
	r := &row[T]{v: v}
	if guarded {
		r.sum = checksum(&r.v)
	}
	return txn.Insert(t.name, r)
}

// remove deletes the row that v points to, which must exist.
func (t *table[T]) remove(txn *memdb.Txn, v *T) {
	if err := txn.Delete(t.name, &row[T]{v: *v}); err != nil {
		panic(fmt.Sprintf("store: delete from %s: %v", t.name, err))
	}
}

// verify panics when a row is not what was stored.
func (t *table[T]) verify(txn *memdb.Txn) {
	it := must(txn.Get(t.name, primary))
	for raw := it.Next(); raw != nil; raw = it.Next() {
		r := raw.(*row[T])
		if r.sum != 0 && r.sum != checksum(&r.v) {
			panic(fmt.Sprintf("store: a row of table %s was modified outside Apply: %s", t.name, canonical(&r.v)))
		}
	}
}

func unwrap[T any](raw any) *T {
	if raw == nil {
		return nil
	}
	return &raw.(*row[T]).v
}

func rows[T any](it memdb.ResultIterator) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(unwrap[T](raw)) {
				return
			}
		}
	}
}

// must is for calls that fail only when the schema is wrong.
func must[V any](v V, err error) V {
	if err != nil {
		panic(fmt.Sprintf("store: %v", err))
	}
	return v
}

// keyIndexer and valueIndexer are what memdb wants for an index.
type keyIndexer[T any] struct{ key func(*T) []byte }

func (x keyIndexer[T]) FromObject(raw any) (bool, []byte, error) {
	k := x.key(&raw.(*row[T]).v)
	return k != nil, k, nil
}

func (x keyIndexer[T]) FromArgs(args ...any) ([]byte, error)       { return args[0].([]byte), nil }
func (x keyIndexer[T]) PrefixFromArgs(args ...any) ([]byte, error) { return args[0].([]byte), nil }

type valueIndexer[T any] struct{ values func(*T) [][]byte }

func (x valueIndexer[T]) FromObject(raw any) (bool, [][]byte, error) {
	v := x.values(&raw.(*row[T]).v)
	return len(v) > 0, v, nil
}

func (x valueIndexer[T]) FromArgs(args ...any) ([]byte, error) { return args[0].([]byte), nil }

// one is the list of one value of an index.
func one(v []byte) [][]byte {
	if v == nil {
		return nil
	}
	return [][]byte{v}
}

// idKey encodes an identifier so that keys sort as (incarnation, counter) do.
// It is nil for what MakeID cannot have made.
func idKey[S ~string](id S) []byte {
	a, b, ok := strings.Cut(string(id), "-")
	if !ok {
		return nil
	}
	inc, err := strconv.ParseUint(a, 10, 64)
	n, err2 := strconv.ParseUint(b, 10, 64)
	if cmp.Or(err, err2) != nil || len(strconv.FormatUint(inc, 10)) != len(a) || len(strconv.FormatUint(n, 10)) != len(b) {
		return nil
	}
	k := make([]byte, 0, 24) // room for a suffix
	k = binary.BigEndian.AppendUint64(k, inc)
	return binary.BigEndian.AppendUint64(k, n)
}

// textKey is the key of an object that is found by text; nil for no text.
func textKey[S ~string](s S) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// textsKey joins texts, none of which holds a zero byte, and ends each with
// one, so that no key is a prefix of another and keys sort text by text.
func textsKey(texts ...string) []byte {
	n := 0
	for _, s := range texts {
		n += len(s) + 1
	}
	k := make([]byte, 0, n+16)
	for _, s := range texts {
		k = append(append(k, s...), 0)
	}
	return k
}

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// canonical returns the JSON of v, which has one form per value: fields in the
// order of declaration, keys of maps sorted.
func canonical(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encode %T: %v", v, err))
	}
	return b
}

// same reports whether a and b have the same canonical form.
func same[T any](a, b *T) bool { return bytes.Equal(canonical(a), canonical(b)) }

func checksum(v any) uint64 {
	h := fnv.New64a()
	h.Write(canonical(v))
	return h.Sum64() | 1 // never 0, which means none
}

// errDuplicate is returned by load when two rows claim one key.
var errDuplicate = errors.New("two rows have the same key")

// load inserts a row of a snapshot: unlike insert it refuses to replace one.
func (t *table[T]) load(txn *memdb.Txn, line []byte, guarded bool) error {
	var v T
	if err := decodeStrict(line, &v); err != nil {
		return err
	}
	if t.get(txn, t.key(&v)) != nil {
		return errDuplicate
	}
	for _, x := range t.indexes {
		if !x.unique {
			continue
		}
		for _, val := range x.values(&v) {
			if t.first(txn, x.name, val) != nil {
				return fmt.Errorf("%w in index %s", errDuplicate, x.name)
			}
		}
	}
	return t.insert(txn, v, guarded)
}

// dump writes every row of the table as a line of JSON.
func (t *table[T]) dump(txn *memdb.Txn, line func([]byte) error) error {
	for v := range t.all(txn) {
		if err := line(canonical(v)); err != nil {
			return err
		}
	}
	return nil
}

func (t *table[T]) count(txn *memdb.Txn) int {
	n := 0
	for range t.all(txn) {
		n++
	}
	return n
}

func (t *table[T]) title() string { return t.name }
func (t *table[T]) format() int   { return t.since }

// anyTable is what all tables have in common.
type anyTable interface {
	title() string
	format() int
	schema() *memdb.TableSchema
	count(*memdb.Txn) int
	dump(*memdb.Txn, func([]byte) error) error
	load(txn *memdb.Txn, line []byte, guarded bool) error
	verify(*memdb.Txn)
}

var _ anyTable = (*table[spec.Task])(nil)

package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"wherry.dev/spec"
)

// A persisted state is the format of the state as a byte and then lines of JSON: the meta line,
// for each table a section line and its rows in order, and an end line that
// shows that nothing is missing. A program that knows the format of the state
// can thus read it, whichever program wrote it: tables that came with a later
// format are left out and must be empty.
type section struct {
	Table string `json:"table"`
	Rows  int    `json:"rows"`
	End   bool   `json:"end,omitempty"`
}

// Persist writes the newest state; see Snapshot.Persist.
func (s *Store) Persist(w io.Writer) error { return s.cur.Load().Persist(w) }

// Persist writes the state in its one canonical form: equal states give equal
// bytes, and a state restored from the bytes persists to the same bytes.
func (n *Snapshot) Persist(w io.Writer) error {
	b := bufio.NewWriterSize(w, 64<<10)
	line := func(j []byte) error {
		b.Write(j) // a bufio.Writer keeps its first error for the next call
		return b.WriteByte('\n')
	}
	b.WriteByte(byte(n.meta.Format))
	if err := line(canonical(&n.meta)); err != nil {
		return fmt.Errorf("persist state: %w", err)
	}
	txn := n.read()
	for _, t := range n.tables.list() {
		t.verify(txn)
		if t.format() > n.meta.Format {
			continue // nothing can have come into it
		}
		if err := line(canonical(section{Table: t.title(), Rows: t.count(txn)})); err != nil {
			return fmt.Errorf("persist state: %w", err)
		}
		if err := t.dump(txn, line); err != nil {
			return fmt.Errorf("persist table %s: %w", t.title(), err)
		}
	}
	line(canonical(section{End: true}))
	if err := b.Flush(); err != nil {
		return fmt.Errorf("persist state: %w", err)
	}
	return nil
}

// Restore replaces the whole state by a persisted one and wakes all watchers.
// On error the state stays as it was. Errors of class spec.ErrInvalid mean
// that the bytes are no state that this program knows.
func (s *Store) Restore(r io.Reader) error {
	db := s.tables.open()
	n := &Snapshot{tables: s.tables, db: db}
	if err := n.load(bufio.NewReaderSize(r, 64<<10), s.guarded); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	n.db = db.Snapshot()
	s.apply.Lock()
	defer s.apply.Unlock()
	s.db = db
	s.publish(n)
	return nil
}

func (n *Snapshot) load(r *bufio.Reader, guarded bool) error {
	format, err := r.ReadByte()
	if err != nil {
		return spec.Invalidf("the snapshot is empty")
	}
	if format == 0 || format > Format {
		return spec.Invalidf("the snapshot has format %d, this program knows 1 to %d: upgrade it", format, Format)
	}
	if err := readJSON(r, &n.meta); err != nil {
		return err
	}
	if n.meta.Format != int(format) {
		return spec.Invalidf("the snapshot is damaged: it has format %d and its state %d", format, n.meta.Format)
	}
	byTitle := map[string]anyTable{}
	for _, t := range n.tables.list() {
		byTitle[t.title()] = t
	}
	for {
		var s section
		if err := readJSON(r, &s); err != nil {
			return err
		}
		if s.End {
			break
		}
		t := byTitle[s.Table]
		if t == nil || t.format() > n.meta.Format {
			return spec.Invalidf("the snapshot has a table %q that is unknown or comes twice", s.Table)
		}
		delete(byTitle, s.Table)
		if err := n.loadTable(r, t, s.Rows, guarded); err != nil {
			return err
		}
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return spec.Invalidf("the snapshot goes on behind its end")
	}
	return nil
}

func (n *Snapshot) loadTable(r *bufio.Reader, t anyTable, rows int, guarded bool) error {
	txn := n.db.Txn(true)
	defer txn.Abort() // no effect after Commit
	for i := range rows {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		if err := t.load(txn, line, guarded); err != nil {
			return spec.Invalidf("table %s, row %d: %v", t.title(), i+1, err)
		}
	}
	txn.Commit()
	return nil
}

func readLine(r *bufio.Reader) ([]byte, error) {
	b, err := r.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return nil, spec.Invalidf("the snapshot ends early")
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return bytes.TrimSuffix(b, []byte("\n")), nil
}

func readJSON(r *bufio.Reader, v any) error {
	b, err := readLine(r)
	if err != nil {
		return err
	}
	if err := decodeStrict(b, v); err != nil {
		return spec.Invalidf("the snapshot is damaged: %v", err)
	}
	return nil
}

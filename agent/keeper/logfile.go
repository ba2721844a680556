package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const (
	// flushSize is how much is collected before it is written. Nothing is kept
	// back beyond the chunk at hand, so this bounds memory, not delay.
	flushSize = 128 << 10
	// longestRecord bounds a record on disk: every byte may take six.
	longestRecord = 6*maxLine + 256
)

// dropped counts output that could not be written.
type dropped struct {
	Records uint64 `json:"records,omitempty"`
	Bytes   uint64 `json:"bytes,omitempty"`
	Why     string `json:"why,omitempty"`
}

// logFile is a rotated file of records. It never blocks the source of the
// output: what cannot be written is dropped and counted, and a record says so
// as soon as writing works again. Not safe for concurrent use.
type logFile struct {
	path     string
	maxSize  int64
	maxFiles int
	count    *counters

	f    *os.File // nil when it is not open
	size int64    // of f; the end of its last whole record
	lost dropped
}

func newLogFile(s spec.LogSink, c *counters) *logFile {
	w := &logFile{path: s.File, maxSize: s.MaxSize, maxFiles: s.MaxFiles, count: c}
	if w.maxSize <= 0 {
		w.maxSize = spec.DefaultLogSize
	}
	if w.maxFiles <= 0 {
		w.maxFiles = spec.DefaultLogFiles
	}
	return w
}

// open opens the file for appending and makes its folder when needed. A record
// that was cut short by a crash is removed: its bytes are still in the FIFO.
func (w *logFile) open() error {
	if w.f != nil {
		return nil
	}
	const flags = os.O_RDWR | os.O_APPEND | os.O_CREATE | unix.O_NOFOLLOW
	f, err := os.OpenFile(w.path, flags, 0o640)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(w.path), 0o700); err == nil {
			f, err = os.OpenFile(w.path, flags, 0o640)
		}
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	size, err := wholeSize(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	w.f, w.size = f, size
	return nil
}

// wholeSize is the size of f after a last record without newline was cut off.
func wholeSize(f *os.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := fi.Size()
	if size == 0 {
		return 0, nil
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], size-1); err != nil {
		return 0, err
	}
	if last[0] == '\n' {
		return size, nil
	}
	tail := make([]byte, min(size, longestRecord))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, err
	}
	size -= int64(len(tail))
	size += int64(bytes.LastIndexByte(tail, '\n') + 1)
	return size, f.Truncate(size)
}

func (w *logFile) close() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}

// check closes a file that somebody renamed or removed, so that the next
// record goes to a new one.
func (w *logFile) check() {
	if w.f == nil {
		return
	}
	have, err := idOfFD(int(w.f.Fd()))
	if err != nil {
		return
	}
	if want, err := idOf(w.path); err != nil || have != want {
		w.close()
	}
}

// append writes the whole records of data (with final, all of it) and returns
// how many bytes of data it used, written or dropped. buf is scratch space; it
// is returned for reuse.
func (w *logFile) append(buf, data []byte, stream string, now time.Time, final bool) (used int, _ []byte) {
	var stampBuf [len(timeLayout)]byte
	stamp := appendStamp(stampBuf[:0], now)
	w.open() // for its size; write tells the error
	buf = buf[:0]
	pending := 0 // bytes of data that buf holds
	for {
		n := nextRecord(data[used:], final)
		if n == 0 {
			break
		}
		start := len(buf)
		buf = appendRecord(buf, data[used:used+n], stream, stamp)
		if full := w.size + int64(start); full > 0 && w.size+int64(len(buf)) > w.maxSize {
			w.write(buf[:start], pending)
			w.rotate()
			buf = buf[:copy(buf, buf[start:])]
			pending = 0
		}
		used += n
		pending += n
		if len(buf) >= flushSize {
			w.write(buf, pending)
			buf, pending = buf[:0], 0
		}
	}
	w.write(buf, pending)
	return used, buf
}

// write appends whole records, made of raw bytes of output, or drops them. What
// was dropped before is told together with the first records that fit again.
func (w *logFile) write(records []byte, raw int) {
	if len(records) == 0 {
		return
	}
	err := w.open()
	var told int
	if err == nil && w.lost.Records > 0 {
		told, err = w.f.Write(w.lost.record())
	}
	if err == nil {
		_, err = w.f.Write(records)
	}
	if err == nil {
		w.size += int64(told + len(records))
		w.lost = dropped{}
		w.count.logBytes.Add(uint64(raw))
		return
	}
	w.undo()
	w.lost.Records += uint64(bytes.Count(records, []byte{'\n'}))
	w.lost.Bytes += uint64(raw)
	w.lost.Why = reason(err)
	w.count.droppedBytes.Add(uint64(raw))
}

// report says in the log what was dropped, if anything was and it can be said.
func (w *logFile) report() {
	if w.lost.Records == 0 || w.open() != nil {
		return
	}
	n, err := w.f.Write(w.lost.record())
	if err != nil {
		w.undo()
		return
	}
	w.size += int64(n)
	w.lost = dropped{}
}

// record says what was dropped.
func (d dropped) record() []byte {
	text := fmt.Appendf(nil, "wherry: %d lines (%d bytes) of output were dropped: %s\n", d.Records, d.Bytes, d.Why)
	return appendRecord(nil, text, "stderr", appendStamp(nil, time.Now()))
}

// undo removes the part of a record that a failed write left behind.
func (w *logFile) undo() {
	if w.f != nil && w.f.Truncate(w.size) != nil {
		w.close() // open looks for it again
	}
}

// reason is the innermost text of an error: "no space left on device".
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// rotate makes the file the newest of the older ones and begins a new one. A
// file that cannot be renamed is emptied, for the log must stay within bounds.
func (w *logFile) rotate() {
	if w.maxFiles == 1 {
		if w.f != nil && w.f.Truncate(0) == nil {
			w.size = 0
		}
		return
	}
	older := func(i int) string { return w.path + "." + strconv.Itoa(i) }
	for i := w.maxFiles - 2; i > 0; i-- {
		os.Rename(older(i), older(i+1)) // a gap is no harm
	}
	if os.Rename(w.path, older(1)) != nil {
		if w.f != nil && w.f.Truncate(0) == nil {
			w.size = 0
		}
		return
	}
	w.close()
	w.size = 0
}

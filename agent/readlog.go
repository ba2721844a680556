package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// logName is the newest file of a log; older ones are log.1, log.2, …
const logName = "log"

// maxRecord is how long a line of a log file may be, in bytes. The keeper's are
// far shorter; what is longer, as the hole that a crash has left, is left out.
const maxRecord = 1 << 20

// LogOptions says which part of a log is read.
type LogOptions struct {
	// Tail is the number of newest lines to begin with; -1 is all.
	Tail int
	// Since leaves out what is older; the zero time leaves out nothing.
	Since time.Time
	// Follow waits for more at the end of the log.
	Follow bool
	// Done, asked while following, reports that no more output will come. nil
	// is never.
	Done func() bool
}

// LogLine is one line of output.
type LogLine struct {
	Time   time.Time
	Stream string // stdout or stderr
	// Text without its newline. Partial lines, which have none, are parts of a
	// line that was too long or not finished.
	Text    string
	Partial bool
}

// logRecord is a line of a log file, in the form of Docker's json-file driver.
type logRecord struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// ReadLogs calls fn for the lines of the log in folder dir, oldest first,
// across its rotated files. A log that does not exist is empty. It returns at
// the end that the log has at the time of the call, whatever is written and
// rotated meanwhile; with Follow when ctx ends (without error) or Done says so;
// or with the error of fn.
func ReadLogs(ctx context.Context, dir string, o LogOptions, fn func(LogLine) error) error {
	r := &logReader{dir: dir, o: o, fn: fn}
	if !o.Follow {
		return r.once(ctx)
	}
	defer r.close()
	news := watchLog(dir) // before the first look, so that nothing falls in between
	defer news.close()
	if err := r.open(); err != nil {
		return err
	}
	for {
		done := o.Done != nil && o.Done()
		if err := r.drain(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if done {
			return nil
		}
		if !news.wait(ctx) {
			return nil
		}
	}
}

// logReader reads the files of a log one after the other.
type logReader struct {
	dir string
	o   LogOptions
	fn  func(LogLine) error

	f    *os.File // nil when there is none yet
	r    *bufio.Reader
	part []byte // the beginning of a record that is not complete yet
	skip bool   // that record is longer than maxRecord
}

func (l *logReader) path(n int) string {
	if n == 0 {
		return filepath.Join(l.dir, logName)
	}
	return filepath.Join(l.dir, logName+"."+strconv.Itoa(n))
}

func (l *logReader) close() {
	if l.f != nil {
		l.f.Close()
	}
}

// logPart is an open file of a log as it was when it was opened.
type logPart struct {
	*os.File
	info os.FileInfo
}

// bytes are those that the file had when it was opened.
func (p logPart) bytes() *io.SectionReader { return io.NewSectionReader(p.File, 0, p.info.Size()) }

func closeParts(parts []logPart) {
	for _, p := range parts {
		p.Close()
	}
}

// openTries is how often the files of a log are opened before a list that a
// rotation may have disturbed is good enough. A rotation takes microseconds
// and comes after megabytes.
const openTries = 10

// openFiles opens all files of the log, newest first.
func (l *logReader) openFiles() ([]logPart, error) {
	for try := 1; ; try++ {
		parts, err := l.openOnce()
		if err != nil {
			closeParts(parts)
			return nil, err
		}
		if try == openTries || l.undisturbed(parts) {
			return parts, nil
		}
		closeParts(parts)
	}
}

// openOnce opens the files by their names. A rotation meanwhile makes a file
// appear twice: what came between was newer than the first.
func (l *logReader) openOnce() (parts []logPart, err error) {
	missing := false
	for n := 0; ; n++ {
		f, err := os.Open(l.path(n))
		if errors.Is(err, fs.ErrNotExist) {
			if missing && n > 1 {
				return parts, nil
			}
			missing = true // a rotation leaves gaps of one
			continue
		}
		if err != nil {
			return parts, fmt.Errorf("open log: %w", err)
		}
		missing = false
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return parts, fmt.Errorf("open log: %w", err)
		}
		if i := slices.IndexFunc(parts, func(p logPart) bool { return os.SameFile(p.info, info) }); i >= 0 {
			f.Close()
			closeParts(parts[i+1:])
			parts = parts[:i+1]
			continue
		}
		parts = append(parts, logPart{f, info})
	}
}

// undisturbed reports whether the newest of parts is the newest still, so that
// no rotation took place while they were opened. After a rotation there is no
// file of the plain name until the next record.
func (l *logReader) undisturbed(parts []logPart) bool {
	for n := range 2 {
		now, err := os.Stat(l.path(n))
		if err == nil {
			return len(parts) > 0 && os.SameFile(now, parts[0].info)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return len(parts) == 0
}

// once reads up to the end that the log has now. Its files stay open until it
// is done, so that it gets what is rotated away and removed meanwhile.
func (l *logReader) once(ctx context.Context) error {
	parts, err := l.openFiles()
	if err != nil || len(parts) == 0 {
		return err
	}
	defer closeParts(parts)
	first, offset, err := l.start(parts)
	if err != nil {
		return err
	}
	l.r = bufio.NewReaderSize(nil, 64<<10)
	for i := first; i >= 0; i-- {
		l.part, l.skip = l.part[:0], false
		l.r.Reset(io.NewSectionReader(parts[i], offset, parts[i].info.Size()-offset))
		if err := l.read(ctx); err != nil {
			return err
		}
		offset = 0
	}
	return nil
}

// open finds the place to begin following at.
func (l *logReader) open() error {
	parts, err := l.openFiles()
	if err != nil || len(parts) == 0 {
		return err
	}
	keep, offset, err := l.start(parts)
	if err != nil {
		closeParts(parts)
		return err
	}
	if _, err := parts[keep].Seek(offset, io.SeekStart); err != nil {
		closeParts(parts)
		return fmt.Errorf("read log: %w", err)
	}
	l.keep(parts, keep)
	return nil
}

// keep goes on with one of parts and closes the others.
func (l *logReader) keep(parts []logPart, i int) {
	l.f = parts[i].File
	l.r = bufio.NewReaderSize(l.f, 64<<10)
	closeParts(slices.Delete(parts, i, i+1))
}

// start returns the file, and the offset in it, at which the wanted part
// begins. parts are newest first.
func (l *logReader) start(parts []logPart) (file int, offset int64, err error) {
	if l.o.Tail < 0 {
		file = len(parts) - 1
		for file > 0 && !l.o.Since.IsZero() && parts[file].info.ModTime().Before(l.o.Since) {
			file--
		}
		return file, 0, nil
	}
	want := l.o.Tail
	for i, p := range parts {
		n, at, err := seekLines(p.bytes(), want)
		if err != nil {
			return 0, 0, fmt.Errorf("read log: %w", err)
		}
		if want -= n; want == 0 {
			return i, at, nil
		}
	}
	return len(parts) - 1, 0, nil
}

// seekLines returns the offset of the last want lines of f, or of all when
// there are fewer, and how many they are. It reads from the end, no more than
// it needs.
func seekLines(f io.ReadSeeker, want int) (n int, offset int64, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || want == 0 {
		return 0, end, err
	}
	buf := make([]byte, 32<<10)
	for pos := end; pos > 0; {
		size := min(int64(len(buf)), pos)
		pos -= size
		if _, err := f.Seek(pos, io.SeekStart); err != nil {
			return 0, 0, err
		}
		if _, err := io.ReadFull(f, buf[:size]); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			// The newline before the wanted lines is the want+1st from the end.
			if n == want {
				return n, pos + i + 1, nil
			}
			n++
		}
	}
	return n, 0, nil
}

// drain reads what there is, and goes on to newer files.
func (l *logReader) drain(ctx context.Context) error {
	for {
		if l.f == nil {
			if err := l.openNext(); err != nil || l.f == nil {
				return err
			}
		}
		if err := l.read(ctx); err != nil {
			return err
		}
		newest, err := l.isNewest()
		if err != nil {
			return err
		}
		if newest {
			return nil
		}
		// Rotated away; nothing is written to it any more, but something may
		// have been since the last read.
		if err := l.read(ctx); err != nil {
			return err
		}
		if moved, err := l.advance(); err != nil || !moved {
			return err
		}
	}
}

// read passes on complete records up to the end of the file.
func (l *logReader) read(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := l.r.ReadSlice('\n')
		if l.skip = l.skip || len(l.part)+len(b) > maxRecord; !l.skip {
			l.part = append(l.part, b...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read log: %w", err)
		}
		rec, damaged := l.part, l.skip
		l.part, l.skip = l.part[:0], false
		if damaged {
			continue
		}
		if err := l.pass(rec); err != nil {
			return err
		}
	}
}

// pass hands one record to fn. A record that a crash has damaged is left out.
func (l *logReader) pass(rec []byte) error {
	var r logRecord
	if json.Unmarshal(bytes.TrimSpace(rec), &r) != nil {
		return nil
	}
	if !l.o.Since.IsZero() && r.Time.Before(l.o.Since) {
		return nil
	}
	text, whole := strings.CutSuffix(r.Log, "\n")
	return l.fn(LogLine{Time: r.Time, Stream: r.Stream, Text: text, Partial: !whole})
}

// isNewest reports whether the file that is being read is still written to.
func (l *logReader) isNewest() (bool, error) {
	mine, err := l.f.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	now, err := os.Stat(l.path(0))
	switch {
	case errors.Is(err, fs.ErrNotExist): // being rotated, or removed: look again later
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read log: %w", err)
	}
	return os.SameFile(mine, now), nil
}

// advance goes on to the file after the present one: by its place among the
// rotated ones, or the oldest when that has been dropped meanwhile. false: the
// rotation is not complete.
func (l *logReader) advance() (bool, error) {
	mine, err := l.f.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	parts, err := l.openFiles()
	if err != nil || len(parts) == 0 {
		return false, err
	}
	next := len(parts) - 1
	if i := slices.IndexFunc(parts, func(p logPart) bool { return os.SameFile(p.info, mine) }); i >= 0 {
		next = i - 1
	}
	if next < 0 { // ours is the newest after all
		closeParts(parts)
		return false, nil
	}
	l.f.Close()
	l.part, l.skip = l.part[:0], false
	l.keep(parts, next)
	return true, nil
}

// openNext opens the oldest file of a log that did not exist before.
func (l *logReader) openNext() error {
	parts, err := l.openFiles()
	if err != nil || len(parts) == 0 {
		return err
	}
	l.keep(parts, len(parts)-1)
	return nil
}

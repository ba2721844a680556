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
	"strconv"
	"strings"
	"time"
)

// logName is the newest file of a log; older ones are log.1, log.2, …
const logName = "log"

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
// the end of the log, or with Follow when ctx ends (without error) or Done
// says so, or with the error of fn.
func ReadLogs(ctx context.Context, dir string, o LogOptions, fn func(LogLine) error) error {
	r := &logReader{dir: dir, o: o, fn: fn}
	defer r.close()
	var news *logNews
	if o.Follow { // before the first look, so that nothing falls in between
		news = watchLog(dir)
		defer news.close()
	}
	if err := r.open(); err != nil {
		return err
	}
	for {
		done := !o.Follow || o.Done != nil && o.Done()
		if err := r.drain(ctx); err != nil {
			if ctx.Err() != nil && o.Follow {
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

// openFiles opens all files of the log, newest first. A rotation meanwhile
// makes a file appear twice; the second time it is left out.
func (l *logReader) openFiles() (files []*os.File, err error) {
	var infos []os.FileInfo
	for n := 0; ; n++ {
		f, err := os.Open(l.path(n))
		if errors.Is(err, fs.ErrNotExist) {
			if n == 0 { // no log at all, or between the two steps of a rotation
				continue
			}
			return files, nil
		}
		if err != nil {
			return files, fmt.Errorf("open log: %w", err)
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return files, fmt.Errorf("open log: %w", err)
		}
		if len(infos) > 0 && os.SameFile(infos[len(infos)-1], info) {
			f.Close()
			continue
		}
		files, infos = append(files, f), append(infos, info)
	}
}

// open finds the place to begin at.
func (l *logReader) open() error {
	files, err := l.openFiles()
	keep := 0 // index of the file to begin with
	defer func() {
		for i, f := range files {
			if i != keep || err != nil {
				f.Close()
			}
		}
	}()
	if err != nil || len(files) == 0 {
		return err
	}
	var offset int64
	keep, offset, err = l.start(files)
	if err != nil {
		return err
	}
	if _, err = files[keep].Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	l.f, l.r = files[keep], bufio.NewReaderSize(files[keep], 64<<10)
	return nil
}

// start returns the file, and the offset in it, at which the wanted part
// begins. files are newest first.
func (l *logReader) start(files []*os.File) (file int, offset int64, err error) {
	if l.o.Tail < 0 {
		file = len(files) - 1
		for ; file > 0 && !l.o.Since.IsZero(); file-- {
			info, err := files[file].Stat()
			if err != nil {
				return 0, 0, fmt.Errorf("read log: %w", err)
			}
			if !info.ModTime().Before(l.o.Since) {
				break
			}
		}
		return file, 0, nil
	}
	want := l.o.Tail
	for i, f := range files {
		n, at, err := seekLines(f, want)
		if err != nil {
			return 0, 0, fmt.Errorf("read log: %w", err)
		}
		if want -= n; want == 0 {
			return i, at, nil
		}
	}
	return len(files) - 1, 0, nil
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
		l.part = append(l.part, b...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read log: %w", err)
		}
		rec := l.part
		l.part = l.part[:0]
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
	files, err := l.openFiles()
	if err != nil || len(files) == 0 {
		for _, f := range files {
			f.Close()
		}
		return false, err
	}
	next := len(files) - 1
	for i, f := range files {
		if info, err := f.Stat(); err == nil && os.SameFile(info, mine) {
			next = i - 1
		}
	}
	for i, f := range files {
		if i != next {
			f.Close()
		}
	}
	if next < 0 { // ours is the newest after all
		return false, nil
	}
	l.f.Close()
	l.f, l.part = files[next], l.part[:0]
	l.r.Reset(l.f)
	return true, nil
}

// openNext opens the oldest file of a log that did not exist before.
func (l *logReader) openNext() error {
	files, err := l.openFiles()
	for i, f := range files {
		if i < len(files)-1 || err != nil {
			f.Close()
		}
	}
	if err != nil || len(files) == 0 {
		return err
	}
	l.f = files[len(files)-1]
	l.r = bufio.NewReaderSize(l.f, 64<<10)
	return nil
}

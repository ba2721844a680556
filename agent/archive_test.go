package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// listing describes all that is in a folder, one line each.
func listing(t *testing.T, root string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		line := fmt.Sprintf("%s %o %d:%d %d", rel, st.Mode, st.Uid, st.Gid, time.Unix(st.Mtim.Unix()).UnixMilli())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d links %q", st.Nlink, b)
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			line = fmt.Sprintf("%s -> %s", rel, target) // its time is not kept
		}
		attrs, err := readXattrs(p)
		if err != nil {
			return err
		}
		out = append(out, line+fmt.Sprint(attrs))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestArchiveKeepsEverything(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	at := func(name string) string { return filepath.Join(from, name) }
	must(t, os.MkdirAll(at("d/empty"), 0o750), os.WriteFile(at("d/f"), []byte("text"), 0o640), os.Link(at("d/f"), at("hard")),
		os.Symlink("/etc/passwd", at("soft")), unix.Mkfifo(at("pipe"), 0o600), os.WriteFile(at("big"), bytes.Repeat([]byte("0123456789abcdef"), 1<<16), 0o600),
		os.Chmod(at("d/f"), 0o4755), os.Chmod(at("d/empty"), fs.ModeSticky|0o777), os.Chmod(from, 0o711))
	if os.Getuid() == 0 {
		must(t, os.Lchown(at("big"), 70, 71), os.Lchown(at("d"), 1000, 1000))
	}
	if err := unix.Setxattr(at("big"), "user.note", []byte("a\x00b"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	old := time.Date(2020, 1, 2, 3, 4, 5, 678e6, time.UTC)
	must(t, os.Chtimes(at("big"), old, old), os.Chtimes(at("d"), old, old), os.Chtimes(from, old, old))
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(sock)
	must(t, unix.Bind(sock, &unix.SockaddrUnix{Name: at("d/empty/s")})) // is left out
	must(t, os.Chtimes(at("d/empty"), old, old))

	var b bytes.Buffer
	must(t, writeArchive(t.Context(), &b, from))
	must(t, readArchive(t.Context(), bytes.NewReader(b.Bytes()), to))
	must(t, os.Remove(at("d/empty/s")))
	fix := func(dir string) { must(t, os.Chtimes(filepath.Join(dir, "d/empty"), old, old)) }
	fix(from)
	fix(to)
	if want := listing(t, from); listing(t, to) != want {
		t.Errorf("got\n%s\nwant\n%s", listing(t, to), want)
	}

	// Every archive that is cut off is refused.
	for _, n := range []int{0, 1, 100, b.Len() / 2, b.Len() - 5, b.Len() - 1} {
		if err := readArchive(t.Context(), bytes.NewReader(b.Bytes()[:n]), t.TempDir()); spec.ErrorClass(err) != "invalid" {
			t.Errorf("the first %d of %d bytes: %v", n, b.Len(), err)
		}
	}
	bad := slices.Clone(b.Bytes())
	bad[len(bad)/2] ^= 0x40
	if err := readArchive(t.Context(), bytes.NewReader(bad), t.TempDir()); err == nil {
		t.Error("a damaged archive was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := writeArchive(ctx, io.Discard, from); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestArchiveStaysInside: nothing in an archive is made outside of the folder.
func TestArchiveStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"up":           {{Name: "../evil", Typeflag: tar.TypeReg}},
		"through link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/evil", Typeflag: tar.TypeReg}},
		"absolute":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, {Name: "l/evil", Typeflag: tar.TypeDir}},
		"hard link":    {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../outside"}},
		"over":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l", Typeflag: tar.TypeReg}},
		"chmod":        {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}},
		"kind":         {{Name: "x", Typeflag: 'Z'}},
	} {
		parent := t.TempDir()
		root := filepath.Join(parent, "root")
		must(t, os.Mkdir(root, 0o755), os.WriteFile(filepath.Join(parent, "outside"), []byte("mine"), 0o600))
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		must(t, err)
		w := tar.NewWriter(z)
		for _, h := range entries {
			h.Uid, h.Gid = os.Getuid(), os.Getgid()
			must(t, w.WriteHeader(&h))
		}
		must(t, w.Close(), z.Close())
		if err := readArchive(t.Context(), &b, root); err == nil {
			t.Errorf("%s: taken", name)
		}
		names, err := dirNames(parent)
		must(t, err)
		i, err := os.Stat(filepath.Join(parent, "outside"))
		if text, _ := os.ReadFile(filepath.Join(parent, "outside")); len(names) != 2 || string(text) != "mine" || err != nil || i.Mode() != 0o600 {
			t.Errorf("%s: %v, %q, %v", name, names, text, i.Mode())
		}
	}
}

// TestReplaceIsOneStep: a host that dies at any moment of a restore has the old
// data or the new.
func TestReplaceIsOneStep(t *testing.T) {
	source := t.TempDir()
	must(t, os.WriteFile(filepath.Join(source, "f"), []byte("new"), 0o600))
	var b bytes.Buffer
	must(t, writeArchive(t.Context(), &b, source))
	type died struct{}
	for _, exists := range []bool{true, false} {
		for n := 0; ; n++ {
			steps := 0
			v := newVolumes(t.TempDir(), func(string) {})
			if exists {
				must(t, os.MkdirAll(v.data("1-1"), 0o755), os.WriteFile(filepath.Join(v.data("1-1"), "f"), []byte("old"), 0o600))
			}
			v.effect = func(string) {
				if steps++; steps > n {
					panic(died{})
				}
			}
			done := func() (done bool) {
				defer func() {
					if p := recover(); p != nil && p != (died{}) {
						panic(p)
					}
				}()
				must(t, v.replace(t.Context(), "1-1", 7, bytes.NewReader(b.Bytes()), func() error { return nil }))
				return true
			}()
			again := newVolumes(v.dir, func(string) {})
			must(t, again.sweep())
			text, _ := os.ReadFile(filepath.Join(again.data("1-1"), "f"))
			moved := again.movedBy("1-1")
			names, _ := dirNames(again.dir)
			switch {
			case string(text) == "new" && moved == 7 && len(names) == 1:
			case !done && moved == 0 && (exists && string(text) == "old" && len(names) == 1 || !exists && len(names) == 0):
			default:
				t.Errorf("exists %v, died after step %d: %q, move %d, %v", exists, n, text, moved, names)
			}
			if done {
				break
			}
		}
	}
}

func TestReplaceRefused(t *testing.T) {
	v := testVolumes(t)
	must(t, os.MkdirAll(v.data("1-1"), 0o755))
	var b bytes.Buffer
	must(t, writeArchive(t.Context(), &b, t.TempDir()))
	asked := 0
	busy := func() error {
		if asked++; asked == 2 {
			return spec.Conflictf("in use by now")
		}
		return nil
	}
	if err := v.replace(t.Context(), "1-1", 0, bytes.NewReader(b.Bytes()), busy); spec.ErrorClass(err) != "conflict" {
		t.Error(err)
	}
	if err := v.replace(t.Context(), "1-1", 0, strings.NewReader("no archive"), func() error { return nil }); spec.ErrorClass(err) != "invalid" {
		t.Error(err)
	}
	if names, _ := dirNames(v.dir); !slices.Equal(names, []string{"1-1"}) {
		t.Errorf("left: %v", names)
	}
}

func TestTreeSize(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o600), os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err, f.Truncate(1<<30), f.Close())
	n, files, err := treeSize(t.Context(), dir)
	if err != nil || files != 3 || n < 1<<20 || n > 2<<20 {
		t.Errorf("%d bytes, %d files, %v", n, files, err)
	}
}

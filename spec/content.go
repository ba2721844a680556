package spec

import (
	"archive/tar"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// ContentFile is one entry of a content.
type ContentFile struct {
	// Path relative to the root, with slashes; "." is the root itself: a
	// content that is a single file has just this entry, a folder has it as a
	// directory.
	Path string
	// Mode holds permission bits only.
	Mode uint32
	Dir  bool
	// Link is the target of a symbolic link; it stays inside the content.
	Link string
	Data []byte
}

// PackContent encodes files as a tar archive with sorted names, owner 0 and no
// times, so that equal files give equal bytes. It refuses more than MaxContent
// bytes of data, names that leave the root, and links that do.
func PackContent(files []ContentFile) ([]byte, error) {
	sorted := slices.SortedFunc(slices.Values(files), func(a, b ContentFile) int { return strings.Compare(a.Path, b.Path) })
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	total := 0
	for _, f := range sorted {
		if err := checkContentFile(f); err != nil {
			return nil, err
		}
		if total += len(f.Data); total > MaxContent {
			return nil, Invalidf("content is larger than %d KiB", MaxContent>>10)
		}
		h := &tar.Header{Name: f.Path, Mode: int64(f.Mode & 0o7777), Size: int64(len(f.Data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case f.Dir:
			h.Typeflag, h.Size = tar.TypeDir, 0
		case f.Link != "":
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, f.Link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.Path, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(f.Data); err != nil {
				return nil, fmt.Errorf("pack %s: %w", f.Path, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack content: %w", err)
	}
	return buf.Bytes(), nil
}

// UnpackContent is the inverse of PackContent. It accepts only what
// PackContent produces, whoever made the bytes.
func UnpackContent(b []byte) ([]ContentFile, error) {
	r := tar.NewReader(bytes.NewReader(b))
	var files []ContentFile
	total := 0
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, Invalidf("content is no archive: %v", err)
		}
		f := ContentFile{Path: path.Clean(h.Name), Mode: uint32(h.Mode) & 0o7777}
		switch h.Typeflag {
		case tar.TypeDir:
			f.Dir = true
		case tar.TypeSymlink:
			f.Link = h.Linkname
		case tar.TypeReg:
			if total += int(h.Size); h.Size > MaxContent || total > MaxContent {
				return nil, Invalidf("content is larger than %d KiB", MaxContent>>10)
			}
			if f.Data, err = io.ReadAll(r); err != nil {
				return nil, Invalidf("content entry %s: %v", h.Name, err)
			}
		default:
			return nil, Invalidf("content entry %s is neither file, folder nor link", h.Name)
		}
		if err := checkContentFile(f); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
}

func checkContentFile(f ContentFile) error {
	local := func(p string) bool {
		p = path.Clean(p)
		return !path.IsAbs(p) && p != ".." && !strings.HasPrefix(p, "../")
	}
	if f.Path == "" || !local(f.Path) {
		return Invalidf("content entry %q leaves its folder", f.Path)
	}
	if f.Link != "" && (path.IsAbs(f.Link) || !local(path.Join(path.Dir(f.Path), f.Link))) {
		return Invalidf("link %s points outside its folder, to %s", f.Path, f.Link)
	}
	return nil
}

// PlainContentID names a content on its way from a client: "sha256:" and the
// hash of its bytes.
func PlainContentID(b []byte) ContentID {
	sum := sha256.Sum256(b)
	return ContentID("sha256:" + hex.EncodeToString(sum[:]))
}

// KeyedContentID names a content in the state: "hmac:" and a hash keyed with a
// secret of the cluster.
func KeyedContentID(key, b []byte) ContentID {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return ContentID("hmac:" + hex.EncodeToString(h.Sum(nil)))
}

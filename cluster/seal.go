package cluster

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// Everything of the state that reaches the disk is sealed with AES-256-GCM
// under keys derived from the cluster's data key: a log entry on its own, a
// snapshot as a stream of chunks.

const (
	sealFormat = 1
	keySize    = 32
)

// newSealKey derives the key for one purpose.
func newSealKey(data, salt []byte, purpose string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, data, salt, "wherry "+purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("derive the %s key: %w", purpose, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make the %s cipher: %w", purpose, err)
	}
	if salt == nil {
		return cipher.NewGCMWithRandomNonce(block)
	}
	return cipher.NewGCM(block)
}

// sealEntry returns l with its data sealed: a format byte, a random nonce, the
// ciphertext. Its place in the log is authenticated with it, so that sealed
// entries cannot be exchanged. Entries without data stay as they are. l itself
// is not touched, since Raft goes on to use it.
func sealEntry(aead cipher.AEAD, l *raft.Log) *raft.Log {
	if len(l.Data) == 0 {
		return l
	}
	s := *l
	b := make([]byte, 1, 1+aead.Overhead()+len(l.Data))
	b[0] = sealFormat
	s.Data = aead.Seal(b, nil, l.Data, entryPlace(l))
	return &s
}

// openEntry undoes sealEntry in place.
func openEntry(aead cipher.AEAD, l *raft.Log) error {
	if len(l.Data) == 0 {
		return nil
	}
	if l.Data[0] != sealFormat {
		return fmt.Errorf("log entry %d has the format %d, which this version does not know", l.Index, l.Data[0])
	}
	b, err := aead.Open(nil, nil, l.Data[1:], entryPlace(l))
	if err != nil {
		return fmt.Errorf("log entry %d is damaged or sealed with another key", l.Index)
	}
	l.Data = b
	return nil
}

func entryPlace(l *raft.Log) []byte {
	b := binary.BigEndian.AppendUint64(nil, l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	return append(b, byte(l.Type))
}

// chunkSize is the plaintext of one chunk of a sealed stream. Every chunk is
// full but the last, which is marked as such in its nonce, so that neither a
// cut nor a reordering goes unnoticed.
const (
	chunkSize = 64 << 10
	tagSize   = 16
)

// plainSize is the size of the plaintext of a sealed stream of n bytes.
func plainSize(n int64) int64 {
	chunks := (n + chunkSize + tagSize - 1) / (chunkSize + tagSize)
	return n - chunks*tagSize
}

func chunkNonce(n uint64, last bool) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint64(b[3:], n)
	if last {
		b[11] = 1
	}
	return b
}

// sealWriter seals a stream. Close writes the last chunk and does not close
// the underlying writer.
type sealWriter struct {
	w    io.Writer
	aead cipher.AEAD
	head []byte // authenticated with each chunk
	buf  []byte
	n    uint64
}

func newSealWriter(w io.Writer, aead cipher.AEAD, head []byte) *sealWriter {
	return &sealWriter{w: w, aead: aead, head: head, buf: make([]byte, 0, chunkSize+tagSize)}
}

func (s *sealWriter) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		// A full chunk is written only when more follows: the last one is
		// sealed differently.
		if len(s.buf) == chunkSize {
			if err := s.flush(false); err != nil {
				return done, err
			}
		}
		n := min(chunkSize-len(s.buf), len(b)-done)
		s.buf = append(s.buf, b[done:done+n]...)
		done += n
	}
	return done, nil
}

func (s *sealWriter) Close() error { return s.flush(true) }

func (s *sealWriter) flush(last bool) error {
	sealed := s.aead.Seal(s.buf[:0], chunkNonce(s.n, last), s.buf, s.head)
	if _, err := s.w.Write(sealed); err != nil {
		return err
	}
	s.n++
	s.buf = s.buf[:0]
	return nil
}

var errSealedStream = errors.New("it is damaged, cut off, or sealed with another key")

// openReader reads what a sealWriter wrote. It hands out only bytes that were
// authenticated, and ends with io.EOF only after the last chunk.
type openReader struct {
	r    io.Reader
	aead cipher.AEAD
	head []byte
	buf  []byte // ciphertext; one byte more than a chunk, to see whether more follows
	have int
	out  []byte
	n    uint64
	done bool
}

func newOpenReader(r io.Reader, aead cipher.AEAD, head []byte) *openReader {
	return &openReader{r: r, aead: aead, head: head, buf: make([]byte, chunkSize+tagSize+1)}
}

func (o *openReader) Read(b []byte) (int, error) {
	for len(o.out) == 0 {
		if o.done {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, o.out)
	o.out = o.out[n:]
	return n, nil
}

func (o *openReader) next() error {
	n, err := io.ReadFull(o.r, o.buf[o.have:])
	o.have += n
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		o.done = true
	case err != nil:
		return err
	}
	chunk := o.buf[:min(o.have, chunkSize+tagSize)]
	plain, err := o.aead.Open(nil, chunkNonce(o.n, o.done), chunk, o.head)
	if err != nil {
		return errSealedStream
	}
	o.n++
	o.out = plain
	o.have = copy(o.buf, o.buf[len(chunk):o.have])
	return nil
}

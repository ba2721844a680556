package cluster

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func TestSealedEntry(t *testing.T) {
	key := bytes.Repeat([]byte{7}, keySize)
	aead, err := newSealKey(key, nil, "log")
	if err != nil {
		t.Fatal(err)
	}
	plain := &raft.Log{Index: 3, Term: 2, Type: raft.LogCommand, Data: []byte("canary")}
	sealed := sealEntry(aead, plain)
	if bytes.Contains(sealed.Data, []byte("canary")) || string(plain.Data) != "canary" {
		t.Fatalf("sealed %q, original %q", sealed.Data, plain.Data)
	}
	open := *sealed
	if err := openEntry(aead, &open); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain, &open); diff != "" {
		t.Fatal(diff)
	}
	for name, change := range map[string]func(*raft.Log){
		"place":   func(l *raft.Log) { l.Index++ },
		"term":    func(l *raft.Log) { l.Term++ },
		"bit":     func(l *raft.Log) { l.Data[len(l.Data)-1] ^= 1 },
		"cut":     func(l *raft.Log) { l.Data = l.Data[:9] },
		"version": func(l *raft.Log) { l.Data[0]++ },
	} {
		l := *sealed
		l.Data = bytes.Clone(sealed.Data)
		change(&l)
		if err := openEntry(aead, &l); err == nil {
			t.Errorf("%s changed: no error", name)
		}
	}
	noop := &raft.Log{Index: 4, Term: 2, Type: raft.LogNoop}
	if l := sealEntry(aead, noop); len(l.Data) != 0 || openEntry(aead, l) != nil {
		t.Error("an entry without data must stay without")
	}
}

func TestSealedStream(t *testing.T) {
	aead, err := newSealKey(bytes.Repeat([]byte{7}, keySize), []byte("salt"), "snapshot")
	if err != nil {
		t.Fatal(err)
	}
	head := []byte("head")
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 3*chunkSize + 5} {
		plain := make([]byte, size)
		for i := range plain {
			plain[i] = byte(i * 31 >> 3)
		}
		var out bytes.Buffer
		w := newSealWriter(&out, aead, head)
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), 1000)
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		sealed := out.Bytes()
		if got := plainSize(int64(len(sealed))); got != int64(size) {
			t.Errorf("size %d: plainSize says %d", size, got)
		}
		open := func(b, head []byte) ([]byte, error) {
			return io.ReadAll(newOpenReader(bytes.NewReader(b), aead, head))
		}
		got, err := open(sealed, head)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("size %d: %d bytes back, err %v", size, len(got), err)
		}
		bad := map[string][]byte{"one byte cut": sealed[:len(sealed)-1], "empty": nil, "longer": append(bytes.Clone(sealed), 0)}
		if size > chunkSize {
			const c = chunkSize + tagSize
			bad["whole chunks only"] = sealed[:len(sealed)/c*c-c*btoi(len(sealed)%c == 0)]
			swapped := bytes.Clone(sealed)
			if size >= 3*chunkSize {
				copy(swapped, sealed[c:2*c])
				copy(swapped[c:], sealed[:c])
				bad["swapped"] = swapped
			}
		}
		for name, b := range bad {
			if _, err := open(b, head); !errors.Is(err, errSealedStream) {
				t.Errorf("size %d, %s: err %v", size, name, err)
			}
		}
		if _, err := open(sealed, []byte("other")); err == nil {
			t.Errorf("size %d: another head was accepted", size)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

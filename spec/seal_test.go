package spec

import (
	"bytes"
	"testing"
)

func TestSealContent(t *testing.T) {
	key, value := []byte("the key of the cluster"), []byte("hunter2")
	id, sealed, err := SealContent(key, value)
	if err != nil {
		t.Fatal(err)
	}
	if !id.Sealed() || bytes.Contains(sealed, value) {
		t.Errorf("sealed as %s: %q", id, sealed)
	}
	if again, same, _ := SealContent(key, value); again != id || !bytes.Equal(same, sealed) {
		t.Error("equal bytes have two forms")
	}
	if other, _, _ := SealContent([]byte("another"), value); other == id {
		t.Error("the name says something without the key")
	}
	if keyed := KeyedContentID(key, value); keyed[5:] == id[7:] {
		t.Error("a secret has the name of a config with the same bytes")
	}
	if b, err := OpenContent(key, id, sealed); err != nil || !bytes.Equal(b, value) {
		t.Errorf("opened as %q: %v", b, err)
	}
	id2, sealed2, _ := SealContent(key, []byte("other"))
	for name, f := range map[string]func() ([]byte, error){
		"another key":    func() ([]byte, error) { return OpenContent([]byte("another"), id, sealed) },
		"another name":   func() ([]byte, error) { return OpenContent(key, id2, sealed) },
		"exchanged":      func() ([]byte, error) { return OpenContent(key, id, sealed2) },
		"cut off":        func() ([]byte, error) { return OpenContent(key, id, sealed[:len(sealed)-1]) },
		"nothing at all": func() ([]byte, error) { return OpenContent(key, id, nil) },
	} {
		if b, err := f(); err == nil {
			t.Errorf("%s: opened as %q", name, b)
		}
	}
}

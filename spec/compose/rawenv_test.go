package compose

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRaw(t *testing.T) {
	lookup := func(k string) (string, bool) { return "of " + k, k == "SET" }
	got := map[string]string{"KEPT": "x", "A": "old"}
	text := "\ufeffA=b c \r\n  QUOTED=\"a $B ${C}\" # no comment\n\n# A=c\nEMPTY=\nSET\nUNSET\nE=f=g\nLAST='x"
	if err := parseRaw(strings.NewReader(text), "a.env", got, lookup); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"KEPT": "x", "A": "b c ", "QUOTED": "\"a $B ${C}\" # no comment", "EMPTY": "", "SET": "of SET", "E": "f=g", "LAST": "'x",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for text, want := range map[string]string{
		"A=b\n=c":    "read a.env: line 2 has no valid name",
		"export A=b": "line 1 has no valid name",
		"A =b":       "line 1 has no valid name",
		"A=\xff":     "no text in UTF-8",
	} {
		err := parseRaw(strings.NewReader(text), "a.env", map[string]string{}, lookup)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

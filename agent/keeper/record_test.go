package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

type record struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// readRecords reads all files of a log, oldest first; every line must be whole.
func readRecords(t testing.TB, file string) []record {
	t.Helper()
	var out []record
	for _, suffix := range []string{".4", ".3", ".2", ".1", ""} {
		b, err := os.ReadFile(file + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var r record
			d := json.NewDecoder(bytes.NewReader(line))
			d.DisallowUnknownFields()
			if err := d.Decode(&r); err != nil || r.Time.IsZero() || line[len(line)-1] != '\n' {
				t.Fatalf("%s%s: %q: %v", file, suffix, line, err)
			}
			out = append(out, r)
		}
	}
	return out
}

// cutAll cuts data as the records of a stream would.
func cutAll(data string, final bool) (out []string, rest string) {
	for {
		n := nextRecord([]byte(data), final)
		if n == 0 {
			return out, data
		}
		out = append(out, data[:n])
		data = data[n:]
	}
}

func TestNextRecord(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, x := range []struct {
		name  string
		data  string
		final bool
		want  []string
		rest  string
	}{
		{"nothing", "", true, nil, ""},
		{"lines", "a\n\nb\n", false, []string{"a\n", "\n", "b\n"}, ""},
		{"unfinished", "a\nb", false, []string{"a\n"}, "b"},
		{"unfinished at the end", "a\nb", true, []string{"a\n", "b"}, ""},
		{"just fits", long[1:] + "\n", false, []string{long[1:] + "\n"}, ""},
		{"one too long", long + "\n", false, []string{long, "\n"}, ""},
		{"long", long + long + "yz\n", false, []string{long, long, "yz\n"}, ""},
		{"character at the cut", long[1:] + "é\n", false, []string{long[1:], "é\n"}, ""},
		{"wide character at the cut", long[2:] + "😀\n", false, []string{long[2:], "😀\n"}, ""},
		{"bytes that are no text", long[1:] + "\xff\xff\n", false, []string{long[1:] + "\xff", "\xff\n"}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			got, rest := cutAll(x.data, x.final)
			if diff := cmp.Diff(x.want, got); diff != "" || rest != x.rest {
				t.Errorf("rest %q, want %q\n%s", rest, x.rest, diff)
			}
		})
	}
}

func TestAppendRecord(t *testing.T) {
	stamp := appendStamp(nil, time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600)))
	got := string(appendRecord(nil, []byte("a\"\\\t\x01\xff<é>\n"), "stdout", stamp))
	want := `{"log":"a\"\\\t\u0001` + "\ufffd" + `<é>\n","stream":"stdout","time":"2026-01-02T02:04:05.000000060Z"}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestWholeRunes(t *testing.T) {
	for in, want := range map[string]int{"": 0, "a": 1, "é": 2, "aé": 3, "a\xc3": 1, "\xc3": 1, "a\xf0\x9f\x98": 1, "a\xff": 2, "ab\x80": 3} {
		if got := wholeRunes([]byte(in)); got != want {
			t.Errorf("%q: got %d, want %d", in, got, want)
		}
	}
}

func TestPlainRun(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			b := []byte(strings.Repeat("a", 20))
			b[at] = byte(c)
			want := at
			if plain(byte(c)) {
				want = 20
			}
			if got := plainRun(b); got != want {
				t.Errorf("%q: got %d, want %d", b, got, want)
			}
		}
	}
}

// FuzzRecords: joined, the records are the text, with what is not UTF-8
// replaced as encoding/json does.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("hello\nworld"))
	f.Add([]byte("\xff\xc3\n\x00\u2028\""))
	f.Fuzz(func(t *testing.T, data []byte) {
		pieces, rest := cutAll(string(data), true)
		if strings.Join(pieces, "") != string(data) || rest != "" {
			t.Fatalf("%q was cut into %q", data, pieces)
		}
		for _, p := range pieces {
			if len(p) > maxLine || strings.Count(p, "\n") > 1 {
				t.Fatalf("bad piece %q", p)
			}
			var r record
			line := appendRecord(nil, []byte(p), "stdout", appendStamp(nil, time.Unix(1, 2)))
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if want := string([]rune(p)); r.Log != want {
				t.Fatalf("got %q, want %q", r.Log, want)
			}
			if !utf8.Valid(line) || bytes.Count(line, []byte("\n")) != 1 || len(line) > longestRecord {
				t.Fatalf("bad line %q", line)
			}
		}
	})
}

package api

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFrames(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxFrame/8) // two frames
	var wire bytes.Buffer
	w := NewFrameWriter(&wire)
	for _, f := range []struct {
		stream byte
		data   []byte
	}{{StreamStdout, []byte("out")}, {StreamStdin, nil}, {StreamStderr, big}} {
		if err := w.WriteFrame(f.stream, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := w.Stream(StreamStdout).Write(nil); n != 0 || err != nil {
		t.Errorf("writing nothing: %d, %v", n, err)
	}
	got := map[byte][]byte{}
	frames := 0
	for {
		stream, p, err := ReadFrame(&wire)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		frames++
		got[stream] = append(got[stream], p...)
	}
	if frames != 4 || string(got[StreamStdout]) != "out" || len(got[StreamStdin]) != 0 || !bytes.Equal(got[StreamStderr], big) {
		t.Errorf("%d frames; %d bytes of stderr", frames, len(got[StreamStderr]))
	}
}

// TestReadFrameRefuses: a frame that is cut off or claims too much is an error.
func TestReadFrameRefuses(t *testing.T) {
	for name, wire := range map[string]string{
		"cut off in the header":  "\x01\x00\x00",
		"cut off in the payload": "\x01\x00\x00\x00\x00\x00\x00\x05abc",
		"without payload":        "\x01\x00\x00\x00\x00\x00\x00\x05",
		"too large":              "\x01\x00\x00\x00\xff\xff\xff\xff",
	} {
		if _, _, err := ReadFrame(strings.NewReader(wire)); err == nil || err == io.EOF {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestLogOptions(t *testing.T) {
	for _, o := range []LogOptions{{Tail: -1}, {Tail: 0, Follow: true}, {Tail: 7, Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}} {
		got, err := ParseLogOptions(o.Query())
		if err != nil || !cmp.Equal(got, o) {
			t.Errorf("%+v became %+v, %v", o, got, err)
		}
	}
	for _, q := range []string{"tail=x", "since=yesterday"} {
		v, err := url.ParseQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLogOptions(v); err == nil {
			t.Errorf("%s is accepted", q)
		}
	}
}

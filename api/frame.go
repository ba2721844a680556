package api

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// The streams of an exec connection. Both directions carry frames of an
// 8-byte header, as the Docker Engine API has it: the stream, three zero
// bytes, and the length of the payload as a big-endian uint32.
const (
	StreamStdin  byte = 0 // to the container; an empty frame closes it
	StreamStdout byte = 1
	StreamStderr byte = 2
	StreamEnd    byte = 3 // ExecEnd as JSON, the last frame
	StreamResize byte = 4 // two big-endian uint16: width, height
)

// ExecProtocol is the name of the protocol in the Upgrade header.
const ExecProtocol = "wherry-exec"

// MaxFrame is the largest payload of a frame in bytes.
const MaxFrame = 64 << 10

// FrameWriter writes frames; it is safe for concurrent use.
type FrameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewFrameWriter returns a FrameWriter on w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// WriteFrame writes p as one frame or, when it is larger than MaxFrame, as
// several.
func (f *FrameWriter) WriteFrame(stream byte, p []byte) error {
	for {
		n := min(len(p), MaxFrame)
		buf := make([]byte, 8+n)
		buf[0] = stream
		binary.BigEndian.PutUint32(buf[4:], uint32(n))
		copy(buf[8:], p[:n])
		f.mu.Lock()
		_, err := f.w.Write(buf)
		f.mu.Unlock()
		if err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// Stream returns a writer whose writes become frames of the given stream.
// Writing nothing writes no frame.
func (f *FrameWriter) Stream(stream byte) io.Writer { return streamWriter{f, stream} }

type streamWriter struct {
	f      *FrameWriter
	stream byte
}

func (s streamWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.f.WriteFrame(s.stream, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadFrame reads one frame. io.EOF means that the stream ended between two
// frames.
func ReadFrame(r io.Reader) (stream byte, payload []byte, err error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[4:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("read frame: %d bytes are more than %d", n, MaxFrame)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return h[0], payload, nil
}

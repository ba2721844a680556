package keeper

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"time"
	"unicode/utf8"
)

// maxLine is the longest piece of output in one record, as with Docker. A
// record that does not end in a newline is continued by the next one of its
// stream.
const maxLine = 16 << 10

// timeLayout has a fixed width, so that records sort by their text.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// nextRecord is the length of the first record in data, or 0 when data does
// not hold a whole one. With final, what is left is a record too.
func nextRecord(data []byte, final bool) int {
	window := data[:min(len(data), maxLine)]
	if i := bytes.IndexByte(window, '\n'); i >= 0 {
		return i + 1
	}
	if len(data) >= maxLine {
		return wholeRunes(window)
	}
	if final {
		return len(data)
	}
	return 0
}

// wholeRunes is the length of data without a character begun at its end. If
// nothing else is there, it is all of it.
func wholeRunes(data []byte) int {
	for back := 1; back < utf8.UTFMax && back < len(data); back++ {
		i := len(data) - back
		if utf8.RuneStart(data[i]) {
			if !utf8.FullRune(data[i:]) {
				return i
			}
			break
		}
	}
	return len(data)
}

// appendRecord appends one line in the format of Docker's json-file driver.
func appendRecord(dst, text []byte, stream string, stamp []byte) []byte {
	dst = append(dst, `{"log":"`...)
	dst = appendJSON(dst, text)
	dst = append(dst, `","stream":"`...)
	dst = append(dst, stream...)
	dst = append(dst, `","time":"`...)
	dst = append(dst, stamp...)
	return append(dst, "\"}\n"...)
}

func appendStamp(dst []byte, t time.Time) []byte { return t.UTC().AppendFormat(dst, timeLayout) }

const hex = "0123456789abcdef"

// plain reports whether a byte stands for itself inside a JSON string.
func plain(c byte) bool { return c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' }

// plainRun is how many bytes at the start of b are plain. It looks at eight at
// a time: a byte's top bit ends up set when the byte is below 0x20, equal to
// one of the two others, or above 0x7f. What a borrow sets wrongly lies above
// a byte that is set rightly.
func plainRun(b []byte) int {
	const (
		ones = 0x0101010101010101
		tops = 0x80 * ones
	)
	n := 0
	for len(b)-n >= 8 {
		x := binary.LittleEndian.Uint64(b[n:])
		quote, slash := x^('"'*ones), x^('\\'*ones)
		odd := ((x - 0x20*ones) | (quote - ones) | (slash - ones) | x) & tops
		if odd != 0 {
			return n + bits.TrailingZeros64(odd)/8
		}
		n += 8
	}
	for n < len(b) && plain(b[n]) {
		n++
	}
	return n
}

// appendJSON appends text as the inside of a JSON string. Bytes that are not
// UTF-8 become U+FFFD.
func appendJSON(dst, text []byte) []byte {
	from := 0
	for i := 0; i < len(text); {
		if i += plainRun(text[i:]); i == len(text) {
			break
		}
		c := text[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, text[from:i]...), "\ufffd"...)
				from = i + 1
			}
			i += n
			continue
		}
		dst = append(dst, text[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		i++
		from = i
	}
	return append(dst, text[from:]...)
}

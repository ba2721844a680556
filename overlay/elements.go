package overlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const (
	ifnameSize = 16
	protoTCP   = 6
	protoUDP   = 17
)

// encode turns the text of an element into the bytes that the kernel compares:
// each field padded to four bytes, network order but for slots.
func encode(fields []fieldType, text string) ([]byte, error) {
	parts := strings.Split(text, " . ")
	if len(parts) != len(fields) {
		return nil, fmt.Errorf("element %q has %d fields, want %d", text, len(parts), len(fields))
	}
	var b []byte
	for i, p := range parts {
		var f [4]byte
		switch fields[i] {
		case fieldIfname:
			var name [ifnameSize]byte
			copy(name[:], p)
			b = append(b, name[:]...)
			continue
		case fieldIPv4:
			a, err := netip.ParseAddr(p)
			if err != nil || !a.Is4() {
				return nil, fmt.Errorf("element %q: %q is no IPv4 address", text, p)
			}
			f = a.As4()
		case fieldIPv6:
			a, err := netip.ParseAddr(p)
			if err != nil || !a.Is6() {
				return nil, fmt.Errorf("element %q: %q is no IPv6 address", text, p)
			}
			b = append(b, a.AsSlice()...)
			continue
		case fieldProto:
			f[0] = map[string]byte{"tcp": protoTCP, "udp": protoUDP}[p]
		case fieldPort:
			v, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("element %q: %w", text, err)
			}
			binary.BigEndian.PutUint16(f[:], uint16(v))
		case fieldSlot:
			v, err := strconv.ParseUint(p, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("element %q: %w", text, err)
			}
			binary.NativeEndian.PutUint32(f[:], uint32(v))
		}
		b = append(b, f[:]...)
	}
	return b, nil
}

// decode is the inverse of encode; bytes of another length give a text that no
// wanted element has.
func decode(fields []fieldType, b []byte) string {
	var parts []string
	for _, f := range fields {
		size := 4
		switch f {
		case fieldIfname:
			size = ifnameSize
		case fieldIPv6:
			size = 16
		}
		if len(b) < size {
			return fmt.Sprintf("unknown %x", b)
		}
		v := b[:size]
		b = b[size:]
		switch f {
		case fieldIfname:
			parts = append(parts, strings.TrimRight(string(v), "\x00"))
		case fieldIPv4:
			parts = append(parts, netip.AddrFrom4([4]byte(v)).String())
		case fieldIPv6:
			parts = append(parts, netip.AddrFrom16([16]byte(v)).String())
		case fieldProto:
			parts = append(parts, map[byte]string{protoTCP: "tcp", protoUDP: "udp"}[v[0]])
		case fieldPort:
			parts = append(parts, strconv.Itoa(int(binary.BigEndian.Uint16(v))))
		case fieldSlot:
			parts = append(parts, strconv.Itoa(int(binary.NativeEndian.Uint32(v))))
		}
	}
	return strings.Join(parts, " . ")
}

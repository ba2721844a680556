package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xtables is how a family of the old iptables is read: by socket options, from
// one piece of memory with all entries of a table (linux/netfilter_ipv4/ip_tables.h).
type xtables struct {
	family        string
	names         string // lists the tables that there are
	domain, level int
	addr          int // bytes of an address
	// Where an entry has what; addresses, masks and names of devices are first.
	proto, flags, inverted, target, next, size int
	jumpIsGoto                                 byte
}

var xtFamilies = []xtables{
	{"ip", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP, 4, 80, 82, 83, 88, 90, 112, 0x02},
	{"ip6", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6, 16, 128, 131, 132, 140, 142, 168, 0x04},
}

// legacyChains returns the chains of the old iptables, which nftables does not
// show. A table that nobody uses is not asked for: that would make it.
func legacyChains() ([]fwChain, error) {
	var out []fwChain
	for _, x := range xtFamilies {
		names, err := os.ReadFile(x.names)
		if err != nil {
			continue // a kernel without them, or with none loaded
		}
		for _, table := range strings.Fields(string(names)) {
			chains, err := x.read(table)
			if err != nil {
				return nil, fmt.Errorf("read table %s of the old %stables: %w", table, x.family, err)
			}
			out = append(out, chains...)
		}
	}
	return out, nil
}

var xtHooks = []string{"prerouting", "input", "forward", "output", "postrouting"}

// read returns the chains of a table.
func (x xtables) read(table string) ([]fwChain, error) {
	fd, err := unix.Socket(x.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	const getInfo, getEntries, infoSize, head = 64, 65, 84, 40
	for range 5 {
		info := make([]byte, infoSize)
		copy(info, table)
		if err := getsockopt(fd, x.level, getInfo, info); err != nil {
			return nil, err
		}
		u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(info[at:]) }
		size := int(u32(80))
		blob := make([]byte, head+size)
		copy(blob, table)
		binary.NativeEndian.PutUint32(blob[32:], uint32(size))
		err := getsockopt(fd, x.level, getEntries, blob)
		if errors.Is(err, unix.EAGAIN) {
			continue // it has changed in between
		}
		if err != nil {
			return nil, err
		}
		var entry, policy [5]int // of each hook; -1 for none
		for i := range 5 {
			entry[i], policy[i] = -1, -1
			if u32(32)&(1<<i) != 0 {
				entry[i], policy[i] = int(u32(36+4*i)), int(u32(56+4*i))
			}
		}
		return x.parse(table, blob[head:], entry, policy)
	}
	return nil, errors.New("it changes too fast")
}

func getsockopt(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// parse reads the entries of a table. A chain of the user begins with an entry
// that can never be reached and holds its name; the last such ends the table.
func (x xtables) parse(table string, b []byte, entry, policy [5]int) ([]fwChain, error) {
	names := map[int]string{} // of user's chains, by their first rule
	type place struct{ at, end int }
	var places []place
	for at := 0; at < len(b); {
		if at+x.size > len(b) {
			return nil, errors.New("it is cut off")
		}
		end := at + int(binary.NativeEndian.Uint16(b[at+x.next:]))
		if end <= at || end > len(b) {
			return nil, errors.New("an entry has no end")
		}
		places = append(places, place{at, end})
		at = end
	}
	for _, p := range places {
		if name, data := x.targetOf(b[p.at:p.end]); name == "ERROR" {
			names[p.end] = text(data[:min(len(data), 30)])
		}
	}
	var out []fwChain
	for i, p := range places {
		for h := range 5 {
			if entry[h] == p.at {
				out = append(out, fwChain{Family: x.family, Table: table, Name: strings.ToUpper(xtHooks[h]), Hook: xtHooks[h], Legacy: true})
			}
		}
		name, data := x.targetOf(b[p.at:p.end])
		if name == "ERROR" {
			if i < len(places)-1 {
				out = append(out, fwChain{Family: x.family, Table: table, Name: names[p.end], Legacy: true})
			}
			continue
		}
		if len(out) == 0 {
			return nil, errors.New("a rule is in no chain")
		}
		c := &out[len(out)-1]
		if h := slices.Index(xtHooks, c.Hook); h >= 0 && policy[h] == p.at {
			c.Drop = len(data) >= 4 && int32(binary.NativeEndian.Uint32(data)) == -nfDrop-1
			continue
		}
		c.Rules = append(c.Rules, x.rule(b[p.at:p.end], p.end, names))
	}
	return out, nil
}

func (x xtables) targetOf(e []byte) (name string, data []byte) {
	at := int(binary.NativeEndian.Uint16(e[x.target:]))
	if at+32 > len(e) {
		return "", nil
	}
	return text(bytes.SplitN(e[at+2:at+31], []byte{0}, 2)[0]), e[at+32:]
}

// rule reads an entry; next is where the one behind it begins.
func (x xtables) rule(e []byte, next int, names map[int]string) fwRule {
	r := fwReader{family: x.family}
	inverted := e[x.inverted]
	n := x.addr
	for i, key := range []string{fwSrc, fwDst} {
		addr, mask := e[i*n:(i+1)*n], e[(2+i)*n:(3+i)*n]
		if len(bytes.Trim(mask, "\x00")) == 0 {
			continue
		}
		ones, all := net.IPMask(mask).Size()
		ip, ok := netip.AddrFromSlice(addr)
		if all == 0 || !ok {
			r.add("", false, key)
			continue
		}
		r.add(key, inverted&(0x08<<i) != 0, netip.PrefixFrom(ip, ones).String())
	}
	for i, key := range []string{fwIif, fwOif} {
		name, mask := e[4*n+16*i:4*n+16*(i+1)], e[4*n+32+16*i:4*n+32+16*(i+1)]
		ones := len(bytes.TrimRight(mask, "\x00"))
		if ones == 0 {
			continue
		}
		s := string(name[:ones])
		if i := strings.IndexByte(s, 0); i >= 0 {
			s = s[:i]
		} else {
			s += "*"
		}
		r.add(key, inverted&(1<<i) != 0, s)
	}
	if p := binary.NativeEndian.Uint16(e[x.proto:]); p != 0 {
		r.add(fwProto, inverted&0x40 != 0, protoName(byte(p)))
	}
	if x.family == "ip" && e[x.flags]&1 != 0 {
		r.add("", false, "fragment")
	}
	target := int(binary.NativeEndian.Uint16(e[x.target:]))
	for at := x.size; at+32 <= target && target <= len(e); {
		size := int(binary.NativeEndian.Uint16(e[at:]))
		if size < 32 || at+size > target {
			break
		}
		r.match(text(bytes.SplitN(e[at+2:at+31], []byte{0}, 2)[0]), e[at+32:at+size])
		at += size
	}
	out := fwRule{Then: fwUnknown}
	name, data := x.targetOf(e)
	if name != "" || len(data) < 4 {
		out.Then = targetVerdict(name)
		out.If = r.conds
		return out
	}
	const back = -5 // XT_RETURN
	switch v := int32(binary.NativeEndian.Uint32(data)); {
	case v == -nfDrop-1:
		out.Then = fwDrop
	case v == -nfAccept-1:
		out.Then = fwAccept
	case v == back:
		out.Then = fwReturn
	case int(v) == next:
		out.Then = fwContinue
	case v >= 0:
		out.Then, out.To = fwJump, names[int(v)]
		if e[x.flags]&x.jumpIsGoto != 0 {
			out.Then = fwGoto
		}
	}
	out.If = r.conds
	return out
}

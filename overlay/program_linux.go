package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 5.16, and some later ones, have no hook for the chain by which
// a task's answers go back to the host that the connection came by. There a
// small eBPF program at the same place does the same: what has a mark gets it
// as the last four bytes of its destination MAC, behind the first two of every
// host's. See egressChains.

// programName is what the filter that runs the program is called.
const programName = "wherry-return"

// hasEgressHook reports whether the kernel takes chains at egress of a link. It
// is tried where nobody else sees it; of a kernel that cannot be asked it is
// believed, and the first task tells more.
func hasEgressHook() bool {
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- nil
			return
		}
		done <- tryEgress()
	}()
	err := <-done
	return !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL)
}

// tryEgress makes the chain at a new link of the thread's namespace.
func tryEgress() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	defer h.Close()
	const link = "probe0"
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: "probe1"}
	if err := h.LinkAdd(veth); err != nil {
		return nil
	}
	id := TableID{NS: "probe", Family: familyNetdev, Name: taskTableName}
	want := NewState()
	want.Tables[id] = Table{Sets: map[string]Set{}, Chains: egressChains(link)}
	return tryTable(id, Diff(NewState(), want))
}

// addProgram has the program run for all that leaves a link.
func (k *linuxKernel) addProgram(p Program) error {
	h, l, err := k.find(p.Link)
	if err != nil {
		return err
	}
	return attachProgram(h, l)
}

func attachProgram(h *netlink.Handle, l netlink.Link) error {
	prog, err := loadProgram()
	if err != nil {
		return fmt.Errorf("this kernel has no egress hook of nftables (Linux 5.16 has one), and takes no eBPF program in its place: %w", err)
	}
	defer unix.Close(prog) // the filter keeps it
	index := l.Attrs().Index
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
	if err := h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make room for a program: %w", err)
	}
	return h.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          prog, Name: programName, DirectAction: true,
	})
}

// hasProgram reports whether the program runs for what leaves a link.
func hasProgram(h *netlink.Handle, l netlink.Link) (bool, error) {
	filters, err := h.FilterList(l, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return false, err
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == programName && b.DirectAction {
			return true, nil
		}
	}
	return false, nil
}

// instruction is one of eBPF (linux/bpf.h).
type instruction struct {
	op       byte
	dst, src byte
	off      int16
	imm      int32
}

// returnProgram is the program. The mark's four bytes are copied as they are.
func returnProgram() []instruction {
	const (
		load32, store32, store16 = 0x61, 0x63, 0x6a // of a register; of a constant
		move, moveConst, addTo   = 0xbf, 0xb7, 0x07
		jumpIfZero, call, exit   = 0x15, 0x85, 0x95

		markOffset = 8 // in struct __sk_buff
		storeBytes = 9 // BPF_FUNC_skb_store_bytes
		goOn       = -1
		r0, r1, r2 = 0, 1, 2
		r3, r4, r5 = 3, 4, 5
		stack      = 10
	)
	// What lies in memory as the two bytes of hostPrefix.
	prefix := int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, hostPrefix)))
	return []instruction{
		{op: load32, dst: r2, src: r1, off: markOffset},
		{op: jumpIfZero, dst: r2, off: 8}, // to the end
		{op: store16, dst: stack, off: -6, imm: prefix},
		{op: store32, dst: stack, src: r2, off: -4},
		{op: moveConst, dst: r2, imm: 0}, // the frame's begin, where its destination is
		{op: move, dst: r3, src: stack},
		{op: addTo, dst: r3, imm: -6},
		{op: moveConst, dst: r4, imm: 6},
		{op: moveConst, dst: r5, imm: 0},
		{op: call, imm: storeBytes},
		{op: moveConst, dst: r0, imm: goOn},
		{op: exit},
	}
}

// loadProgram gives the program to the kernel and returns its descriptor.
func loadProgram() (int, error) {
	const schedCLS, progLoad = 3, 5
	var code []byte
	for _, i := range returnProgram() {
		regs := i.dst | i.src<<4
		if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 { // of a host with the high byte first
			regs = i.dst<<4 | i.src
		}
		code = append(code, i.op, regs)
		code = binary.NativeEndian.AppendUint16(code, uint16(i.off))
		code = binary.NativeEndian.AppendUint32(code, uint32(i.imm))
	}
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count        uint32
		code, license      uint64
		logLevel, logSize  uint32
		log                uint64
		kernVersion, flags uint32
		name               [16]byte
	}{kind: schedCLS, count: uint32(len(code) / 8), code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	copy(attr.name[:], "wherry_return")
	fd, _, errno := unix.Syscall(unix.SYS_BPF, progLoad, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

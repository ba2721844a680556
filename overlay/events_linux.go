package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watch reads the kernel's announcements until ctx ends. They only make
// repairs fast: a lost one is made up for by the regular pass.
func (k *linuxKernel) watch(ctx context.Context, dirty func()) error {
	const nftablesGroup = 7
	rt, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer rt.Close()
	nf, err := nl.Subscribe(unix.NETLINK_NETFILTER, nftablesGroup)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer nf.Close()
	var wg sync.WaitGroup
	var errs [2]error
	ctx, cancel := context.WithCancel(ctx)
	wg.Go(func() {
		defer cancel()
		errs[0] = read(ctx, rt, dirty, k.routeEvent)
	})
	tables := nftEvents{table: k.nft.name}
	wg.Go(func() {
		defer cancel()
		errs[1] = read(ctx, nf, dirty, tables.event)
	})
	wg.Wait()
	return errors.Join(errs[:]...)
}

// read calls dirty for messages that ours accepts, and when messages were lost.
func read(ctx context.Context, s *nl.NetlinkSocket, dirty func(), ours func(typ uint16, data []byte) bool) error {
	defer context.AfterFunc(ctx, s.Close)() // which ends a read that waits
	for ctx.Err() == nil {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			dirty()
			continue
		case err != nil:
			return fmt.Errorf("watch the kernel: %w", err)
		}
		hit := false
		for _, m := range msgs {
			hit = ours(m.Header.Type, m.Data) || hit
		}
		if hit {
			dirty()
		}
	}
	return nil
}

// routeEvent reports whether a message is about a link of ours, or changes what
// carries the tunnels.
func (k *linuxKernel) routeEvent(typ uint16, data []byte) bool {
	known := k.ours.Load()
	if known == nil || len(data) < 8 {
		return false
	}
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		index := int(binary.NativeEndian.Uint32(data[4:]))
		return known.links[index] || index == known.carrier && known.carrierEvent(typ, data)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return known.links[int(binary.NativeEndian.Uint32(data[4:]))] || known.addressEvent(data)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if data[0] == unix.AF_BRIDGE {
			return known.links[int(binary.NativeEndian.Uint32(data[4:]))]
		}
		return known.neighbourEvent(typ, data)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(data) < unix.SizeofRtMsg {
			return false
		}
		attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
		if err != nil {
			return true
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 {
				return known.links[int(binary.NativeEndian.Uint32(a.Value))]
			}
		}
	}
	return false
}

// carrierEvent reports whether the link that carries the tunnels goes, or
// carries packets of another size. Of all else that it tells of itself, such as
// a wireless one of every look around, nothing matters.
func (s *landmarks) carrierEvent(typ uint16, data []byte) bool {
	if typ == unix.RTM_DELLINK || len(data) < unix.SizeofIfInfomsg {
		return true
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_MTU && len(a.Value) == 4 {
			return int(binary.NativeEndian.Uint32(a.Value)) != s.mtu
		}
	}
	return false
}

// addressEvent reports whether the address that the node advertises comes or
// goes.
func (s *landmarks) addressEvent(data []byte) bool {
	if !s.underlay.IsValid() || len(data) < unix.SizeofIfAddrmsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS {
			if addr, ok := netip.AddrFromSlice(a.Value); ok && addr == s.underlay {
				return true
			}
		}
	}
	return false
}

// nftEvents recognises transactions of others on our table: changes name the
// table, and the message that ends a transaction names the process.
type nftEvents struct {
	table   string
	touched bool
}

func (e *nftEvents) event(typ uint16, data []byte) bool {
	const header, procPID, tableName = 4, 2, 1 // NFTA_GEN_PROC_PID; the table is attribute 1 everywhere
	if typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(data) < header {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[header:])
	if err != nil {
		return true
	}
	end := typ&0xff == unix.NFT_MSG_NEWGEN
	for _, a := range attrs {
		switch {
		case end && a.Attr.Type == procPID && len(a.Value) == 4:
			hit := e.touched && int(binary.BigEndian.Uint32(a.Value)) != os.Getpid()
			e.touched = false
			return hit
		case !end && a.Attr.Type == tableName && string(bytes.TrimRight(a.Value, "\x00")) == e.table:
			e.touched = true
		}
	}
	return false
}

// reaper deletes the links of the doomed group. Deleting a link waits for
// every reader in the kernel, some 30 ms, so it is never done on the way of a
// task's start, and once for all that wait. It begins with what an earlier
// process left.
func (k *linuxKernel) reaper(ctx context.Context) {
	for {
		if err := k.deleteDoomed(); err != nil {
			k.log.Warn("cannot delete links", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.reap:
		}
	}
}

func (k *linuxKernel) deleteDoomed() error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup(k.node))))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

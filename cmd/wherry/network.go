package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) networkCmd() *cobra.Command {
	return group("network", "Look at the networks, make and remove them",
		a.formatFlag(a.networkLsCmd(), "table"), a.formatFlag(a.networkInspectCmd(), "json"), a.networkCreateCmd(), a.networkRmCmd())
}

func (a *app) networkLsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List the networks", Args: noArgs("wherry network inspect NETWORK shows one")}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		l, err := cl.Networks(c.Context())
		if err != nil {
			return err
		}
		return show(a, l.Items, []string{"NAME", "STACK", "DRIVER", "SUBNET", "STATE", "SERVICES"}, networkRow)
	})
	return c
}

func networkRow(n api.NetworkInfo) []string {
	state := cmp.Or(n.Problem, n.Note, n.State)
	subnets := slices.DeleteFunc([]string{n.Subnet, n.Subnet6}, func(s string) bool { return s == "" })
	return []string{n.Name, cmp.Or(n.Stack, "-"), string(n.Spec.Driver), cmp.Or(strings.Join(subnets, ","), "-"), state, cmp.Or(strings.Join(n.Services, ","), "-")}
}

func (a *app) networkInspectCmd() *cobra.Command {
	c := &cobra.Command{Use: "inspect NETWORK…", Short: "Print all that is known of networks", Args: someArgs("names or IDs of networks", 1, 0)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var items []api.NetworkDetail
		for _, ref := range args {
			n, err := cl.Network(c.Context(), ref, api.Poll{})
			if err != nil {
				return err
			}
			items = append(items, n)
		}
		return show(a, items, []string{"NAME", "STACK", "DRIVER", "SUBNET", "STATE", "SERVICES", "TASKS"}, func(n api.NetworkDetail) []string {
			return append(networkRow(n.NetworkInfo), fmt.Sprint(len(n.Tasks)))
		})
	})
	return c
}

func (a *app) networkCreateCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "create NETWORK", Short: "Make a network that belongs to no stack", Args: someArgs("one name", 1, 1),
		Long: "Make a network that belongs to no stack. Services join it as an external network of their file. It stays until it is removed by\n" +
			"\"wherry network rm\".",
		Example: "  wherry network create edge\n  wherry network create lab --internal --subnet 10.50.0.0/24\n" +
			"  wherry network create dual --ipv6 --subnet 10.51.0.0/24 --subnet fd12:3456:789a::/64 --ip-range 10.51.0.128/25\n" +
			"  wherry network create lan --driver macvlan --parent eth0 --subnet 192.168.1.0/24 --gateway 192.168.1.1 --ip-range 192.168.1.192/27",
	}
	var n spec.NetworkSpec
	driver := c.Flags().String("driver", string(spec.DriverOverlay), "overlay spans all hosts, bridge is local to each, macvlan is the network of an interface of theirs")
	c.Flags().StringVar(&n.Parent, "parent", "", "the interface of the hosts that a macvlan network is on: eth0, or eth0.7 for a VLAN of it")
	c.Flags().BoolVar(&n.Internal, "internal", false, "no way out of the network, and no published ports on it")
	ipv6 := c.Flags().Bool("ipv6", false, "IPv6 besides IPv4")
	subnets := c.Flags().StringArray("subnet", nil, "its subnet, such as 10.50.0.0/24 (default: one that is free); once more for IPv6")
	ranges := c.Flags().StringArray("ip-range", nil, "the part of its subnet that addresses are chosen from; once more for IPv6")
	gateways := c.Flags().StringArray("gateway", nil, "the address of the nodes (default: the first of its subnet), or the router of a macvlan network; once more for IPv6")
	reserved := c.Flags().StringArray("reserve", nil, "an address that is never chosen; may be given several times")
	labels := c.Flags().StringArray("label", nil, "a label KEY=VALUE; may be given several times")
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		n.Driver = spec.NetworkDriver(*driver)
		if *ipv6 {
			n.IPv6 = &spec.Pool{}
		}
		for _, f := range []struct {
			name   string
			values []string
			set    func(p *spec.Pool, v string) (twice bool)
		}{
			{"subnet", *subnets, func(p *spec.Pool, v string) bool { return swap(&p.Subnet, v) }},
			{"ip-range", *ranges, func(p *spec.Pool, v string) bool { return swap(&p.Range, v) }},
			{"gateway", *gateways, func(p *spec.Pool, v string) bool { return swap(&p.Gateway, v) }},
			{"reserve", *reserved, func(p *spec.Pool, v string) bool { p.Reserved = append(p.Reserved, v); return false }},
		} {
			for _, v := range f.values {
				p := &n.Pool
				if strings.Contains(v, ":") {
					p = n.IPv6
				}
				switch {
				case p == nil:
					return exitWith(exitUsage, "--%s %s needs --ipv6", f.name, v)
				case f.set(p, v):
					return exitWith(exitUsage, "--%s is given twice for one family: %s", f.name, v)
				}
			}
		}
		sortAddresses(n.Reserved)
		if n.IPv6 != nil {
			sortAddresses(n.IPv6.Reserved)
		}
		var err error
		if n.Labels, err = parseLabels(*labels); err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		w, err := cl.CreateNetwork(c.Context(), api.CreateNetwork{Name: args[0], Spec: n, Author: author(), RequestID: requestID()})
		if err != nil {
			return err
		}
		if err := a.waitNetwork(c.Context(), cl, args[0], w.Index, wait); err != nil {
			return err
		}
		fmt.Fprintln(a.out, args[0])
		return nil
	}
	return c
}

// swap sets a text and reports whether it was set before.
func swap(at *string, v string) (set bool) {
	set, *at = *at != "", v
	return set
}

// sortAddresses puts addresses in their order; the manager judges what is none.
func sortAddresses(list []string) {
	slices.SortFunc(list, func(a, b string) int {
		x, _ := netip.ParseAddr(a)
		y, _ := netip.ParseAddr(b)
		return x.Compare(y)
	})
}

// waitNetwork waits until a network has its subnet.
func (a *app) waitNetwork(ctx context.Context, cl *api.Client, name string, index uint64, w *waitFlags) error {
	if !w.wait {
		return nil
	}
	wctx, cancel := w.within(ctx)
	defer cancel()
	poll := api.Poll{Index: max(index, 1) - 1, Wait: pollWait}
	for {
		n, err := cl.Network(wctx, name, poll)
		switch {
		case wctx.Err() != nil && ctx.Err() == nil:
			return exitWith(exitTimeout, "network %s has no subnet after %s", name, w.timeout)
		case err != nil:
			return err
		case n.Problem != "":
			return exitWith(exitFailed, "%s; \"wherry network rm %s\" removes it", n.Problem, name)
		case n.Subnet != "":
			return nil
		}
		poll.Index = n.Index
	}
}

func (a *app) networkRmCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "rm NETWORK…", Short: "Remove networks that were made by \"wherry network create\"", Args: someArgs("names of networks", 1, 0),
	}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		return each(args, func(name string) error {
			if _, err := cl.RemoveNetwork(c.Context(), name, requestID()); err != nil {
				return err
			}
			fmt.Fprintln(a.out, name)
			return nil
		})
	})
	return c
}

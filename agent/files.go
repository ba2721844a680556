package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// etcFiles are the files of /etc that every container gets from its node.
type etcFiles struct{ hostname, hosts, resolv string }

// hostInfo is what a container on the host's network shares with the host.
type hostInfo struct{ hostname, hosts, resolv string }

func readHostInfo() (hostInfo, error) {
	name, err := os.Hostname()
	if err != nil {
		return hostInfo{}, fmt.Errorf("read host name: %w", err)
	}
	// A host without one of the files is odd, but runs containers.
	hosts, _ := os.ReadFile("/etc/hosts")
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	return hostInfo{hostname: name, hosts: string(hosts), resolv: string(resolv)}, nil
}

// hostname is the template's, the host's where the host's network or name is
// shared, or else SERVICE-ID, as in "web-1-42": stable over the attempts of a
// task, unlike that of any other task, and telling a reader of logs where to
// look.
func hostname(t *spec.Task, tmpl *spec.Template, host hostInfo) string {
	switch {
	case tmpl.Hostname != "":
		return tmpl.Hostname
	case tmpl.NetworkMode == "host", tmpl.UTSMode == "host":
		return host.hostname
	}
	id := string(t.ID)
	service := strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(t.Service), "-")
	if room := 63 - len(id) - 1; len(service) > room { // a label of DNS
		service = strings.TrimRight(service[:room], "-")
	}
	if service == "" {
		return id
	}
	return service + "-" + id
}

// gateways returns the addresses of the host as a task sees it, if the template
// asks for them: those on its first network on which there are any, or the
// loopback on the host's.
func (a *Agent) gateways(t *spec.Task, tmpl *spec.Template) ([]netip.Addr, error) {
	switch {
	case !slices.ContainsFunc(tmpl.ExtraHosts, func(e string) bool { return strings.HasSuffix(e, "="+spec.HostGateway) }):
		return nil, nil
	case len(t.Addresses) == 0:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	for _, at := range t.Addresses {
		if list, err := a.c.Network.Gateways(at.Network); err != nil || len(list) > 0 {
			return list, err
		}
	}
	return nil, spec.Invalidf("%s cannot be had: the task is on macvlan networks alone, and does not reach its own host", spec.HostGateway)
}

// compileEtc returns the texts of a task's files. gateways are the addresses of
// the host.
func compileEtc(t *spec.Task, tmpl *spec.Template, host hostInfo, gateways []netip.Addr) (etcFiles, error) {
	name := hostname(t, tmpl, host)
	hosts, err := hostsFile(t, tmpl, name, host, gateways)
	return etcFiles{hostname: name + "\n", hosts: hosts, resolv: resolvFile(tmpl, host)}, err
}

const localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

func hostsFile(t *spec.Task, tmpl *spec.Template, name string, host hostInfo, gateways []netip.Addr) (string, error) {
	var b strings.Builder
	if tmpl.NetworkMode == "host" && host.hosts != "" {
		b.WriteString(strings.TrimSuffix(host.hosts, "\n") + "\n")
	} else {
		b.WriteString(localHosts)
	}
	for _, e := range tmpl.ExtraHosts {
		host, addr, ok := strings.Cut(e, "=")
		if !ok {
			return "", spec.Invalidf("extra host %q is not NAME=ADDRESS", e)
		}
		if addr == spec.HostGateway {
			for _, g := range gateways {
				fmt.Fprintf(&b, "%s\t%s\n", g, host)
			}
			continue
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(addr, "[]"), host)
	}
	names := name
	if tmpl.Domainname != "" {
		names = name + "." + tmpl.Domainname + " " + name
	}
	for _, a := range t.Addresses {
		for _, ip := range []string{a.IP, a.IP6} {
			if ip == "" {
				continue
			}
			p, err := netip.ParsePrefix(ip)
			if err != nil {
				return "", spec.Invalidf("address %q of network %s has no prefix length", ip, a.Network)
			}
			fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
		}
	}
	return b.String(), nil
}

func resolvFile(tmpl *spec.Template, host hostInfo) string {
	servers, search, options := parseResolv(host.resolv)
	if tmpl.NetworkMode == "" {
		servers, options = []string{"127.0.0.11"}, nil // the options are about the host's servers
	} else if len(tmpl.DNS) > 0 {
		servers = tmpl.DNS
	}
	if len(tmpl.DNSSearch) > 0 {
		search = tmpl.DNSSearch
	}
	if len(tmpl.DNSOptions) > 0 {
		options = tmpl.DNSOptions
	}
	if tmpl.NetworkMode == "" && !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		// "web" is a whole name here, to be asked before those of the search list.
		options = append(slices.Clone(options), "ndots:0")
	}
	if tmpl.NetworkMode == "host" && len(tmpl.DNS)+len(tmpl.DNSSearch)+len(tmpl.DNSOptions) == 0 {
		return host.resolv
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	// "." alone is how one asks for no search list at all.
	if len(search) > 0 && !(len(search) == 1 && search[0] == ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

func parseResolv(s string) (servers, search, options []string) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "search", "domain":
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		}
	}
	return servers, search, options
}

// writeEtc writes the files into dir. A file that exists is rewritten in
// place, since a container has it mounted.
func writeEtc(dir string, f etcFiles) error {
	for name, text := range map[string]string{"hostname": f.hostname, "hosts": f.hosts, "resolv.conf": f.resolv} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write file of task: %w", err)
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever the umask
			return fmt.Errorf("write file of task: %w", err)
		}
	}
	return nil
}

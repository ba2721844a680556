//go:build e2e

package overlay

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// The kernel under test has all that is needed, and trying it leaves nothing.
func TestKernelFeatures(t *testing.T) {
	before := kernelText(t)
	var names []string
	for _, f := range KernelFeatures() {
		names = append(names, f.Name)
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
	if got := strings.Join(names, ", "); got != "network namespaces, veth, bridge, vxlan, nftables of family inet, nftables of family ip, "+egressFeature {
		t.Errorf("tried: %s", got)
	}
	if after := kernelText(t); after != before {
		t.Errorf("left over:\n%s", after)
	}
}

func TestPortHolder(t *testing.T) {
	w := newWorld(t, "")
	w.stop()
	if name, held := PortHolder("udp", spec.VXLANPort); held {
		t.Errorf("nobody has the port, yet %q", name)
	}
	sh(t, fmt.Sprintf("ip link add other type vxlan id 9 dstport %d local %s; ip link set other up", spec.VXLANPort, hostIP))
	if name, held := PortHolder("udp", spec.VXLANPort); !held || name != "" {
		t.Errorf("the kernel has the port, yet %q, %v", name, held)
	}
	sh(t, "ip link del other")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name, held := PortHolder("tcp", uint16(l.Addr().(*net.TCPAddr).Port))
	if !held || !strings.HasSuffix(name, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("this process has the port, yet %q, %v", name, held)
	}
	w.start() // for the clean-up
}

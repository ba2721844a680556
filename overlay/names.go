package overlay

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"strings"

	"wherry.dev/spec"
)

// maxLinkName is the longest name of a link (IFNAMSIZ without its zero).
const maxLinkName = 15

// bridgeName is the name of a network's bridge: "wbr-1-12". An ID that is too
// long for a link's name is replaced by a hash.
func bridgeName(node spec.NodeID, id spec.NetworkID) string {
	return linkName("wbr-", node, string(id))
}

// tunnelName is the name of a network's VXLAN device: "wvx-1-12".
func tunnelName(node spec.NodeID, id spec.NetworkID) string {
	return linkName("wvx-", node, string(id))
}

// vethName is the name of the host's end of a task's i-th interface: "w1-34-0".
func vethName(node spec.NodeID, task spec.TaskID, i int) string {
	return linkName("w", node, fmt.Sprintf("%s-%d", task, i))
}

func linkName(prefix string, node spec.NodeID, id string) string {
	if len(prefix)+len(id) <= maxLinkName {
		return prefix + id
	}
	sum := sha256.Sum256([]byte(string(node) + "/" + id))
	return prefix + hex.EncodeToString(sum[:])[:maxLinkName-len(prefix)]
}

// aliasPrefix begins the alias of every link of a node.
func aliasPrefix(node spec.NodeID) string { return "wherry:" + string(node) + ":" }

func bridgeAlias(node spec.NodeID, id spec.NetworkID) string {
	return aliasPrefix(node) + "network:" + string(id)
}

func tunnelAlias(node spec.NodeID, id spec.NetworkID) string {
	return aliasPrefix(node) + "tunnel:" + string(id)
}

func vlanAlias(node spec.NodeID, name string) string { return aliasPrefix(node) + "vlan:" + name }

func vethAlias(node spec.NodeID, task spec.TaskID, id spec.NetworkID) string {
	return aliasPrefix(node) + "task:" + string(task) + ":" + string(id)
}

// linkGroup is the group number that every link of a node carries. Unlike the
// alias the kernel takes it in the message that makes the link, so there is no
// moment at which a link of ours cannot be told from a foreign one.
func linkGroup(node spec.NodeID) uint32 {
	h := fnv.New32a()
	h.Write([]byte(node))
	return 0x40000000 | h.Sum32()&0x1fffffff
}

// doomedGroup is the group of links that are about to be deleted, all in one
// message.
func doomedGroup(node spec.NodeID) uint32 { return linkGroup(node) | 0x20000000 }

// tableName is the name of a node's nftables table.
func tableName(node spec.NodeID) string {
	n := string(node)
	if len(n) > 8 {
		n = n[:8]
	}
	return "wherry-" + strings.ToLower(n)
}

// hostTable is a node's table in the host's namespace.
func hostTable(node spec.NodeID) TableID { return TableID{Family: "ip", Name: tableName(node)} }

// hostTable6 is the one beside it, of IPv6.
func hostTable6(node spec.NodeID) TableID { return TableID{Family: familyIPv6, Name: tableName(node)} }

// hostMAC is the address of all bridges of a host: 02:57 and its number. It
// differs between hosts, so that a frame says by which host it came.
func hostMAC(number uint32) string {
	return fmt.Sprintf("02:57:%02x:%02x:%02x:%02x", byte(number>>24), byte(number>>16), byte(number>>8), byte(number))
}

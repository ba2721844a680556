// Package ca knows who is who: the cluster's certificate authority, the tokens
// by which a host joins, and the Identity of one node with the TLS
// configurations that rest on it.
//
// A node is its key pair. Its certificate, good for 30 days, binds that key to
// the node's ID, its role and its cluster; whoever presents one whose root is
// trusted is who it says. Names of hosts and addresses prove nothing and are
// not looked at. What a node may do is not decided here: that is for the live
// table of nodes, at every call.
//
// A certificate that has expired at most Grace ago passes the handshake and is
// marked (Caller.Expired): with it a node may renew, and nothing else. There is
// no resumption of sessions, so every connection is judged by what is trusted
// when it begins; PeerOf judges only whether its certificate has expired since.
// Connections that are open when a certificate or the roots change stay open:
// whoever has opened them begins new ones, told by Identity.Changed.
//
// The package holds no state of the cluster: roots and tokens are in
// spec.Authority, and changing that is the business of package cluster. It
// starts no goroutine. An Identity is safe for concurrent use.
package ca

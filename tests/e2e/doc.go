// Package e2e runs the product as its users do: the real binary, a real
// daemon with its own containerd, real containers, in hosts of the lab. It
// needs root and the build tag e2e; `make test` runs it.
package e2e

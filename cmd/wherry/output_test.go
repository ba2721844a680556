package main

import (
	"testing"

	"wherry.dev/spec"
)

func TestPortText(t *testing.T) {
	for want, p := range map[string]spec.Port{
		"80→8080/tcp":             {Published: 80, Target: 8080, Protocol: "tcp"},
		"127.0.0.1:80→8080/udp":   {Published: 80, Target: 8080, Protocol: "udp", HostIP: "127.0.0.1"},
		"[2001:db8::1]:80→81/tcp": {Published: 80, Target: 81, Protocol: "tcp", HostIP: "2001:db8::1"},
	} {
		if got := portText(p); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

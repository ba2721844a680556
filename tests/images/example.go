package images

import "testing"

// Example is the name of the image that the examples and most tests run.
const Example = "wherry-examples/busybox:1.35"

// Serve is the name of the image that runs the program serve. `make images`
// makes it.
const Serve = "wherry-examples/serve:1"

// Must returns an archive with busybox under the given name, with a /tmp for
// everybody, for a platform ("" is the node's).
func Must(t testing.TB, name, platform string) []byte {
	t.Helper()
	b, err := Busybox(nil, Config{Name: name, Platform: platform, Dirs: map[string]int64{"tmp": 0o1777, "var": 0o755}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

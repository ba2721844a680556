// Command make writes the images of the examples as OCI archives.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"wherry.dev/tests/images"
)

func main() {
	dir := flag.String("o", "build/images", "folder to write to")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "make images:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	b, err := images.Busybox(nil, images.Config{Name: images.Example, Dirs: map[string]int64{"tmp": 0o1777, "var": 0o755}})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "busybox.tar"), b, 0o644)
}

// Command make writes the images of the examples and of the tests as OCI
// archives, and the program of the image serve.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
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
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	writable := map[string]int64{"tmp": 0o1777, "var": 0o755}
	b, err := images.Busybox(nil, images.Config{Name: images.Example, Dirs: writable})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox.tar"), b, 0o644); err != nil {
		return err
	}
	program, err := build("wherry.dev/tests/images/serve")
	if err != nil {
		return err
	}
	b, err = images.Busybox(map[string]string{"bin/serve": program}, images.Config{Name: images.Serve, Dirs: writable, Cmd: []string{"serve"}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "serve.tar"), b, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "serve"), []byte(program), 0o755); err != nil {
		return err
	}
	for _, name := range images.Servers() {
		if err := images.WriteServer(dir, filepath.Join(dir, "..", "debs"), name); err != nil {
			return err
		}
	}
	return nil
}

// build returns a program of this module, which needs nothing but a kernel.
func build(pkg string) (string, error) {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "program")
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if said, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, said)
	}
	b, err := os.ReadFile(out)
	return string(b), err
}

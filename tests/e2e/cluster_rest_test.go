//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/tests/lab"
)

// TestClusterAtRest: 1,000 values of `environment:` are in no file of a
// manager, neither log nor snapshot nor backup, and nowhere on a host that
// runs no task of their service. Secrets are not even in a file of the host
// that runs the task.
func TestClusterAtRest(t *testing.T) {
	c := grow(t, 1, 3)
	h, late, holder := c.Hosts[0], c.Hosts[1], c.Hosts[3]
	var seed [9]byte
	rand.Read(seed[:])
	canary := "canary" + hex.EncodeToString(seed[:])
	hidden := "hidden" + hex.EncodeToString(seed[:])
	file := func(round int) string {
		var b strings.Builder
		fmt.Fprintf(&b, "name: secret\nservices:\n  s:\n    image: %s\n    command: [sleep, '7301']\n    network_mode: none\n    stop_signal: SIGKILL\n    deploy: {placement: {constraints: [node.hostname==%s]}}\n    environment:\n", image, holder.Name)
		for i := range 1000 {
			fmt.Fprintf(&b, "      KEY_%d: %s-%d-%d\n", i, canary, round, i)
		}
		b.WriteString("    secrets: [file, {source: var, x-wherry: {env: VAR}}]\nsecrets: {file: {file: ./file}, var: {file: ./var}}\n")
		path := stack(t, b.String())
		for _, name := range []string{"file", "var"} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(fmt.Sprintf("%s-%d-%s", hidden, round, name)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	h.Must("apply", "--wait=false", "-f", file(0))
	placed(t, h, "secret/s", 1, holder.Name)
	// What fills the log until there is a snapshot, which a second manager gets.
	for round := 1; !snapshot(h); round++ {
		filler(t, h, round)
		if round > 30 {
			t.Fatal("there is no snapshot")
		}
	}
	h.Must("node", "promote", late.Name)
	lab.Eventually(t, soon, "the second manager has a snapshot", func() error {
		if !snapshot(late) {
			return errors.New("it has none")
		}
		return nil
	})
	h.Must("apply", "-f", file(1))
	backup := t.TempDir()
	if r := late.WherryIn(backup, "", "cluster", "backup", "state.wherry"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	h.Must("logs", "secret")

	// The search finds what is there: containerd keeps the spec of what it runs.
	found := 0
	each(t, func(_ string, b []byte) { found += bytes.Count(b, []byte(canary)) }, holder.DataDir, holder.RunDir)
	if found < 1000 {
		t.Fatalf("only %d values are found where the service runs: the search is blind", found)
	}
	inMemory := 0
	for _, x := range c.Hosts {
		each(t, func(path string, b []byte) {
			switch i := bytes.Index(b, []byte(hidden)); {
			case i < 0:
			case strings.HasPrefix(path, filepath.Join(holder.RunDir, "files")+"/"):
				inMemory++
			default:
				t.Errorf("%s holds the secret %q", path, b[i:min(i+40, len(b))])
			}
		}, filepath.Dir(x.DataDir), x.RunDir)
	}
	if inMemory == 0 {
		t.Error("the secrets are not even found in memory: the search is blind")
	}
	files, size := 0, 0
	for _, x := range c.Hosts {
		if x == holder {
			continue
		}
		each(t, func(path string, b []byte) {
			files++
			size += len(b)
			if i := bytes.Index(b, []byte(canary)); i >= 0 {
				t.Errorf("%s holds %q", path, b[i:min(i+40, len(b))])
			}
		}, filepath.Dir(x.DataDir))
	}
	each(t, func(path string, b []byte) {
		files++
		if bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte(hidden)) {
			t.Errorf("the backup holds a value")
		}
	}, backup)
	t.Logf("1,000 values: none in %d files (%d MiB) of 2 managers with snapshots, an idle worker and a backup; %d times where the service runs", files, size>>20, found)

	// What a host had, it has no longer when nothing of the service is there.
	h.Must("rm", "secret")
	lab.Eventually(t, soon, "nothing of it is left where it ran", func() (err error) {
		each(t, func(path string, b []byte) {
			if bytes.Contains(b, []byte(canary)) && !strings.Contains(path, "meta.db") {
				err = fmt.Errorf("%s holds a value", path)
			}
		}, holder.DataDir, holder.RunDir)
		return err
	})
}

// filler writes about 7 MiB into the log.
func filler(t *testing.T, h *lab.Host, round int) {
	t.Helper()
	var b strings.Builder
	b.WriteString("name: filler\nservices: {s: {image: " + image + ", deploy: {replicas: 0}, configs: [a0, a1, a2, a3, a4, a5, a6, a7]}}\nconfigs:\n")
	for i := range 8 {
		fmt.Fprintf(&b, "  a%d: {file: ./a%d}\n", i, i)
	}
	file := stack(t, b.String())
	for i := range 8 {
		raw := make([]byte, 900<<10)
		rand.Read(raw)
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), fmt.Sprintf("a%d", i)), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.Must("apply", "-f", file, "-m", fmt.Sprint("round ", round))
}

// snapshot says whether a manager has one.
func snapshot(h *lab.Host) bool {
	entries, err := os.ReadDir(filepath.Join(h.DataDir, "raft", "snapshots"))
	return err == nil && len(entries) > 0
}

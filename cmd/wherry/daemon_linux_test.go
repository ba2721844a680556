package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/api"
)

// TestDaemonFlags: flags that do not go together are refused before a folder
// is made.
func TestDaemonFlags(t *testing.T) {
	for name, c := range map[string]struct {
		config daemonConfig
		want   string // of the error; empty: none
	}{
		"alone":             {daemonConfig{}, ""},
		"join":              {daemonConfig{join: "10.0.0.1:4477", token: "T"}, ""},
		"recover":           {daemonConfig{recover: true}, ""},
		"join, no token":    {daemonConfig{join: "10.0.0.1:4477"}, "wherry token worker"},
		"token, no address": {daemonConfig{token: "T"}, "belong together"},
		"file, no address":  {daemonConfig{tokenFile: "/none"}, "belong together"},
		"two tokens":        {daemonConfig{join: "10.0.0.1:4477", token: "T", tokenFile: "/none"}, "only one of them"},
		"join and recover":  {daemonConfig{join: "10.0.0.1:4477", token: "T", recover: true}, "only one of them"},
		"small packets":     {daemonConfig{mtu: 1279}, "want 1280 to 9000 bytes"},
		"large packets":     {daemonConfig{mtu: 9001}, "want 1280 to 9000 bytes"},
		"packets":           {daemonConfig{mtu: 1400}, ""},
		"another port":      {daemonConfig{vxlanPort: 4789}, ""},
		"port of a joiner":  {daemonConfig{vxlanPort: 4789, join: "10.0.0.1:4477", token: "T"}, "leave it out with --join"},
		"port of the API":   {daemonConfig{vxlanPort: 4477}, "the port of --advertise"},
		"port of the API 2": {daemonConfig{vxlanPort: 5000, advertise: "10.0.0.1:5000"}, "the port of --advertise"},
		"long run folder":   {daemonConfig{runDir: "/run/" + strings.Repeat("x", 200)}, "would not fit"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.config.dataDir = filepath.Join(dir, "data")
			if c.config.runDir == "" {
				c.config.runDir = mustTemp(t) // t.TempDir may be too long for one
			}
			err := c.config.prepare("")
			_, statErr := os.Stat(c.config.dataDir)
			if c.want == "" {
				if err != nil || statErr != nil || c.config.name == "" {
					t.Errorf("%v, %v, name %q", err, statErr, c.config.name)
				}
				return
			}
			var e *exitError
			if !errors.As(err, &e) || e.code != exitUsage || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want one of usage with %q", err, c.want)
			}
			if statErr == nil {
				t.Error("the data folder was made")
			}
		})
	}
}

// TestDaemonToken: where the token comes from.
func TestDaemonToken(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const at = "10.0.0.1:4477"
	for name, c := range map[string]struct {
		config daemonConfig
		env    string
		token  string
		want   string // of the error; empty: none
	}{
		"flag":                 {daemonConfig{join: at, token: "T"}, "E", "T", ""},
		"file":                 {daemonConfig{join: at, tokenFile: file("token", "F\n")}, "E", "F", ""},
		"environment":          {daemonConfig{join: at}, "E\n", "E", ""},
		"environment, no join": {daemonConfig{}, "E", "", ""},
		"no file":              {daemonConfig{join: at, tokenFile: filepath.Join(dir, "none")}, "", "", "needs neither --join nor --token-file"},
		"empty file":           {daemonConfig{join: at, tokenFile: file("empty", "\n")}, "E", "", "is empty"},
	} {
		err := c.config.findToken(c.env)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) || c.config.token != c.token {
			t.Errorf("%s: token %q, %v", name, c.config.token, err)
		}
	}
}

// TestLastWord: a daemon that starts goes by what its last life was told.
func TestLastWord(t *testing.T) {
	peers := []api.Peer{{ID: "a", Key: "k"}}
	h := lastWord(api.ClusterInfo{Managers: peers, Nodes: peers}, true)
	if len(h.managers()) != 1 || len(h.nodes()) != 1 || h.nodes()[0].Key != "k" {
		t.Errorf("managers %+v, nodes %+v", h.managers(), h.nodes())
	}
	if h := lastWord(api.ClusterInfo{}, false); h.managers() != nil || h.nodes() != nil || h.info.Load() != nil {
		t.Error("it was told nothing, and knows something")
	}
}

func TestDaemonListen(t *testing.T) {
	for advertise, want := range map[string]string{"": ":4477", "10.0.0.1": ":4477", "10.0.0.1:5000": ":5000", "[2001:db8::1]:5000": ":5000", "2001:db8::1": ":4477"} {
		if got := (&daemonConfig{advertise: advertise}).listen(); got != want {
			t.Errorf("--advertise %q listens on %s, want %s", advertise, got, want)
		}
	}
}

// mustTemp makes a folder with a short path.
func mustTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wherry")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

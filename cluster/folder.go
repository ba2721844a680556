package cluster

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"wherry.dev/spec"
)

// The member's files in the data folder.
const (
	lockFile    = "lock"
	nodeIDFile  = "node-id"
	keyringFile = "keyring"
	raftDir     = "raft"
	stableFile  = "vote"      // in raftDir
	logDir      = "log"       // in raftDir
	snapDir     = "snapshots" // in raftDir
)

// claim takes the data folder for this process, until the returned file is
// closed or the process ends in whatever way.
func claim(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim data folder: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		defer f.Close()
		return nil, spec.Conflictf("data folder %s is in use by %s: stop that daemon first, or give this one another folder with --data-dir", dir, holder(f))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("claim %s: %w", path, err)
	}
	// The PID only helps the message above; the lock is what counts, so a disk
	// without room for it is no reason not to start.
	if f.Truncate(0) == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// holder describes the process that wrote the lock file.
func holder(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("the process with PID %d", pid)
}

// keyring holds the secrets of the cluster that every manager has.
type keyring struct {
	Format int `json:"format"`
	// Content keys the names of contents, so that a name says nothing of its bytes.
	Content []byte `json:"content_key"`
	// Data seals the log and the snapshots.
	Data []byte `json:"data_key"`
}

// identity is who this member is.
type identity struct {
	id   spec.NodeID
	keys keyring
}

// loadIdentity reads node-id and keyring, or makes them on a folder that holds
// no state. To make new ones beside an old state would give a member that is
// not in its own cluster, or that cannot read its own log.
func loadIdentity(dir string) (identity, error) {
	var who identity
	_, err := os.Stat(filepath.Join(dir, raftDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return who, fmt.Errorf("look for state: %w", err)
	}
	fresh := err != nil
	b, err := readOrMake(filepath.Join(dir, nodeIDFile), fresh, func() []byte {
		return []byte(hex.EncodeToString(random(8)) + "\n")
	})
	if err != nil {
		return who, err
	}
	who.id = spec.NodeID(bytes.TrimSpace(b))
	if raw, err := hex.DecodeString(string(who.id)); err != nil || len(raw) != 8 {
		return who, spec.Invalidf("%s holds %q: want 16 hex digits", filepath.Join(dir, nodeIDFile), who.id)
	}
	path := filepath.Join(dir, keyringFile)
	b, err = readOrMake(path, fresh, func() []byte {
		b, err := json.Marshal(keyring{Format: 1, Content: random(keySize), Data: random(keySize)})
		if err != nil {
			panic(fmt.Sprintf("cluster: a keyring does not encode: %v", err)) // no field can fail
		}
		return append(b, '\n')
	})
	if err != nil {
		return who, err
	}
	if err := json.Unmarshal(b, &who.keys); err != nil {
		return who, spec.Invalidf("%s is damaged: bring back a copy of it", path) // the error would quote the keys
	}
	if who.keys.Format != 1 || len(who.keys.Content) != keySize || len(who.keys.Data) != keySize {
		return who, spec.Invalidf("%s is of another version of wherry, or damaged", path)
	}
	return who, nil
}

// readOrMake reads a file; one that is missing is made, if that is allowed.
func readOrMake(path string, mayMake bool, make func() []byte) ([]byte, error) {
	b, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			err = fmt.Errorf("read identity: %w", err)
		}
		return b, err
	}
	if !mayMake {
		return nil, spec.Conflictf("%s is missing, but its folder holds the state of a cluster: bring back a copy of it, or start with an empty data folder", path)
	}
	b = make()
	if err := writeFile(path, b); err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return b, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// freeSpace is how many bytes a file system has left for anyone.
func freeSpace(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look for free space in %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

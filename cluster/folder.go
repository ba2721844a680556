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
	"slices"
	"strconv"
	"strings"
	"syscall"

	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// The member's files in the data folder.
const (
	lockFile    = "lock"
	nodeIDFile  = "node-id"
	keyringFile = "keyring"
	rootsFile   = "known-roots"
	raftDir     = "raft"
	stableFile  = "vote"      // in raftDir
	logDir      = "log"       // in raftDir
	snapDir     = "snapshots" // in raftDir
)

// claimFolder takes the data folder for this process, until the returned file is
// closed or the process ends in whatever way.
func claimFolder(dir string) (*os.File, error) {
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

// keyring holds the secrets of the cluster that this node has.
type keyring struct {
	Format int `json:"format"`
	// Gossip seals gossip; every node has it.
	Gossip []byte `json:"gossip_key"`
	// Content keys the names of contents, so that a name says nothing of its
	// bytes. Data seals the log, the snapshots and backups. Managers have both,
	// and who has them is a manager.
	Content []byte `json:"content_key,omitempty"`
	Data    []byte `json:"data_key,omitempty"`
	// Joined is set on a node that did not make its cluster: an empty log is
	// filled by the leader then.
	Joined bool `json:"joined,omitempty"`
}

const keyringFormat = 2

// newKeyring makes the secrets of a new cluster.
func newKeyring() keyring {
	return keyring{Format: keyringFormat, Gossip: random(keySize), Content: random(keySize), Data: random(keySize)}
}

func (k keyring) role() spec.NodeRole {
	if k.Data != nil {
		return spec.RoleManager
	}
	return spec.RoleWorker
}

// check says whether the keyring is complete; the error never quotes it.
func (k keyring) check() bool {
	keys := len(k.Content) == keySize && len(k.Data) == keySize
	switch k.Format {
	case 1: // of a cluster of one, before there was gossip
		return keys && k.Gossip == nil
	case keyringFormat:
		return len(k.Gossip) == keySize && (keys || k.Content == nil && k.Data == nil && k.Joined)
	}
	return false
}

// readKeyring returns an error of class fs.ErrNotExist when there is none.
func readKeyring(dir string) (k keyring, err error) {
	path := filepath.Join(dir, keyringFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return k, fmt.Errorf("read identity: %w", err)
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, spec.Invalidf("%s is damaged: bring back a copy of it", path) // the error would quote the keys
	}
	if !k.check() {
		return k, spec.Invalidf("%s is of another version of wherry, or damaged", path)
	}
	return k, nil
}

// writeKeyring replaces the keyring in one step.
func writeKeyring(dir string, k keyring) error {
	k.Format = keyringFormat
	b, err := json.Marshal(k)
	if err != nil {
		panic(fmt.Sprintf("cluster: a keyring does not encode: %v", err)) // no field can fail
	}
	if err := ca.WriteFile(filepath.Join(dir, keyringFile), append(b, '\n')); err != nil {
		return fmt.Errorf("write keyring: %w", err)
	}
	return nil
}

// identity is who this member is. Its keys are missing (Format 0) on a folder
// that is not of any cluster yet.
type identity struct {
	id   spec.NodeID
	keys keyring
}

// loadIdentity reads node-id and keyring. On a folder that holds no state it
// makes the ID; the keyring comes with the cluster that is made or joined, and
// is what makes the folder one of it. To make new ones beside an old state
// would give a member that is not in its own cluster, or that cannot read its
// own log.
func loadIdentity(dir string) (identity, error) {
	var who identity
	_, err := os.Stat(filepath.Join(dir, raftDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return who, fmt.Errorf("look for state: %w", err)
	}
	fresh := err != nil
	who.keys, err = readKeyring(dir)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return who, err
	}
	if missing && !fresh {
		return who, lost(filepath.Join(dir, keyringFile))
	}
	path := filepath.Join(dir, nodeIDFile)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && fresh && missing:
		b = []byte(newNodeID() + "\n")
		if err := ca.WriteFile(path, b); err != nil {
			return who, fmt.Errorf("make %s: %w", path, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		return who, lost(path)
	case err != nil:
		return who, fmt.Errorf("read identity: %w", err)
	}
	who.id = spec.NodeID(bytes.TrimSpace(b))
	if raw, err := hex.DecodeString(string(who.id)); err != nil || len(raw) != 8 {
		return who, spec.Invalidf("%s holds %q: want 16 hex digits", path, who.id)
	}
	return who, nil
}

func lost(path string) error {
	return spec.Conflictf("%s is missing, but its folder holds the state of a cluster: bring back a copy of it, or start with an empty data folder", path)
}

func newNodeID() string { return hex.EncodeToString(random(8)) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// knownRoots reads the hashes of all roots that this node has ever trusted: a
// join token with one of them is of its own cluster, also after the root was
// exchanged. Without the file there are none.
func knownRoots(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, rootsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read known roots: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// addRoots adds to what knownRoots reads.
func addRoots(dir string, hashes []string) error {
	known, err := knownRoots(dir)
	if err != nil {
		return err
	}
	n := len(known)
	for _, h := range hashes {
		if !slices.Contains(known, h) {
			known = append(known, h)
		}
	}
	if len(known) == n {
		return nil
	}
	if err := ca.WriteFile(filepath.Join(dir, rootsFile), []byte(strings.Join(known, "\n")+"\n")); err != nil {
		return fmt.Errorf("write known roots: %w", err)
	}
	return nil
}

// freeSpace is how many bytes a file system has left for anyone.
func freeSpace(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look for free space in %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

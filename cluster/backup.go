package cluster

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// A backup is one stream:
//
//	magic[8] format[4] length of meta[4] salt[32] meta (JSON) sealed stream
//
// All that precedes the stream is authenticated with it. The stream holds a
// line of JSON (backupKeys) and then the state as Snapshot.Persist writes it.
const (
	backupMagic  = "wherrybk"
	backupFormat = 1
	maxMeta      = 1 << 16
)

// backupMeta can be read without the key. It says nothing of the state's
// content.
type backupMeta struct {
	ClusterID   string    `json:"cluster_id"`
	Incarnation uint64    `json:"incarnation"`
	Index       uint64    `json:"index"`
	Time        time.Time `json:"time"`
	Version     string    `json:"version,omitempty"`
}

// backupKeys are the other secrets of the cluster.
type backupKeys struct {
	Content []byte `json:"content_key"`
	Gossip  []byte `json:"gossip_key"`
}

// Backup writes the whole state, sealed under the data key: it holds every
// write that was acknowledged before the call.
func (m *Member) Backup(ctx context.Context, w io.Writer) error {
	if err := m.Linearizable(ctx); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	s := m.store.Snapshot()
	meta, err := json.Marshal(backupMeta{s.ClusterID(), s.Incarnation(), s.Index(), time.Now().UTC(), m.c.Version})
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	salt := random(snapSalt)
	head := binary.BigEndian.AppendUint32([]byte(backupMagic), backupFormat)
	head = binary.BigEndian.AppendUint32(head, uint32(len(meta)))
	head = append(append(head, salt...), meta...)
	aead, err := newSealKey(m.keys.Data, salt, "backup")
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	sealed := newSealWriter(w, aead, head)
	if err := json.NewEncoder(sealed).Encode(backupKeys{m.keys.Content, m.keys.Gossip}); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if err := s.Persist(sealed); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if err := sealed.Close(); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	return nil
}

// BackupKey returns the key that backups are sealed with, as text: what Restore
// needs besides a backup, and what nobody else may see.
func (m *Member) BackupKey() (string, error) {
	if m.role != spec.RoleManager {
		return "", errWorker
	}
	return base64.StdEncoding.EncodeToString(m.keys.Data), nil
}

// parseKey takes a data key as BackupKey returns it, as it is, or in a keyring.
func parseKey(b []byte) ([]byte, error) {
	if len(b) == keySize {
		return b, nil
	}
	text := bytes.TrimSpace(b)
	if key, err := base64.StdEncoding.AppendDecode(nil, text); err == nil && len(key) == keySize {
		return key, nil
	}
	var k keyring
	if json.Unmarshal(text, &k) == nil && k.check() && k.Data != nil {
		return k.Data, nil
	}
	return nil, spec.Invalidf("restore: this is no key of a cluster: want the file that was written with the backup, or the keyring of a manager")
}

// Restore makes a data folder from a backup: the host that is started with it
// is the only manager of the cluster, in a new incarnation, and other hosts
// join it. key is the data key. The folder must be empty or not exist; when
// anything is wrong with the backup, nothing is written.
func Restore(dataDir string, backup io.Reader, key []byte) (err error) {
	data, err := parseKey(key)
	if err != nil {
		return err
	}
	keys, state, err := readBackup(backup, data)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	entries, err := os.ReadDir(dataDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("restore: look into the data folder: %w", err)
	}
	for _, e := range entries {
		if e.Name() != lockFile {
			return spec.Conflictf("restore: data folder %s is not empty: it holds %s; take another one", dataDir, e.Name())
		}
	}
	lock, err := claimFolder(dataDir)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer lock.Close()
	if err := writeRestored(dataDir, keyring{Gossip: keys.Gossip, Content: keys.Content, Data: data}, state.Snapshot()); err != nil {
		return fmt.Errorf("restore: %w; empty %s and try again", explain(err, dataDir), dataDir)
	}
	return nil
}

// writeRestored makes the files. The keyring is the last: without it the
// folder is refused.
func writeRestored(dir string, keys keyring, s *store.Snapshot) error {
	id := newNodeID()
	if err := ca.WriteFile(filepath.Join(dir, nodeIDFile), []byte(id+"\n")); err != nil {
		return err
	}
	folder := filepath.Join(dir, raftDir)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	stable, err := openStable(filepath.Join(folder, stableFile), newHalt())
	if err != nil {
		return err
	}
	err = stable.SetUint64([]byte(keyCurrentTerm), 1)
	if err = errors.Join(err, stable.close()); err != nil {
		return err
	}
	snaps, err := openSnapshots(filepath.Join(folder, snapDir), keys.Data, func(uint64) {})
	if err != nil {
		return err
	}
	if err := writeState(snaps, s, max(s.Index(), 1), 1, onlyVoter(raft.ServerID(id), spec.NodeID(id))); err != nil {
		return err
	}
	if err := writeLife(folder, newLife{s.Incarnation() + 1}); err != nil {
		return err
	}
	if err := ca.SyncDir(dir); err != nil {
		return err
	}
	return writeKeyring(dir, keys)
}

// readBackup reads a backup to its end.
func readBackup(r io.Reader, data []byte) (keys backupKeys, state *store.Store, err error) {
	head := make([]byte, snapPrefix+snapSalt)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:8]) != backupMagic {
		return keys, nil, spec.Invalidf("this is not a backup of a cluster")
	}
	if f := binary.BigEndian.Uint32(head[8:]); f != backupFormat {
		return keys, nil, spec.Invalidf("the backup has format %d, this version of wherry knows %d: take the one that made it", f, backupFormat)
	}
	n := binary.BigEndian.Uint32(head[12:])
	if n > maxMeta {
		return keys, nil, spec.Invalidf("the backup is damaged")
	}
	head = append(head, make([]byte, n)...)
	if _, err := io.ReadFull(r, head[snapPrefix+snapSalt:]); err != nil {
		return keys, nil, spec.Invalidf("the backup is cut off")
	}
	aead, err := newSealKey(data, head[snapPrefix:snapPrefix+snapSalt], "backup")
	if err != nil {
		return keys, nil, err
	}
	// The whole of it is read before any is believed.
	plain, err := io.ReadAll(newOpenReader(r, aead, head))
	if errors.Is(err, errSealedStream) {
		var meta backupMeta
		_ = json.Unmarshal(head[snapPrefix+snapSalt:], &meta) // for the message only
		return keys, nil, spec.Invalidf("the backup of cluster %s from %s cannot be opened: it is damaged or cut off, or the key is that of another cluster",
			meta.ClusterID, meta.Time.Format(time.RFC3339))
	}
	if err != nil {
		return keys, nil, fmt.Errorf("read the backup: %w", err)
	}
	line, rest, _ := bytes.Cut(plain, []byte("\n"))
	if json.Unmarshal(line, &keys) != nil || len(keys.Content) != keySize || len(keys.Gossip) != keySize {
		return keys, nil, spec.Invalidf("the backup lacks the cluster's keys")
	}
	state = store.New()
	if err := state.Restore(bytes.NewReader(rest)); err != nil {
		return keys, nil, err
	}
	return keys, state, nil
}

package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The node's memory of its processes, one file of each kind per task. Neither
// is synced: after a loss of power no process is left that they could tell of.

// runRecord says which process was started last; Runtime.Start writes it
// between the creation of the process and its start.
type runRecord struct {
	PID int `json:"pid"`
	// Birth is the start of the process in clock ticks since the boot, which
	// tells it from another process with the same PID.
	Birth uint64 `json:"birth"`
	// Shim and ShimBirth name its parent.
	Shim      int    `json:"shim"`
	ShimBirth uint64 `json:"shim_birth"`
	// Boot of the kernel under which it ran.
	Boot string    `json:"boot"`
	Time time.Time `json:"time"`
}

// exitRecord is the end of a process, written by its shim.
type exitRecord struct {
	PID    int       `json:"pid"`
	Status int       `json:"status"` // 128 + signal for a process that was killed by one
	Time   time.Time `json:"time"`
	// OOM: a process of the container was killed for lack of memory.
	OOM bool `json:"oom"`
}

func runPath(dir, id string) string  { return filepath.Join(dir, id+".run") }
func exitPath(dir, id string) string { return filepath.Join(dir, id+".exit") }

func (r exitRecord) write(dir, id string) error { return writeRecord(exitPath(dir, id), r) }
func (r runRecord) write(dir, id string) error  { return writeRecord(runPath(dir, id), r) }

func readExit(dir, id string) (r exitRecord, ok bool) { return r, readRecord(exitPath(dir, id), &r) }
func readRun(dir, id string) (r runRecord, ok bool)   { return r, readRecord(runPath(dir, id), &r) }

func removeRecords(dir, id string) error {
	return errors.Join(removeFile(runPath(dir, id)), removeFile(exitPath(dir, id)))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

// writeRecord replaces the file at once, so that no reader sees half of it.
func writeRecord(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	tmp := path + "." + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func readRecord(path string, v any) bool {
	b, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(b, v) == nil
}

// alive reports whether the recorded process still runs; a zombie does not.
func (r runRecord) alive() bool {
	birth, state, _, ok := procStat(r.PID)
	return ok && birth == r.Birth && state != 'Z' && state != 'X' && r.Boot == bootID()
}

// procStat reads the start time in clock ticks since the boot, the state and
// the parent of a process.
func procStat(pid int) (birth uint64, state byte, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0, false
	}
	// The name in parentheses may hold anything, so the fields are counted
	// from its end: state is the third field of the line, start time the 22nd.
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return 0, 0, 0, false
	}
	parent, _ = strconv.Atoi(f[1])
	birth, err = strconv.ParseUint(f[19], 10, 64)
	return birth, f[0][0], parent, err == nil
}

// bootID identifies the boot of the kernel.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

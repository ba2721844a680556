package containerd

import (
	"bufio"
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/spec"
)

// maxID is the greatest user or group ID; the one above means "no change" to
// the kernel.
const maxID = 1<<32 - 2

// resolveUser finds the IDs that "user[:group]" and further groups mean in a
// container with these user databases. Names have to exist there, numbers need
// not. Without a group, the user's own and all that list it are taken.
func resolveUser(name string, further []string, passwd, group []byte) (specs.User, error) {
	userName, groupName, hasGroup := strings.Cut(name, ":")
	if userName == "" {
		userName = "0"
	}
	var u specs.User
	entry, err := findUser(userName, passwd)
	if err != nil {
		return u, err
	}
	u.UID, u.GID = entry.uid, entry.gid
	groups := parseGroups(group)
	if hasGroup && groupName != "" {
		if u.GID, err = findGroup(groupName, groups); err != nil {
			return u, err
		}
	} else if entry.name != "" {
		for _, g := range groups {
			if slices.Contains(g.members, entry.name) {
				u.AdditionalGids = append(u.AdditionalGids, g.gid)
			}
		}
	}
	for _, n := range further {
		gid, err := findGroup(n, groups)
		if err != nil {
			return u, err
		}
		if !slices.Contains(u.AdditionalGids, gid) {
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	// The process is a member of its own group in any case; runtimes set the
	// list as it is given.
	if !slices.Contains(u.AdditionalGids, u.GID) {
		u.AdditionalGids = append([]uint32{u.GID}, u.AdditionalGids...)
	}
	return u, nil
}

type userEntry struct {
	name     string // empty for a number that no entry has
	uid, gid uint32
}

// findUser looks a user up. All digits are a number, never a name, so that a
// number out of range does not end up as whatever an image calls by that name.
func findUser(name string, passwd []byte) (userEntry, error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return userEntry{}, spec.Invalidf("user %q: %v", name, err)
	}
	for fields := range lines(passwd) {
		if len(fields) < 4 || numeric && fields[2] != name || !numeric && fields[0] != name {
			continue
		}
		uid, _, uerr := parseID(fields[2])
		gid, isNumber, gerr := parseID(fields[3])
		if uerr != nil || gerr != nil || !isNumber {
			continue
		}
		return userEntry{name: fields[0], uid: uid, gid: gid}, nil
	}
	if !numeric {
		return userEntry{}, spec.Invalidf("user %q does not exist in the image's /etc/passwd", name)
	}
	return userEntry{uid: id}, nil
}

type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

func parseGroups(group []byte) []groupEntry {
	var out []groupEntry
	for f := range lines(group) {
		if len(f) < 3 {
			continue
		}
		gid, numeric, err := parseID(f[2])
		if err != nil || !numeric {
			continue
		}
		g := groupEntry{name: f[0], gid: gid}
		if len(f) > 3 && f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		out = append(out, g)
	}
	return out
}

func findGroup(name string, groups []groupEntry) (uint32, error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return 0, spec.Invalidf("group %q: %v", name, err)
	}
	if numeric {
		return id, nil
	}
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	return 0, spec.Invalidf("group %q does not exist in the image's /etc/group", name)
}

// parseID reads a number; numeric is false for what is a name.
func parseID(s string) (id uint32, numeric bool, err error) {
	if s == "" || strings.Trim(strings.TrimPrefix(s, "-"), "0123456789") != "" {
		return 0, false, nil
	}
	n, perr := strconv.ParseUint(s, 10, 64)
	if perr != nil || n > maxID {
		return 0, true, spec.Invalidf("the number is not between 0 and %d", uint64(maxID))
	}
	return uint32(n), true, nil
}

// lines yields the fields of a database's lines.
func lines(b []byte) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		sc := bufio.NewScanner(bytes.NewReader(b))
		sc.Buffer(nil, maxDatabase+1)
		for sc.Scan() {
			line := strings.TrimSpace(sc.Text())
			if line == "" || line[0] == '#' {
				continue
			}
			if !yield(strings.Split(line, ":")) {
				return
			}
		}
	}
}

package compose

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/dotenv"
)

// rawFormat is the format of env files whose values are taken as they are:
// without quotes, escapes and variables.
const rawFormat = "raw"

// registerRaw tells the Compose library of the format, which it leaves to its
// users and keeps for all of them.
var registerRaw = sync.OnceFunc(func() { dotenv.RegisterFormat(rawFormat, parseRaw) })

// parseRaw reads lines of NAME=VALUE. NAME alone takes the value of the
// environment, if it has one; empty lines and those that begin with # say
// nothing.
func parseRaw(r io.Reader, filename string, vars map[string]string, lookup func(string) (string, bool)) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read %s: %w", filename, err)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !utf8.Valid(data) {
		return fmt.Errorf("read %s: it is no text in UTF-8", filename)
	}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimLeft(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return fmt.Errorf("read %s: line %d has no valid name before =", filename, number)
		}
		if !ok {
			value, ok = lookup(name)
		}
		if ok {
			vars[name] = value
		}
	}
	return nil
}

package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// documents are checked against the commands that there are. Paths are from
// this folder; each has at least so many command lines.
var documents = map[string]int{"../../README.md": 15, "../../docs/operate.md": 15, "../../docs/updates.md": 10, "../../docs/secrets.md": 6, "../../docs/storage.md": 10}

// TestDocumentedCommands: every command line in the documents is one that the
// program takes, by its path, its flags and the number of its arguments.
func TestDocumentedCommands(t *testing.T) {
	for path, least := range documents {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := commandLines(string(b))
		if len(lines) < least {
			t.Errorf("%s: only %d command lines found, the search is blind", path, len(lines))
		}
		for _, l := range lines {
			if err := checkLine(l.words, l.prose); err != nil {
				t.Errorf("%s:%d: %s: %v", strings.TrimPrefix(path, "../../"), l.number, strings.Join(l.words, " "), err)
			}
		}
	}
}

// TestCheckLine: the check finds what is wrong.
func TestCheckLine(t *testing.T) {
	for line, want := range map[string]string{
		"wherry node rm --force NAME":                   "",
		"wherry --host https://10.0.0.1:4477 ls":        "",
		"wherry exec hello/store -- cat /data/visits":   "",
		"wherry node rm --force":                        "rm wants names or IDs of nodes",
		"wherry node remove NAME":                       "no command",
		"wherry node":                                   "wants one of",
		"wherry":                                        "wants one of",
		"wherry cluster backup FILE --key K":            "", // --key is one of all commands
		"wherry cluster backup FILE --keyfile K":        "unknown flag",
		"wherry cluster backup FILE OTHER":              "too much",
		"wherry cluster status now":                     "takes no argument",
		"wherry token worker --ttl tomorrow":            "invalid argument",
		"wherry frobnicate":                             "unknown command",
		"wherry cluster ca client":                      "wants one NAME",
		"wherry daemon --join 10.0.0.1:4477 --tokens T": "unknown flag",
	} {
		err := checkLine(strings.Fields(line), false)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", line, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want an error with %q", line, err, want)
		}
	}
}

func TestCommandLines(t *testing.T) {
	text := "Text with `wherry ls`, `wherry.yml` and `make`.\n" +
		"```\n" +
		"sudo bin/wherry daemon &      # a comment with wherry nonsense\n" +
		"GREETING='Hello, you' wherry apply -m 'a b' && wherry ls | grep x\n" +
		"  host-2# wherry node ls\n" +
		"wherry rm s-$(date +%F | tr - x)\n" +
		"curl localhost\n" +
		"```\n" +
		"| `wherry node rm NAME` | wherry in a sentence |\n"
	var got []string
	for _, l := range commandLines(text) {
		got = append(got, fmt.Sprintf("%d %s", l.number, strings.Join(l.words, "_")))
	}
	want := []string{"1 wherry_ls", "3 wherry_daemon", "4 wherry_apply_-m_a b", "4 wherry_ls", "5 wherry_node_ls", "6 wherry_rm_s-$(date +%F | tr - x", "9 wherry_node_rm_NAME"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// commandLine is a call of the program in a document.
type commandLine struct {
	number int // of the line
	words  []string
	prose  bool // it stands in a sentence, which may name a command only
}

var inlineCode = regexp.MustCompile("`(wherry [^`]*)`")

// commandLines finds what a reader may type: lines of code blocks, and code in
// sentences.
func commandLines(text string) []commandLine {
	var out []commandLine
	block := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			block = !block
			continue
		}
		var parts []string
		if block {
			_, after, prompt := strings.Cut(line, "# wherry ") // host-2# wherry …, or a comment
			before, _, _ := strings.Cut(line, "#")
			if prompt && !strings.Contains(strings.TrimSpace(before), " ") {
				line = "wherry " + after
			}
			parts = []string{line}
		} else {
			for _, m := range inlineCode.FindAllStringSubmatch(line, -1) {
				parts = append(parts, m[1])
			}
		}
		for _, p := range parts {
			for _, words := range shellWords(p) {
				for len(words) > 0 && (words[0] == "sudo" || strings.Contains(words[0], "=")) {
					words = words[1:]
				}
				if len(words) > 0 && (words[0] == "wherry" || words[0] == "bin/wherry") {
					words[0] = "wherry"
					out = append(out, commandLine{i + 1, words, !block})
				}
			}
		}
	}
	return out
}

// shellWords splits a line into commands, and these into words. It knows
// quotes, comments and what stands between commands, and no more of a shell.
func shellWords(line string) [][]string {
	var out [][]string
	var words []string
	word, quote, open := "", rune(0), false
	endWord := func() {
		if open {
			words = append(words, word)
		}
		word, open = "", false
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			out = append(out, words)
		}
		words = nil
	}
loop:
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '(' && strings.HasSuffix(word, "$"):
			quote, word = ')', word+"("
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == '#' && !open:
			break loop
		case strings.ContainsRune("&|;", r):
			endCommand()
		case r == ' ' || r == '\t':
			endWord()
		default:
			word, open = word+string(r), true
		}
	}
	endCommand()
	return out
}

// checkLine says what is wrong with a call of the program, without running it.
// In prose the arguments may be left out all together.
func checkLine(words []string, prose bool) error {
	a := &app{env: func(string) (string, bool) { return "", false }}
	root := a.root()
	c, rest, err := root.Find(words[1:])
	if err != nil {
		return err
	}
	c.InitDefaultHelpFlag()
	if err := c.ParseFlags(rest); err != nil && !errors.Is(err, pflag.ErrHelp) {
		return err
	}
	args := c.Flags().Args()
	switch {
	case c.HasSubCommands() && len(args) > 0:
		return fmt.Errorf("no command %q in %s", args[0], c.Name())
	case c.HasSubCommands():
		return fmt.Errorf("%s wants one of its commands", c.Name())
	case prose && len(args) == 0:
		return nil
	}
	return c.ValidateArgs(args)
}

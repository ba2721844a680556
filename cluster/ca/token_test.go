package ca

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
)

var dataKey = bytes.Repeat([]byte{7}, 32)

func newToken(role spec.NodeRole, generation uint64) Token {
	return Token{CAHash: base.EncodeToString(bytes.Repeat([]byte{1}, 32)), Secret: Secret(dataKey, role, spec.JoinToken{Generation: generation, Salt: []byte("salt")})}
}

func TestToken(t *testing.T) {
	seen := map[string]bool{}
	for _, role := range []spec.NodeRole{spec.RoleWorker, spec.RoleManager} {
		for generation := range uint64(20) {
			tok := newToken(role, generation)
			got, err := ParseToken(" " + tok.String() + "\n")
			if err != nil || got != tok {
				t.Fatalf("parse %s: %v, %v", tok, got, err)
			}
			if seen[tok.Secret] {
				t.Fatalf("the secret of %s %d is that of another", role, generation)
			}
			seen[tok.Secret] = true
		}
	}
	if got := newToken(spec.RoleWorker, 1).Secret; got != "o2pu6iv6vuxxgyuxyats4lrblu" {
		t.Errorf("the secret of a generation has become %q: tokens that were handed out are worthless", got)
	}
	if Secret(dataKey, spec.RoleWorker, spec.JoinToken{Generation: 1, Salt: []byte("other")}) == newToken(spec.RoleWorker, 1).Secret {
		t.Error("the data key alone tells the secret")
	}
	var log strings.Builder
	tok := newToken(spec.RoleWorker, 1)
	slog.New(slog.NewTextHandler(&log, nil)).Info("got", "token", tok)
	if strings.Contains(log.String(), tok.Secret) || !strings.Contains(log.String(), tok.CAHash) {
		t.Errorf("logged as %s", log.String())
	}
}

func TestBadToken(t *testing.T) {
	good := newToken(spec.RoleWorker, 1)
	hash, secret := good.CAHash, good.Secret
	for _, c := range []struct{ name, token, want string }{
		{"empty", "", "no join token given: `wherry token worker` prints one on a manager"},
		{"blank", "\n", "no join token given"},
		{"word", "hello", "it does not begin with WHERRY-1-"},
		{"prefix", "WHERRY-", "it does not begin with WHERRY-1-"},
		{"swarm", "SWMTKN-1-" + hash + "-" + secret, "it does not begin with WHERRY-1-"},
		{"lower case", strings.ToLower(good.String()), "it does not begin with WHERRY-1-"},
		{"version", "WHERRY-2-" + hash + "-" + secret, "the join token is of version 2, this program knows version 1: use the version of wherry that the cluster runs"},
		{"version word", "WHERRY-x-" + hash + "-" + secret, "it does not begin with WHERRY-1-"},
		{"no secret", "WHERRY-1-" + hash, "its secret is missing"},
		{"empty secret", "WHERRY-1-" + hash + "-", "its secret has 0 characters, want 26"},
		{"cut", good.String()[:len(good.String())-1], "its secret has 25 characters, want 26"},
		{"longer", good.String() + "a", "its secret has 27 characters, want 26"},
		{"short hash", "WHERRY-1-" + hash[1:] + "-" + secret, "its hash has 51 characters, want 52"},
		{"bad hash", "WHERRY-1-" + "0" + hash[1:] + "-" + secret, "its hash is mistyped"},
		{"bad secret", "WHERRY-1-" + hash + "-" + "1" + secret[1:], "its secret is mistyped"},
		{"upper secret", "WHERRY-1-" + hash + "-" + strings.ToUpper(secret), "its secret is mistyped"},
		{"other spelling", "WHERRY-1-" + hash[:51] + "b-" + secret, "its hash is mistyped"},
		{"line break", "WHERRY-1-" + hash + "-" + secret[:25] + "\n" + secret[25:], "its secret has 27 characters"},
		{"line break inside", "WHERRY-1-" + hash + "-" + secret[:24] + "\n" + secret[25:], "its secret is mistyped"},
		{"two dashes", "WHERRY-1--" + secret, "its hash has 0 characters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseToken(c.token)
			wantError(t, err, spec.ErrInvalid, c.want)
			if strings.Contains(err.Error(), secret[:20]) {
				t.Errorf("the error tells the secret: %s", err)
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	good := newToken(spec.RoleWorker, 1).String()
	for _, s := range []string{good, good + "-", good[:40], "WHERRY-1--", "WHERRY-2-a-b", "", "-----"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("the error %q has no class", err)
		}
		if err == nil && tok.String() != strings.TrimSpace(s) {
			t.Errorf("%q was read as %q", s, tok)
		}
	})
}

func TestMatch(t *testing.T) {
	now := time.Now()
	old, root := newRoot(t, "c1", now), newRoot(t, "c1", now)
	a := &spec.Authority{Roots: []spec.Root{old, root}, Signer: root.Hash, Tokens: map[spec.NodeRole]spec.JoinToken{
		spec.RoleManager: {Generation: 1, Hash: HashSecret(newToken(spec.RoleManager, 1).Secret)},
		spec.RoleWorker:  {Generation: 2, Hash: HashSecret(newToken(spec.RoleWorker, 2).Secret), Expires: now.Add(time.Hour)},
	}}
	token := func(hash string, role spec.NodeRole, generation uint64) Token {
		return Token{CAHash: hash, Secret: newToken(role, generation).Secret}
	}
	for _, c := range []struct {
		name  string
		token Token
		at    time.Time
		role  spec.NodeRole
		want  string
	}{
		{"manager", token(root.Hash, spec.RoleManager, 1), now, spec.RoleManager, ""},
		{"worker", token(root.Hash, spec.RoleWorker, 2), now, spec.RoleWorker, ""},
		{"old root", token(old.Hash, spec.RoleWorker, 2), now, spec.RoleWorker, ""},
		{"rotated", token(root.Hash, spec.RoleWorker, 1), now, "", "the join token is wrong or was rotated"},
		{"rotated, too late", token(root.Hash, spec.RoleWorker, 1), now.Add(day), "", "the join token is wrong or was rotated"},
		{"expired", token(root.Hash, spec.RoleWorker, 2), now.Add(time.Hour), "", "the join token expired at " + when(now.Add(time.Hour))},
		{"other cluster", newToken(spec.RoleWorker, 2), now, "", "the join token is of another cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			role, err := Match(a, c.token, c.at)
			if role != c.role {
				t.Errorf("role %q, want %q", role, c.role)
			}
			if c.want != "" {
				wantError(t, err, spec.ErrInvalid, c.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	_, err := Match(nil, newToken(spec.RoleWorker, 1), now)
	wantError(t, err, spec.ErrUnavailable, "no certificate authority yet")
	role, err := Match(&spec.Authority{Roots: []spec.Root{root}}, token(root.Hash, spec.RoleWorker, 1), now)
	if err == nil || role != "" {
		t.Errorf("an authority without tokens gives the role %q", role)
	}
}

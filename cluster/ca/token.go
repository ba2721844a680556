package ca

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"wherry.dev/spec"
)

const (
	tokenPrefix  = "WHERRY-"
	tokenVersion = "1"
	hashChars    = 52 // of 32 bytes
	secretBytes  = 16
	secretChars  = 26
)

// Token lets a host join a cluster: CAHash names the root that the host shall
// trust, Secret makes the cluster trust the host.
type Token struct{ CAHash, Secret string }

// String returns the token as people copy it.
func (t Token) String() string {
	return tokenPrefix + tokenVersion + "-" + t.CAHash + "-" + t.Secret
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	return slog.StringValue(Token{CAHash: t.CAHash, Secret: "…"}.String())
}

// ParseToken reads a token. Its errors do not repeat what was given.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, spec.Invalidf("no join token given: `wherry token worker` prints one on a manager")
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	version, rest, dashed := strings.Cut(rest, "-")
	if !ok || !dashed {
		return Token{}, malformed("it does not begin with %s%s-", tokenPrefix, tokenVersion)
	}
	if version != tokenVersion {
		if version == "" || len(version) > 3 || strings.Trim(version, "0123456789") != "" {
			return Token{}, malformed("it does not begin with %s%s-", tokenPrefix, tokenVersion)
		}
		return Token{}, spec.Invalidf("the join token is of version %s, this program knows version %s: use the version of wherry that the cluster runs", version, tokenVersion)
	}
	hash, secret, dashed := strings.Cut(rest, "-")
	if !dashed {
		return Token{}, malformed("its secret is missing")
	}
	if err := checkPart("hash", hash, hashChars); err != nil {
		return Token{}, err
	}
	if err := checkPart("secret", secret, secretChars); err != nil {
		return Token{}, err
	}
	return Token{CAHash: hash, Secret: secret}, nil
}

// checkPart wants the one way to write some bytes in so many characters.
func checkPart(name, s string, chars int) error {
	if len(s) != chars {
		return malformed("its %s has %d characters, want %d", name, len(s), chars)
	}
	b, err := base.DecodeString(s)
	if err != nil || base.EncodeToString(b) != s {
		return malformed("its %s is mistyped", name)
	}
	return nil
}

func malformed(format string, args ...any) error {
	return spec.Invalidf("the join token is malformed: %s; copy it whole, as `wherry token worker` prints it on a manager", fmt.Sprintf(format, args...))
}

// Secret is the secret of a role's token, by its Generation and Salt. Whoever
// has the data key and the state of the cluster can make it again; the key
// alone is not enough, since managers of the past have it, too.
func Secret(dataKey []byte, role spec.NodeRole, t spec.JoinToken) string {
	b, err := hkdf.Key(sha256.New, dataKey, t.Salt, fmt.Sprintf("wherry join token %s %d", role, t.Generation), secretBytes)
	if err != nil {
		panic(fmt.Sprintf("ca: derive join token: %v", err)) // only a length could be wrong
	}
	return base.EncodeToString(b)
}

// HashSecret is what the state keeps of a secret.
func HashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// Match returns the role that a token gives. All errors are of class
// ErrInvalid, but for a cluster that has no authority yet (ErrUnavailable).
func Match(a *spec.Authority, t Token, now time.Time) (spec.NodeRole, error) {
	if a == nil {
		return "", spec.Unavailablef("the cluster has no certificate authority yet: try again in a moment")
	}
	known := false
	for _, r := range a.Roots {
		known = known || r.Hash == t.CAHash
	}
	if !known {
		return "", spec.Invalidf("the join token is of another cluster, or of before the exchange of this one's certificate authority: `wherry token worker` prints the present one on a manager")
	}
	// Every token is compared, and each in constant time.
	sum := HashSecret(t.Secret)
	var role spec.NodeRole
	for _, r := range []spec.NodeRole{spec.RoleManager, spec.RoleWorker} {
		if subtle.ConstantTimeCompare(sum, a.Tokens[r].Hash) == 1 {
			role = r
		}
	}
	if role == "" {
		return "", spec.Invalidf("the join token is wrong or was rotated: `wherry token worker` prints the present one on a manager")
	}
	if end := a.Tokens[role].Expires; !end.IsZero() && !now.Before(end) {
		return "", spec.Invalidf("the join token expired at %s: `wherry token %s --rotate` makes a new one on a manager", when(end), role)
	}
	return role, nil
}

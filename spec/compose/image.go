package compose

import (
	"strings"

	"github.com/distribution/reference"

	"wherry.dev/spec"
)

// NormalizeImage completes an image reference to registry/name:tag, or
// registry/name[:tag]@digest when it names a digest, which is returned too.
func NormalizeImage(s string) (image, digest string, err error) {
	named, err := reference.ParseNormalizedNamed(strings.TrimSpace(s))
	if err != nil {
		return "", "", spec.Invalidf("%q is not a valid image reference: %v", s, err)
	}
	if d, ok := named.(reference.Digested); ok {
		return named.String(), d.Digest().String(), nil
	}
	return reference.TagNameOnly(named).String(), "", nil
}

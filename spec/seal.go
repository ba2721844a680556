package spec

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	sealedPrefix = "sealed:"
	sealKeySize  = 32
)

// Sealed reports whether the bytes of the content are sealed in the state. A
// node keeps them in memory only.
func (id ContentID) Sealed() bool { return strings.HasPrefix(string(id), sealedPrefix) }

// SealContent names and encrypts a content under a key of the cluster. The name
// is a keyed hash of the bytes, so equal bytes have one name and one sealed
// form, and who has not the key learns from neither but how many bytes there
// are and which are equal.
//
// Each name has a key of its own, which encrypts nothing else: so the nonce may
// be the same, and the sealed form needs no randomness.
func SealContent(key, b []byte) (ContentID, []byte, error) {
	nameKey, err := hkdf.Key(sha256.New, key, nil, "wherry name of a secret", sealKeySize)
	if err != nil {
		return "", nil, fmt.Errorf("derive the key of names: %w", err)
	}
	h := hmac.New(sha256.New, nameKey)
	h.Write(b)
	id := ContentID(sealedPrefix + hex.EncodeToString(h.Sum(nil)))
	aead, err := sealOf(key, id)
	if err != nil {
		return "", nil, err
	}
	return id, aead.Seal(nil, make([]byte, aead.NonceSize()), b, []byte(id)), nil
}

// OpenContent is the inverse of SealContent. Its errors say nothing of the bytes.
func OpenContent(key []byte, id ContentID, sealed []byte) ([]byte, error) {
	aead, err := sealOf(key, id)
	if err != nil {
		return nil, err
	}
	b, err := aead.Open(nil, make([]byte, aead.NonceSize()), sealed, []byte(id))
	if err != nil {
		return nil, fmt.Errorf("secret content %.19s… is damaged, or sealed with the key of another cluster", id)
	}
	return b, nil
}

func sealOf(key []byte, id ContentID) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key, []byte(id), "wherry secret", sealKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of a secret: %w", err)
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("make the cipher of a secret: %w", err)
	}
	return cipher.NewGCM(block)
}

package tunnel

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Key is a WireGuard public key. The zero value means "none published": a peer
// without a key on a lane is not configured there, and nothing is sent to it.
type Key [32]byte

// ParseKey reads the usual base64 form. The empty string is the zero Key.
func ParseKey(s string) (Key, error) {
	if s == "" {
		return Key{}, nil
	}
	raw, err := decodeKey(s)
	if err != nil {
		return Key{}, fmt.Errorf("public key %q: %w", s, err)
	}
	if Key(raw) == (Key{}) {
		return Key{}, fmt.Errorf("public key %q: all zero is not a key; publish the device's", s)
	}
	return Key(raw), nil
}

// String is the base64 form, empty for the zero Key.
func (k Key) String() string {
	if k.IsZero() {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k[:])
}

// IsZero says whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

// MarshalText writes what String shows.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what ParseKey accepts.
func (k *Key) UnmarshalText(text []byte) error {
	parsed, err := ParseKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// PrivateKey is a WireGuard private key. It never prints itself.
type PrivateKey struct{ raw wgtypes.Key }

// NewPrivateKey makes a fresh key from the system's random source.
func NewPrivateKey() (PrivateKey, error) {
	var raw wgtypes.Key
	if _, err := rand.Read(raw[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("new private key: %w", err)
	}
	// Clamped as curve25519 requires, so that a device reports the same key that it
	// was given.
	raw[0] &= 248
	raw[31] = raw[31]&127 | 64
	return PrivateKey{raw}, nil
}

// Public is the key that peers are told.
func (p PrivateKey) Public() Key { return Key(p.raw.PublicKey()) }

// IsZero says whether there is no key.
func (p PrivateKey) IsZero() bool { return p.Equal(PrivateKey{}) }

// Equal compares in constant time.
func (p PrivateKey) Equal(q PrivateKey) bool {
	return subtle.ConstantTimeCompare(p.raw[:], q.raw[:]) == 1
}

// String hides the key, so that logging a struct that contains it is harmless.
func (p PrivateKey) String() string { return "(private key)" }

// Format hides the key from every verb.
func (p PrivateKey) Format(to fmt.State, _ rune) { io.WriteString(to, p.String()) }

// encode is the base64 form, only for the key file.
func (p PrivateKey) encode() string { return base64.StdEncoding.EncodeToString(p.raw[:]) }

func parsePrivateKey(s string) (PrivateKey, error) {
	raw, err := decodeKey(s)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("private key: %w", err)
	}
	return PrivateKey{raw}, nil
}

func decodeKey(s string) ([32]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return [32]byte{}, fmt.Errorf("not base64: %w", err)
	}
	if len(raw) != 32 {
		return [32]byte{}, fmt.Errorf("%d bytes long, a WireGuard key has 32", len(raw))
	}
	return [32]byte(raw), nil
}

package authority

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
)

// Sign signs a text as the cluster. Whoever has its Bundle can check that with Signed.
// The kind keeps texts of different meanings apart, and all of them from certificates,
// which are signed with the same key.
func (a *Authority) Sign(kind string, text []byte) ([]byte, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, digest(kind, text))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", kind, err)
	}
	return signature, nil
}

// Signed returns nil if the cluster with this bundle signed this text of this kind.
func Signed(bundle []byte, kind string, text, signature []byte) error {
	certs, err := ParseBundle(bundle)
	if err != nil {
		return err
	}
	for _, cert := range certs {
		key, ok := cert.PublicKey.(*ecdsa.PublicKey)
		if ok && cert.IsCA && time.Now().Before(cert.NotAfter) && ecdsa.VerifyASN1(key, digest(kind, text), signature) {
			return nil
		}
	}
	return errors.New("the signature is not the cluster's")
}

// digest can never equal a certificate's, because a certificate begins with 0x30.
func digest(kind string, text []byte) []byte {
	sum := sha256.Sum256(append([]byte("weft "+kind+"\n"), text...))
	return sum[:]
}

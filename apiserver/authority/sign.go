package authority

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
)

// Sign signs a text as the cluster. Whoever holds its Bundle can tell, by
// Signed. The kind keeps texts of different meaning apart, and from
// certificates, which are signed with the same key.
func (a *Authority) Sign(kind string, text []byte) ([]byte, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, digest(kind, text))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", kind, err)
	}
	return signature, nil
}

// Signed says whether a cluster, given its bundle, signed a text of that kind;
// nil if so.
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

// digest cannot be that of a certificate, whose text begins with 0x30.
func digest(kind string, text []byte) []byte {
	sum := sha256.Sum256(append([]byte("weft "+kind+"\n"), text...))
	return sum[:]
}

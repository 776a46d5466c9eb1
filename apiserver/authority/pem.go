package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func marshalKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encode("PRIVATE KEY", der), nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("holds no PEM key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("holds no readable key") // the cause could quote it
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("holds a %T, want ECDSA", key)
	}
	return ec, nil
}

// ParseBundle reads the certificates of a PEM bundle. There must be at least one, and
// nothing else.
func ParseBundle(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("bundle holds something that is not a PEM certificate")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the bundle: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("bundle holds no certificate")
	}
	return certs, nil
}

// MergeBundles joins bundles in order, without duplicates and expired certificates. A
// bundle may be empty.
func MergeBundles(bundles ...[]byte) ([]byte, error) {
	var out []byte
	seen := map[string]bool{}
	for _, text := range bundles {
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		certs, err := ParseBundle(text)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			if seen[string(cert.Raw)] || time.Now().After(cert.NotAfter) {
				continue
			}
			seen[string(cert.Raw)] = true
			out = append(out, encode("CERTIFICATE", cert.Raw)...)
		}
	}
	return out, nil
}

// CheckPair returns what is wrong with a certificate and key that should be user's and
// signed by an authority in bundle; nil if they are valid now. If user is a peer's, any
// generation of it will do, and so will RemoteShared. If it is "", anybody's will do.
func CheckPair(cert, key, bundle []byte, user string) error {
	pair := Pair{Cert: cert, Key: key}
	loaded, err := pair.TLS()
	if err != nil {
		return errors.New("certificate and key do not belong together, or are not PEM")
	}
	leaf, err := x509.ParseCertificate(loaded.Certificate[0])
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if now := time.Now(); now.After(leaf.NotAfter) {
		return fmt.Errorf("the certificate has expired on %s", leaf.NotAfter.Format(time.DateOnly))
	} else if now.Before(leaf.NotBefore) {
		return fmt.Errorf("the certificate is not valid before %s; check the clocks of both machines", leaf.NotBefore.Format(time.RFC3339))
	}
	is := leaf.Subject.CommonName
	if cluster, ok := ParseRemoteUser(is); ok {
		is = RemoteUser(cluster, 0)
	}
	_, peer := ParseRemoteUser(user)
	if is != user && user != "" && !(peer && is == RemoteShared) {
		return fmt.Errorf("the certificate is for %q, not for %q", leaf.Subject.CommonName, user)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return errors.New("ca has no certificate")
	}
	between := x509.NewCertPool()
	for _, der := range loaded.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(cert)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("the certificate is not signed by the ca beside it: %w", err)
	}
	return nil
}

// Package authority is a cluster's certificate authority: it creates one key at the
// first start, and issues certificates to servers, agents, operators and peers.
//
// Callers decide who gets a certificate; the store's users and the API's handlers decide
// what its holder may do.
package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
)

// Lifetimes, and how far certificates are backdated, so that they are valid for a peer
// whose clock is slow by less.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	LeafLifetime = 365 * 24 * time.Hour
	backdated    = 10 * time.Minute
)

// Users: the common name of a client certificate is the holder's name in the
// store and in the API.
const (
	// Root is the API server itself, which may do everything in the store.
	Root = "root"
	// Admin may do everything in the API and nothing in the store.
	Admin = "admin"
	// Member is an embedded etcd towards the other members of its store. It may do
	// nothing else.
	Member = "member"

	agentPrefix  = "agent-"
	remotePrefix = "remote-"
)

// AgentUser returns the user of a node's agent.
func AgentUser(node string) string { return agentPrefix + node }

// RemoteUser returns the user of a peer cluster. A peer that is invited again after a
// removal is a new user with a higher generation, so certificates from before are
// useless.
func RemoteUser(cluster string, generation uint64) string {
	if generation == 0 {
		return remotePrefix + cluster
	}
	return fmt.Sprintf("%s%s.%d", remotePrefix, cluster, generation)
}

// RemoteShared is the user that all peers of a Cilium cluster share if its
// clustermesh.apiserver.tls.authMode is legacy or migration.
const RemoteShared = "remote"

// ParseAgentUser is the inverse of AgentUser.
func ParseAgentUser(user string) (node string, ok bool) { return cut(user, agentPrefix) }

// ParseRemoteUser is the inverse of RemoteUser for any generation. Names of clusters have
// no dots.
func ParseRemoteUser(user string) (cluster string, ok bool) {
	cluster, ok = cut(user, remotePrefix)
	cluster, _, _ = strings.Cut(cluster, ".")
	return cluster, ok && cluster != ""
}

func cut(user, prefix string) (string, bool) {
	if len(user) <= len(prefix) || user[:len(prefix)] != prefix {
		return "", false
	}
	return user[len(prefix):], true
}

// Authority issues certificates. Several goroutines may use it.
type Authority struct {
	cluster string
	dir     string

	mu     sync.RWMutex // guards what follows
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	bundle []byte // PEM: the issuing certificate first, then older ones
}

// Open reads the authority kept in dir, or creates it if there is none.
func Open(dir, cluster string) (*Authority, error) {
	a := &Authority{cluster: cluster, dir: dir}
	keyText, err := os.ReadFile(a.path("ca.key"))
	if errors.Is(err, fs.ErrNotExist) {
		if err := a.Rotate(); err != nil {
			return nil, err
		}
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	bundle, err := os.ReadFile(a.path("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if a.key, err = parseKey(keyText); err != nil {
		return nil, fmt.Errorf("certificate authority: %s %w: restore it from a backup", a.path("ca.key"), err)
	}
	certs, err := ParseBundle(bundle)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %s: %w: restore it from a backup", a.path("ca.crt"), err)
	}
	// It is the first, unless a crash kept the key from following it (see keepLocked).
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return a.key.PublicKey.Equal(c.PublicKey) })
	if i < 0 {
		return nil, fmt.Errorf("certificate authority: ca.key in %s belongs to no certificate in ca.crt: restore both from one backup", dir)
	}
	a.cert = certs[i]
	if err := usable(a.cert); err != nil {
		return nil, fmt.Errorf("certificate authority: %s: %w", a.path("ca.crt"), err)
	}
	if a.bundle, err = MergeBundles(encode("CERTIFICATE", a.cert.Raw), bundle); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return a, nil
}

// usable says why certificates that this one signs would not be accepted; nil if they
// would be.
func usable(cert *x509.Certificate) error {
	switch now := time.Now(); {
	case !cert.IsCA:
		return errors.New("the certificate is not a certificate authority's: restore it from a backup")
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s, and this machine's clock says %s: set the clock", cert.NotBefore.Format(time.RFC3339), now.Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate expired on %s: check this machine's clock; if it is right, move the folder away to create a new authority, and give every node, peer and operator new certificates", cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

func (a *Authority) path(name string) string { return filepath.Join(a.dir, name) }

// BundlePath is the file that holds Bundle.
func (a *Authority) BundlePath() string { return a.path("ca.crt") }

// Bundle returns every certificate to trust as PEM: the issuing one first, then those it
// replaced, so that both old and new certificates are valid during a rotation.
func (a *Authority) Bundle() []byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return bytes.Clone(a.bundle)
}

// Rotate creates a new issuing key. The old certificate stays in the bundle until it
// expires, so nothing is interrupted while the bundle is distributed.
func (a *Authority) Rotate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("create the authority's key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "weft " + a.cluster},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("create the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("create the authority's certificate: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	bundle, err := MergeBundles(encode("CERTIFICATE", der), a.bundle)
	if err != nil {
		return err
	}
	return a.keepLocked(cert, key, bundle)
}

// Secret is a whole authority, with which several API servers of a cluster share one. It
// contains the private key, so it does not print.
type Secret struct {
	Bundle []byte `json:"bundle"` // PEM
	Key    []byte `json:"key"`    // PEM
}

// String hides what is secret.
func (Secret) String() string { return "[authority]" }

// GoString hides what is secret.
func (Secret) GoString() string { return "[authority]" }

// Secret returns what another API server can adopt.
func (a *Authority) Secret() (Secret, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	key, err := marshalKey(a.key)
	return Secret{Bundle: bytes.Clone(a.bundle), Key: key}, err
}

// Write creates an authority in dir, which has none yet, from the secret of another.
func Write(dir, cluster string, s Secret) (*Authority, error) {
	a := &Authority{cluster: cluster, dir: dir}
	return a, a.Adopt(s)
}

// Adopt replaces this authority, also on disk, with the one that the secret is from. Its
// former certificates stay in the bundle.
func (a *Authority) Adopt(s Secret) error {
	key, err := parseKey(s.Key)
	if err != nil {
		return fmt.Errorf("adopt authority: %w", err)
	}
	certs, err := ParseBundle(s.Bundle)
	if err != nil {
		return fmt.Errorf("adopt authority: %w", err)
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return errors.New("adopt authority: key and certificate do not belong together")
	}
	if err := usable(certs[0]); err != nil {
		return fmt.Errorf("adopt authority: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	bundle, err := MergeBundles(s.Bundle, a.bundle)
	if err != nil {
		return fmt.Errorf("adopt authority: %w", err)
	}
	return a.keepLocked(certs[0], key, bundle)
}

// keepLocked stores the authority and uses it from then on.
func (a *Authority) keepLocked(cert *x509.Certificate, key *ecdsa.PrivateKey, bundle []byte) error {
	text, err := marshalKey(key)
	if err != nil {
		return err
	}
	// The bundle goes first. It still has the old certificate, so if the key does not
	// follow, Open finds the one that belongs to the old key.
	if err := api.WriteSecretFile(a.path("ca.crt"), bundle); err != nil {
		return err
	}
	if err := api.WriteSecretFile(a.path("ca.key"), text); err != nil {
		return err
	}
	a.cert, a.key, a.bundle = cert, key, bundle
	return nil
}

// Request describes a certificate.
type Request struct {
	// User is the holder and becomes the common name.
	User string
	// Client and Server are the sides of a connection that it is valid for.
	Client, Server bool
	// Names and Addresses are those that a server is reached at.
	Names     []string
	Addresses []netip.Addr
	// Lifetime starts now; 0 means LeafLifetime. It ends with that of the authority's own
	// certificate at the latest.
	Lifetime time.Duration
}

// Pair is a certificate and its key, both PEM. It does not print them.
type Pair struct {
	Cert, Key []byte
}

// String hides what is secret.
func (Pair) String() string { return "[certificate and key]" }

// GoString hides what is secret.
func (Pair) GoString() string { return "[certificate and key]" }

// TLS returns the pair in the form of crypto/tls.
func (p Pair) TLS() (tls.Certificate, error) { return tls.X509KeyPair(p.Cert, p.Key) }

// Issue creates a key and a certificate for it. It keeps neither.
func (a *Authority) Issue(r Request) (Pair, error) {
	if r.User == "" || len(r.User) > 64 { // RFC 5280's bound of a common name
		return Pair{}, fmt.Errorf("issue certificate: the name %q must have 1 to 64 characters", r.User)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate for %s: %w", r.User, err)
	}
	if r.Lifetime == 0 {
		r.Lifetime = LeafLifetime
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: r.User, Organization: []string{a.cluster}},
		NotBefore:    now.Add(-backdated),
		NotAfter:     now.Add(r.Lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		DNSNames:     r.Names,
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, addr := range r.Addresses {
		template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate for %s: %w", r.User, err)
	}
	keyText, err := marshalKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: encode("CERTIFICATE", der), Key: keyText}, nil
}

// IssueFile issues a pair, stores it in the authority's folder as name.crt and name.key
// with mode 0600, and returns the paths.
func (a *Authority) IssueFile(name string, r Request) (cert, key string, err error) {
	pair, err := a.Issue(r)
	if err != nil {
		return "", "", err
	}
	cert, key = a.path(name+".crt"), a.path(name+".key")
	if err := api.WriteSecretFile(key, pair.Key); err != nil {
		return "", "", err
	}
	return cert, key, api.WriteSecretFile(cert, pair.Cert)
}

// Pool returns Bundle in the form of crypto/tls.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.Bundle())
	return pool
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return n.Add(n, big.NewInt(1))
}

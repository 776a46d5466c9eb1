package meshagent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/internal/loopbacktest"
)

// ca signs certificates of a cluster, as its API server does.
type ca struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

func newCA(t *testing.T, cluster string) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weft " + cluster}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	text, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cluster, cert, key}
}

func (c *ca) issue(t *testing.T, user string, end time.Time, addr net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: user, Organization: []string{c.cluster}}, IPAddresses: []net.IP{addr},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	text, err := x509.CreateCertificate(rand.Reader, template, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{text}, PrivateKey: key, Leaf: leaf}
}

func (c *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// serve answers with TLS, or with what it is told, until the test ends.
func serveTLS(t *testing.T, addr string, conf *tls.Config, say string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if conf == nil {
				_, _ = c.Write([]byte(say))
			} else {
				s := tls.Server(c, conf)
				if s.Handshake() == nil {
					_, _ = s.Read(make([]byte, 1)) // until the other side goes
				}
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

func TestDiagnosisNamesTheCause(t *testing.T) {
	east, west := newCA(t, "east"), newCA(t, "west")
	addr := loopbacktest.Addr(t)
	ip := net.IP(addr.AsSlice())
	later := time.Now().Add(time.Hour)
	good := east.issue(t, "agent-e2", later, ip)
	expired := east.issue(t, "agent-e2", time.Now().Add(-time.Minute), ip)
	server := func(of *ca, end time.Time) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{of.issue(t, "etcd", end, ip)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: of.pool(), MinVersion: tls.VersionTLS13}
	}
	// It believes east's servers, but lets nobody of east in.
	strict := server(east, later)
	strict.ClientCAs = west.pool()
	free, err := net.Listen("tcp", net.JoinHostPort(addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().String()
	free.Close()
	for _, test := range []struct {
		name     string
		endpoint string
		cert     tls.Certificate
		roots    *x509.CertPool
		want     string
	}{
		{"nothing", "https://" + serveTLS(t, addr.String(), server(east, later), ""), good, east.pool(), ""},
		{"another cluster's certificate", "https://" + closed, west.issue(t, "agent-e2", later, ip), west.pool(), "certificate of cluster west"},
		{"another node's certificate", "https://" + closed, east.issue(t, "agent-e1", later, ip), east.pool(), `certificate of user "agent-e1", this node is "agent-e2"`},
		{"expired", "https://" + closed, expired, east.pool(), "certificate expired on " + expired.Leaf.NotAfter.UTC().Format(time.DateOnly)},
		{"CA of another cluster", "https://" + closed, good, west.pool(), "certificate is not signed by the CA in the join bundle"},
		{"wrong port", "https://" + closed, good, east.pool(), closed + " refuses connections"},
		{"another cluster's store", "https://" + serveTLS(t, addr.String(), server(west, later), ""), good, east.pool(), " shows a certificate of cluster west"},
		{"the store's certificate has ended", "https://" + serveTLS(t, addr.String(), server(east, time.Now().Add(-time.Minute)), ""), good, east.pool(), " shows a certificate that expired on "},
		{"it does not let us in", "https://" + serveTLS(t, addr.String(), strict, ""), good, east.pool(), " does not accept this node's certificate"},
		{"no TLS", "https://" + serveTLS(t, addr.String(), nil, "SSH-2.0-OpenSSH_9.9\r\n"), good, east.pool(), " does not speak TLS: is the port right?"},
		{"no URL", "2379", good, east.pool(), `"2379" in the join bundle is not a URL`},
	} {
		conf := &tls.Config{RootCAs: test.roots, MinVersion: tls.VersionTLS13, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &test.cert, nil }}
		got := diagnose(t.Context(), "east", "agent-e2", []string{test.endpoint}, conf)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

package certificate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// issuer is a cluster's authority.
type issuer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{t: t}
	i.key = i.makeKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "east"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(10 * year), KeyUsage: x509.KeyUsageCertSign}
	i.cert = i.sign(template, template, i.key)
	return i
}

const year = 365 * 24 * time.Hour

func (i *issuer) makeKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	return key
}

func (i *issuer) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return cert
}

func (i *issuer) pair(name string) (cert, key string) {
	k := i.makeKey()
	i.last++
	c := i.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1 + i.last), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now(), NotAfter: time.Now().Add(year),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, i.cert, k)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		i.t.Fatal(err)
	}
	return text("CERTIFICATE", c.Raw), text("PRIVATE KEY", der)
}

func text(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func (i *issuer) bundle() *api.JoinBundle {
	b := &api.JoinBundle{Cluster: "east", Node: "n1", CA: text("CERTIFICATE", i.cert.Raw), GossipKey: "as it is"}
	b.Cert, b.Key = i.pair("agent-n1")
	b.ServerCert, b.ServerKey = i.pair("admin")
	return b
}

// node holds what a node has for ten years.
type node struct {
	*Holder
	path string

	mu    sync.Mutex
	away  error  // guarded by mu
	asked int    // guarded by mu
	told  string // guarded by mu

	use   []string // what this process uses
	alive []string // what answers there; nil: everything
}

// answers is nil if the store answers at one of these.
func (n *node) answers(_ context.Context, urls []string) error {
	if n.alive == nil || slices.ContainsFunc(urls, func(u string) bool { return slices.Contains(n.alive, u) }) {
		return nil
	}
	return errors.New("no route to host")
}

func (n *node) setAway(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away = err
}

// ask counts a question, and says why there is no answer.
func (n *node) ask() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	return n.away
}

func (n *node) tell(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = s
}

func (n *node) heard() (asked int, told string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked, n.told
}

func newNode(t *testing.T) *node {
	t.Helper()
	i := newIssuer(t)
	n := &node{path: filepath.Join(t.TempDir(), "join.yaml")}
	var err error
	n.Holder, err = New(i.bundle(), Config{
		Path: n.path, Log: slog.New(slog.DiscardHandler), Tell: n.tell,
		Use: func(urls []string) { n.use = urls }, Answers: n.answers,
		Ask: func(_ context.Context, b *api.JoinBundle, conf *tls.Config) (*api.JoinBundle, error) {
			if err := n.ask(); err != nil {
				return nil, err
			}
			if c, err := conf.GetClientCertificate(nil); err != nil || c.Leaf.Subject.CommonName != "agent-n1" {
				t.Errorf("asked as %v, %v", c, err)
			}
			fresh := i.bundle()
			fresh.GossipKey = "another"
			return fresh, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (n *node) left() time.Duration {
	c := n.now()
	return min(time.Until(c.client.Leaf.NotAfter), time.Until(c.server.Leaf.NotAfter))
}

func TestCertificatesNeverEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		defer n.run(t)()
		time.Sleep(year * 66 / 100)
		synctest.Wait()
		if asked, _ := n.heard(); asked != 0 {
			t.Errorf("asked %d times for nothing", asked)
		}
		for range 40 {
			time.Sleep(year / 8)
			if n.left() < year/4 {
				t.Fatalf("only %v left", n.left())
			}
		}
		if asked, _ := n.heard(); asked > 9 {
			t.Errorf("asked %d times in five years", asked)
		}
		var b api.JoinBundle
		file, err := os.ReadFile(n.path)
		if err != nil || yaml.Unmarshal(file, &b) != nil {
			t.Fatal(err)
		}
		kept, err := parse(&b)
		if err != nil || !kept.client.Leaf.Equal(n.now().client.Leaf) || !kept.server.Leaf.Equal(n.now().server.Leaf) || b.GossipKey != "as it is" {
			t.Errorf("the file does not have what is used: %v", err)
		}
		if info, _ := os.Stat(n.path); info.Mode().Perm() != 0o600 {
			t.Error(info.Mode())
		}
	})
}

func TestOperatorIsToldInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.setAway(errors.New("nobody there"))
		defer n.run(t)()
		time.Sleep(year * 3 / 4)
		synctest.Wait()
		if asked, told := n.heard(); asked == 0 || told != "" {
			t.Errorf("asked %d times, told %q", asked, told)
		}
		time.Sleep(year / 10)
		synctest.Wait()
		for _, want := range []string{"expire on 2000-12-31", "nobody there", "weft node add n1", n.path} {
			if _, told := n.heard(); !strings.Contains(told, want) {
				t.Errorf("told %q, without %q", told, want)
			}
		}
		n.setAway(nil)
		time.Sleep(2 * lookPause)
		synctest.Wait()
		if _, told := n.heard(); told != "" || n.left() < year/2 {
			t.Errorf("told %q, %v left", told, n.left())
		}
	})
}

// A file that cannot be written keeps nobody from using what was issued.
func TestFileCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		if err := os.Mkdir(n.path, 0o700); err != nil { // in the way
			t.Fatal(err)
		}
		defer n.run(t)()
		time.Sleep(year*2/3 + 48*time.Hour)
		synctest.Wait()
		if asked, told := n.heard(); asked != 1 || n.left() < year/2 || !strings.Contains(told, "cannot be kept") {
			t.Errorf("asked %d times, %v left, told %q", asked, n.left(), told)
		}
		if err := os.Remove(n.path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * lookPause)
		synctest.Wait()
		asked, told := n.heard()
		if _, err := os.Stat(n.path); err != nil || told != "" || asked != 1 {
			t.Errorf("asked %d times, told %q, %v", asked, told, err)
		}
	})
}

// What an operator has written into the file since the start stays there.
func TestFileStaysTheOperators(t *testing.T) {
	for _, test := range []struct {
		name  string
		write func(b *api.JoinBundle) string
		kept  bool // the new certificates are added
		told  string
	}{
		{"unchanged", func(b *api.JoinBundle) string { return marshal(b) }, true, ""},
		{"API server and store moved", func(b *api.JoinBundle) string {
			b.Server, b.EtcdEndpoints, b.GossipSeeds = "https://192.0.2.9:8443", []string{"https://192.0.2.9:2379"}, nil
			return marshal(b)
		}, true, ""},
		{"another cluster's", func(b *api.JoinBundle) string { b.Cluster = "west"; return marshal(b) }, false, ""},
		{"another node's", func(b *api.JoinBundle) string { b.Node = "n2"; return marshal(b) }, false, ""},
		{"not understood", func(b *api.JoinBundle) string { return marshal(b) + "mistyped: 1\n" }, false, "mistyped"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				n.bundle.GossipSeeds = []string{"192.0.2.1:7946"}
				want := n.bundle
				wrote := test.write(&want)
				if err := os.WriteFile(n.path, []byte(wrote), 0o600); err != nil {
					t.Fatal(err)
				}
				defer n.run(t)()
				time.Sleep(year*2/3 + 48*time.Hour)
				synctest.Wait()
				if test.kept {
					renewed(&want, &n.bundle)
					wrote = marshal(&want)
				}
				if got, err := os.ReadFile(n.path); err != nil || string(got) != wrote {
					t.Errorf("the file has, %v:\n%s\nwant:\n%s", err, got, wrote)
				}
				if asked, told := n.heard(); asked != 1 || (told == "") != (test.told == "") || !strings.Contains(told, test.told) {
					t.Errorf("asked %d times, told %q", asked, told)
				}
			})
		})
	}
}

// Where the API servers are is kept in the file, and outlives a renewal. What was added there
// by hand stays, also if that was while the agent ran.
func TestFileFollowsTheAPIServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.bundle.Server, n.bundle.EtcdEndpoints, n.bundle.GossipSeeds = "https://192.0.2.1:7443", []string{"https://192.0.2.1:2379"}, []string{"192.0.2.1:7948"}
		byHand := n.bundle
		byHand.Servers, byHand.EtcdEndpoints = []string{"https://lb.example:7443"}, []string{"https://192.0.2.1:2379", "https://lb.example:2379"}
		if err := os.WriteFile(n.path, []byte(marshal(&byHand)), 0o600); err != nil {
			t.Fatal(err)
		}
		defer n.run(t)()
		look := func(when string, named wire.Access, used wire.Access) {
			t.Helper()
			if err := n.Reach(t.Context(), named); err != nil {
				t.Fatal(err)
			}
			for _, then := range []string{"at once", "after a renewal"} {
				b, err := read(n.path)
				if err != nil {
					t.Fatal(err)
				}
				if got, told := AccessOf(&b); !got.Equal(used) || !told.Equal(named) {
					t.Errorf("%s, %s: used %v, named %v, want %v", when, then, got, told, used)
				}
				if !slices.Equal(n.Endpoints(), named.Etcd) || !slices.Equal(n.use, named.Etcd) {
					t.Errorf("%s, %s: this process reaches %v, uses %v", when, then, n.Endpoints(), n.use)
				}
				time.Sleep(year*2/3 + 48*time.Hour)
				synctest.Wait()
			}
		}
		look("another one", wire.Access{
			Servers: []string{"https://192.0.2.1:7443", "https://192.0.2.2:7443"}, Etcd: []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379"}, Gossip: []string{"192.0.2.1:7948", "192.0.2.2:7948"},
		}, wire.Access{
			Servers: []string{"https://192.0.2.1:7443", "https://192.0.2.2:7443", "https://lb.example:7443"},
			Etcd:    []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379", "https://lb.example:2379"}, Gossip: []string{"192.0.2.1:7948", "192.0.2.2:7948"},
		})
		look("the first was deleted", wire.Access{
			Servers: []string{"https://192.0.2.2:7443"}, Etcd: []string{"https://192.0.2.2:2379"}, Gossip: []string{"192.0.2.2:7948"},
		}, wire.Access{
			Servers: []string{"https://192.0.2.2:7443", "https://lb.example:7443"}, Etcd: []string{"https://192.0.2.2:2379", "https://lb.example:2379"}, Gossip: []string{"192.0.2.2:7948"},
		})
		if asked, told := n.heard(); asked == 0 || told != "" {
			t.Errorf("asked %d times, told %q", asked, told)
		}
	})
}

// Where the store was is forgotten only once it answers elsewhere: a list that is wrong, or
// from before the store was restored, must not cut a node off from its correction.
func TestNoAddressIsForgottenBeforeAnotherAnswers(t *testing.T) {
	const a, b, c = "https://192.0.2.1:2379", "https://192.0.2.2:2379", "https://192.0.2.3:2379"
	n := newNode(t)
	n.bundle.Server, n.bundle.EtcdEndpoints, n.bundle.Named = "https://192.0.2.1:7443", []string{a}, api.NamedServers{EtcdEndpoints: []string{a}}
	n.alive = []string{a}
	for _, step := range []struct {
		what    string
		alive   []string
		named   []string
		want    []string
		refused string
	}{
		{"nothing answers there", []string{a}, []string{b}, []string{b, a}, b + " for its store, but none answers (no route to host): " + a + " stays"},
		{"still not", []string{a}, []string{b}, []string{b, a}, "none answers"},
		{"corrected", []string{a}, []string{a, c}, []string{a, c}, ""},
		{"what was wrong is forgotten", []string{a}, []string{a}, []string{a}, ""},
		{"another answers", []string{a, b}, []string{b}, []string{b}, ""},
		{"the old list of a restored store", []string{b}, []string{a}, []string{a, b}, "none answers"},
		{"and its new one", []string{b}, []string{b}, []string{b}, ""},
	} {
		n.alive = step.alive
		err := n.Reach(t.Context(), wire.Access{Etcd: step.named})
		if (err == nil) != (step.refused == "") || err != nil && !strings.Contains(err.Error(), step.refused) {
			t.Errorf("%s: %v, want %q", step.what, err, step.refused)
		}
		file, err := read(n.path)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(n.use, step.want) || !slices.Equal(file.EtcdEndpoints, step.want) {
			t.Errorf("%s: uses %v, keeps %v, want %v", step.what, n.use, file.EtcdEndpoints, step.want)
		}
	}
	// What is known already is not written again.
	if err := os.Remove(n.path); err != nil {
		t.Fatal(err)
	}
	if err := n.Reach(t.Context(), wire.Access{Etcd: []string{b}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.path); err == nil {
		t.Error("the file was written for nothing")
	}
}

// The file could not be written; the cluster is rebuilt, with another CA, and the
// operator brings the node its new bundle.
func TestFileStaysNewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		if err := os.Mkdir(n.path, 0o700); err != nil {
			t.Fatal(err)
		}
		defer n.run(t)()
		time.Sleep(year*2/3 + 48*time.Hour)
		synctest.Wait()
		if err := os.Remove(n.path); err != nil {
			t.Fatal(err)
		}
		wrote := marshal(newIssuer(t).bundle())
		if err := os.WriteFile(n.path, []byte(wrote), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * lookPause)
		synctest.Wait()
		asked, told := n.heard()
		if got, err := os.ReadFile(n.path); err != nil || string(got) != wrote || asked != 1 || told != "" {
			t.Errorf("asked %d times, told %q, the file has, %v:\n%s\nwant:\n%s", asked, told, err, got, wrote)
		}
	})
}

func marshal(b *api.JoinBundle) string {
	text, err := yaml.Marshal(b)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func TestConnectionsUseTheNewest(t *testing.T) {
	n := newNode(t)
	var callers []string
	server := n.Server(func(user string) error { callers = append(callers, user); return nil })
	client := n.Client()
	client.ServerName = "127.0.0.1"
	serials := func() (ofServer, ofClient string) {
		t.Helper()
		here, there := net.Pipe()
		s := tls.Server(there, server)
		done := make(chan error, 1)
		go func() { done <- s.Handshake(); _, _ = s.Write([]byte("x")) }()
		c := tls.Client(here, client)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		defer here.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String(), s.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	s1, c1 := serials()
	if err := n.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	s2, c2 := serials()
	if s1 == s2 || c1 == c2 || strings.Join(callers, " ") != "agent-n1 agent-n1" {
		t.Errorf("server %s then %s, client %s then %s, callers %v", s1, s2, c1, c2, callers)
	}
}

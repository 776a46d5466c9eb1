package authority

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := Open(dir, "east")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *Authority, r Request) Pair {
	t.Helper()
	pair, err := a.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestOpenKeepsItsKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first := open(t, dir).Bundle()
	if second := open(t, dir).Bundle(); string(first) != string(second) {
		t.Error("a second start made another authority")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, _ := f.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v", f.Name(), info.Mode())
		}
	}
}

func TestSigned(t *testing.T) {
	a, other := open(t, t.TempDir()), open(t, t.TempDir())
	text := []byte("n1 is dead")
	signature, err := a.Sign("report", text)
	if err != nil {
		t.Fatal(err)
	}
	before := a.Bundle()
	if err := a.Rotate(); err != nil {
		t.Fatal(err)
	}
	both, err := MergeBundles(other.Bundle(), before)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issue(t, a, Request{User: "remote-west", Client: true})
	for name, c := range map[string]struct {
		bundle []byte
		kind   string
		text   string
		good   bool
	}{
		"good":                  {before, "report", "n1 is dead", true},
		"before the rotation":   {a.Bundle(), "report", "n1 is dead", true},
		"one of several":        {both, "report", "n1 is dead", true},
		"another authority":     {other.Bundle(), "report", "n1 is dead", false},
		"another text":          {before, "report", "n2 is dead", false},
		"another kind":          {before, "order", "n1 is dead", false},
		"a bundle of no CA":     {leaf.Cert, "report", "n1 is dead", false},
		"nothing to check with": {nil, "report", "n1 is dead", false},
	} {
		if err := Signed(c.bundle, c.kind, []byte(c.text), signature); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIssue(t *testing.T) {
	a := open(t, t.TempDir())
	pair := issue(t, a, Request{User: AgentUser("n1"), Client: true, Server: true, Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}})
	loaded, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	leaf := loaded.Leaf
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: "172.16.1.1"}); err != nil {
		t.Error(err)
	}
	if node, ok := ParseAgentUser(leaf.Subject.CommonName); !ok || node != "n1" {
		t.Errorf("issued to %q", leaf.Subject.CommonName)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", pair, pair, pair, pair); strings.Contains(text, "PRIVATE") {
		t.Error("a key was printed")
	}
}

func TestRotationOverlaps(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	old := issue(t, a, Request{User: "u", Client: true})
	if err := a.Rotate(); err != nil {
		t.Fatal(err)
	}
	a = open(t, dir)
	for name, pair := range map[string]Pair{"old": old, "new": issue(t, a, Request{User: "u", Client: true})} {
		if err := CheckPair(pair.Cert, pair.Key, a.Bundle(), "u"); err != nil {
			t.Errorf("%s certificate: %v", name, err)
		}
	}
}

// A crash between bundle and key leaves the new bundle beside the old key: the authority
// is still the old one, and trusts both.
func TestOpenAfterACrashWhileAdopting(t *testing.T) {
	dir := t.TempDir()
	a, other := open(t, dir), open(t, t.TempDir())
	old := a.Bundle()
	key, err := os.ReadFile(a.path("ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := other.Secret()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Adopt(secret); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.path("ca.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	a = open(t, dir)
	pair := issue(t, a, Request{User: "u", Client: true})
	if err := CheckPair(pair.Cert, pair.Key, old, "u"); err != nil {
		t.Error("issues as somebody else:", err)
	}
	if got := string(a.Bundle()); got != string(old)+string(other.Bundle()) {
		t.Errorf("bundle:\n%s", got)
	}
	if err := a.Adopt(secret); err != nil || string(a.Bundle()) != string(other.Bundle())+string(old) {
		t.Errorf("adopting again: %v, bundle\n%s", err, a.Bundle())
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(template *x509.Certificate)
		want   string
	}{
		"another key":      {nil, "belongs to no certificate in ca.crt: restore both from one backup"},
		"expired":          {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }, "expired on"},
		"a clock at zero":  {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, "set the clock"},
		"not an authority": {func(c *x509.Certificate) { c.IsCA = false; c.MaxPathLenZero = false; c.MaxPathLen = -1 }, "not a certificate authority's"},
	} {
		t.Run(name, func(t *testing.T) {
			a := open(t, t.TempDir())
			cert := open(t, t.TempDir()).Bundle()
			if c.change != nil {
				template := *a.cert
				c.change(&template)
				der, err := x509.CreateCertificate(rand.Reader, &template, &template, &a.key.PublicKey, a.key)
				if err != nil {
					t.Fatal(err)
				}
				cert = encode("CERTIFICATE", der)
			}
			if err := os.WriteFile(a.BundlePath(), cert, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(a.dir, "east"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if c.change == nil {
				return
			}
			key, err := marshalKey(a.key)
			if err != nil {
				t.Fatal(err)
			}
			b := open(t, t.TempDir())
			before := string(b.Bundle())
			if err := b.Adopt(Secret{Bundle: cert, Key: key}); err == nil || !strings.Contains(err.Error(), c.want) || string(b.Bundle()) != before {
				t.Errorf("adopted: %v", err)
			}
		})
	}
}

func TestCheckPair(t *testing.T) {
	a, other := open(t, t.TempDir()), open(t, t.TempDir())
	good := issue(t, a, Request{User: "remote-west", Client: true})
	expired := issue(t, a, Request{User: "remote-west", Client: true, Lifetime: -time.Minute})
	shared := issue(t, a, Request{User: "remote", Client: true})
	for name, c := range map[string]struct {
		pair   Pair
		bundle []byte
		user   string
		want   string
	}{
		"good":            {good, a.Bundle(), "remote-west", ""},
		"Cilium's shared": {shared, a.Bundle(), "remote-west", ""},
		"no peer's":       {shared, a.Bundle(), "agent-n1", `is for "remote"`},
		"expired":         {expired, a.Bundle(), "remote-west", "has expired"},
		"someone else's":  {good, a.Bundle(), "remote-north", `is for "remote-west"`},
		"other authority": {good, other.Bundle(), "remote-west", "not signed by"},
		"no ca":           {good, nil, "remote-west", "no certificate"},
		"mixed up":        {Pair{good.Cert, expired.Key}, a.Bundle(), "remote-west", "belong together"},
	} {
		err := CheckPair(c.pair.Cert, c.pair.Key, c.bundle, c.user)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

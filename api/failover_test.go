package api

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// A client given several servers goes on with another where one cannot be reached, and
// makes no change twice.
func TestClientGoesOnWithAnotherServer(t *testing.T) {
	serve := func(h http.HandlerFunc) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	changes := map[string]int{}
	answers := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				changes[name]++
			}
			_, _ = io.WriteString(w, `{"cluster": "`+name+`"}`)
		}
	}
	breaks := func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			changes["breaks"]++
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = c.Close()
	}
	up, another, broken, gone := serve(answers("up")), serve(answers("another")), serve(breaks), serve(answers("gone"))
	gone.Close()
	roots := x509.NewCertPool()
	roots.AddCert(up.Certificate()) // httptest's, of all of them
	client := func(of ...*httptest.Server) *Client {
		var bases []*url.URL
		for _, s := range of {
			base, err := url.Parse(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			bases = append(bases, base)
		}
		c := NewClientTLS("east", bases, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
		t.Cleanup(c.Close)
		return c
	}

	c := client(gone, up, another)
	if l, err := c.Nodes(t.Context()); err != nil || l.Cluster != "up" {
		t.Errorf("%+v, %v", l, err)
	}
	if r, err := c.RotateKeys(t.Context()); err != nil || r.Cluster != "up" || changes["up"] != 1 || changes["another"] != 0 {
		t.Errorf("%+v, %v, changes %v", r, err, changes)
	}
	up.Close()
	c.Close() // on a connection that the server has closed, a change may have been made
	if r, err := c.RotateKeys(t.Context()); err != nil || r.Cluster != "another" {
		t.Errorf("%+v, %v", r, err)
	}

	// A request that got there is repeated only if it changes nothing.
	c = client(broken, another)
	if l, err := c.Nodes(t.Context()); err != nil || l.Cluster != "another" {
		t.Errorf("%+v, %v", l, err)
	}
	before := changes["another"]
	if _, err := client(broken, another).RotateKeys(t.Context()); err == nil || changes["breaks"] != 1 || changes["another"] != before {
		t.Errorf("%v, changes %v", err, changes)
	}
	if _, err := client(gone, up).Nodes(t.Context()); err == nil {
		t.Error("nobody answers")
	}
}

package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"testing"

	"github.com/weft-mesh/weft/store"
)

// An API server that runs for years still opens its own store, and is believed
// by whoever connects.
func TestCertificatesAreMadeAnew(t *testing.T) {
	p := start(t, config(t))
	conf := p.srv.rootTLS() // as handed out at the start
	proof := func() (root, api, etcd *x509.Certificate) {
		t.Helper()
		client, err := conf.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		server, err := p.srv.tls().GetConfigForClient(nil)
		if err != nil {
			t.Fatal(err)
		}
		// A connection of its own, as every agent and peer makes one.
		conn, err := tls.Dial("tcp", p.srv.etcd.Addr(), conf)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return client.Leaf, server.Certificates[0].Leaf, conn.ConnectionState().PeerCertificates[0]
	}
	root, api, etcd := proof()
	if err := p.srv.renewAll(); err != nil {
		t.Fatal(err)
	}
	newRoot, newAPI, newEtcd := proof()
	if root.Equal(newRoot) || api.Equal(newAPI) || etcd.Equal(newEtcd) {
		t.Errorf("root made anew: %v, API's: %v, etcd's: %v", !root.Equal(newRoot), !api.Equal(newAPI), !etcd.Equal(newEtcd))
	}
	again, err := store.Dial(store.DialConfig{Endpoints: p.srv.etcdEndpoints(), TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, _, err := again.List(t.Context(), "weft/"); err != nil {
		t.Error(err)
	}
}

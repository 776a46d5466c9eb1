package nodes

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A node of Kubernetes that was deleted and is there again is another machine, whatever the
// register had of it.
func TestAnotherNodeObjectIsAnotherMachine(t *testing.T) {
	r, s, _ := registrar(t)
	first := request("n1", "172.16.1.1", "10.1.1.0/24")
	first.UID, first.Replace = "u1", true
	if _, err := r.Add(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := store.Write(t.Context(), s, store.Put(wire.NodeKey("n1"), []byte("{}"))); err != nil {
		t.Fatal(err)
	}

	moved := request("n1", "172.16.1.7", "10.1.1.0/24")
	moved.UID, moved.Replace = "u1", true
	if _, err := r.Add(t.Context(), moved); err != nil {
		t.Fatalf("the same object with another address: %v", err)
	}
	if _, err := s.Get(t.Context(), wire.NodeKey("n1")); err != nil {
		t.Errorf("what the node wrote: %v", err)
	}

	other := request("n1", "172.16.1.8", "10.1.9.0/24")
	other.UID = "u1"
	if _, err := r.Add(t.Context(), other); err == nil || !strings.Contains(err.Error(), "cannot change") {
		t.Errorf("the same object with another pod CIDR: %v", err)
	}
	other.UID = "u2"
	b, err := r.Add(t.Context(), other)
	if err != nil {
		t.Fatalf("another object: %v", err)
	}
	if b.PodCIDRs[0].String() != "10.1.9.0/24" || b.Addresses[0].String() != "172.16.1.8" {
		t.Errorf("its bundle has %v at %v", b.PodCIDRs, b.Addresses)
	}
	if _, err := s.Get(t.Context(), wire.NodeKey("n1")); err == nil {
		t.Error("what the first machine wrote is still there")
	}
	register, err := r.Register(t.Context())
	if err != nil || register["n1"].UID != "u2" {
		t.Errorf("it is registered as %+v, %v", register["n1"], err)
	}
	// Its agent renews its bundle without naming an object.
	if _, err := r.Add(t.Context(), request("n1", "", "")); err != nil {
		t.Error(err)
	}
	if register, _ := r.Register(t.Context()); register["n1"].UID != "u2" {
		t.Errorf("after that it is registered as %+v", register["n1"])
	}
}

// An internal address that is missing for a moment must not move the node.
func TestANodeWithoutInternalAddressWaits(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
	}}}
	if r, err := FromKubernetes(n, ClusterPool); err == nil || !strings.Contains(err.Error(), "no internal address") {
		t.Errorf("it asks for %v, %v; want that it has no internal address", r.Addresses, err)
	}
}

// Whoever makes a node of Kubernetes with the name of one that an operator added must not
// become that machine.
func TestATokenDoesNotTakeOverAnotherNode(t *testing.T) {
	r, s, users := registrar(t)
	if _, err := r.Add(t.Context(), request("n1", "172.16.1.1", "10.1.1.0/24")); err != nil {
		t.Fatal(err)
	}
	before := s.Dump("")
	rival := request("n1", "172.16.1.9", "10.1.9.0/24")
	rival.UID, rival.Replace = "u1", true
	if b, err := r.AddFrom(t.Context(), rival, "kubernetes"); err == nil || !strings.Contains(err.Error(), "operator") {
		t.Errorf("a bundle was issued: %v, %v", b, err)
	}
	if after := s.Dump(""); len(after) != len(before) {
		t.Errorf("the store has changed: %v", after)
	}
	// One that Kubernetes declared has its rights before its agent asks for a bundle.
	second := request("n2", "172.16.1.2", "10.1.2.0/24")
	second.UID = "u2"
	if refused, err := r.Declare(t.Context(), []api.NodeRequest{second}, "kubernetes", nil); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	if _, ok := users.User("agent-n2"); !ok {
		t.Error("the agent of a declared node has no rights: one that has its bundle still would be cut off")
	}
}

// A kubelet says which addresses its node has, and Kubernetes believes it. That must not make
// it an API server, on whose machine a node may be all the same.
func TestAKubeletDoesNotBecomeAnAPIServer(t *testing.T) {
	r, _, _ := registrar(t)
	r.conf.Names, r.conf.EtcdEndpoints = []string{"mesh.example"}, func() []string { return []string{"https://172.16.1.3:2379"} }
	certified := func(n api.NodeRequest, source string) string {
		t.Helper()
		b, err := r.AddFrom(t.Context(), n, source)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair([]byte(b.ServerCert), []byte(b.ServerKey))
		if err != nil {
			t.Fatal(err)
		}
		if pair.Leaf.Subject.CommonName != n.Name {
			t.Errorf("issued to %q", pair.Leaf.Subject.CommonName)
		}
		return fmt.Sprint(pair.Leaf.DNSNames, pair.Leaf.IPAddresses)
	}
	several := of("u1", "n1", "172.16.1.1", "")
	several.Addresses = append(several.Addresses, netip.MustParseAddr("172.16.1.2"), netip.MustParseAddr("172.16.1.3"), netip.MustParseAddr("172.16.1.4"))
	for _, c := range []struct{ got, want string }{
		{certified(several, "kubernetes"), "[n1 localhost] [172.16.1.4]"},
		{certified(request("n1", "", ""), ""), "[n1 localhost] [172.16.1.4]"}, // its agent renews its bundle
		{certified(of("u2", "mesh.example", "172.16.1.5", ""), "kubernetes"), "[localhost] [172.16.1.5]"},
		{certified(request("mine", "172.16.1.6", ""), ""), "[mine localhost] [172.16.1.6]"},
	} {
		if c.got != c.want {
			t.Errorf("its certificate is for %s, want %s", c.got, c.want)
		}
	}
}

package mirror

import (
	"net/netip"
	"testing"

	"github.com/weft-mesh/weft/wire"
)

var (
	east = wire.Cluster{
		Name: "east", ID: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), MaxConnectedClusters: 255, Generation: "e1",
	}
	west = wire.Cluster{
		Name: "west", ID: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
		ServiceCIDR: netip.MustParsePrefix("10.102.0.0/16"), MaxConnectedClusters: 255, Generation: "w1",
	}
	westAsPeer = wire.Peer{Name: "west", ID: 2, PodCIDRs: west.PodCIDRs, ServiceCIDR: west.ServiceCIDR, MaxConnectedClusters: 255, Connected: true}
)

const someKey = "VRksOB6ZNds4oXWIGfSVpvc0gBhcOWFmzvTDcyvULlI="

func slice(change func(*wire.ClusterEndpointSlice)) []byte {
	s := &wire.ClusterEndpointSlice{Cluster: "west", ClusterID: 2, Namespace: "shop", Name: "web-1", AddressType: "IPv4",
		Labels: map[string]string{wire.ServiceNameLabel: "web"}, Endpoints: []wire.SliceEndpoint{{Addresses: []string{"10.2.1.2"}}}}
	if change != nil {
		change(s)
	}
	return s.Marshal()
}

// A peer can lie only about itself.
func TestClaims(t *testing.T) {
	c := newClaims(east, westAsPeer, func(a netip.Addr) string {
		if a == netip.MustParseAddr("172.16.1.1") {
			return "node n1 of this cluster"
		}
		return ""
	})
	in := map[string]folder{}
	for _, f := range c.folders(false) {
		in[f.name] = f
	}
	const (
		node    = "cilium/state/nodes/v1/west/n1"
		ip      = "cilium/state/ip/v1/default/10.2.1.2"
		id      = "cilium/state/identities/v1/id/131073"
		svc     = "cilium/state/services/v1/west/shop/web"
		eps     = "cilium/state/endpointslices/v1/west/shop/web-1"
		expNode = "weft/export/nodes/n1"
		expCl   = "weft/export/cluster"
	)
	for _, tc := range []struct {
		name, folder, key, value string
		want                     Reason
	}{
		{"node", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"172.16.2.1"},{"Type":"CiliumInternalIP","IP":"10.2.1.1"}],"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="}}`, ""},
		{"node without CIDR", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2}`, ""},
		{"node with our CIDR", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4AllocCIDR":{"IP":"10.1.1.0","Mask":"////AA=="}}`, ForeignAddress},
		{"node with a wider CIDR", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4AllocCIDR":{"IP":"10.0.0.0","Mask":"/wAAAA=="}}`, ForeignAddress},
		{"node with a second, foreign CIDR", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":[{"IP":"10.1.1.0","Mask":"////AA=="}]}`, ForeignAddress},
		{"node inside our pods", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"10.1.1.1"}]}`, ForeignAddress},
		{"node inside our services", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"ExternalIP","IP":"10.101.0.1"}]}`, ForeignAddress},
		{"node on loopback", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"127.0.0.1"}]}`, ForeignAddress},
		{"node at our node's address", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"172.16.1.1"}]}`, ForeignAddress},
		{"node with a foreign internal address", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"CiliumInternalIP","IP":"10.2.2.1"}],"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="}}`, ForeignAddress},
		{"node with a foreign health address", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4HealthIP":"10.1.0.9","IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="}}`, ForeignAddress},
		{"node of another cluster", "nodes", node, `{"Name":"n1","Cluster":"south","ClusterID":2}`, Malformed},
		{"node with another cluster's ID", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":1}`, Malformed},
		{"node with half a key", "nodes", node, `{"Name":"n1","Cluster":"west","ClusterID":2,"WireguardPubKey":"abc="}`, Malformed},

		{"address", "ip", ip, `{"IP":"10.2.1.2","HostIP":"172.16.2.1","ID":131073}`, ""},
		{"our address", "ip", "cilium/state/ip/v1/default/10.1.1.2", `{"IP":"10.1.1.2","ID":131073}`, ForeignAddress},
		{"address of the world", "ip", "cilium/state/ip/v1/default/8.8.8.8", `{"IP":"8.8.8.8","ID":131073}`, ForeignAddress},
		{"everything", "ip", "cilium/state/ip/v1/default/0.0.0.0/0", `{"IP":"0.0.0.0","Mask":"AAAAAA==","ID":131073}`, ForeignAddress},
		{"behind one of our pods", "ip", ip, `{"IP":"10.2.1.2","HostIP":"10.1.1.2","ID":131073}`, ForeignAddress},
		{"behind our node", "ip", ip, `{"IP":"10.2.1.2","HostIP":"172.16.1.1","ID":131073}`, ForeignAddress},
		{"with our identity", "ip", ip, `{"IP":"10.2.1.2","ID":65537}`, ForeignIdentity},
		{"as host", "ip", ip, `{"IP":"10.2.1.2","ID":1}`, ForeignIdentity},
		{"with a node-local identity", "ip", ip, `{"IP":"10.2.1.2","ID":16908289}`, ForeignIdentity},
		{"under another key", "ip", ip, `{"IP":"10.2.1.3","ID":131073}`, Malformed},
		{"no JSON", "ip", ip, `10.2.1.2`, Malformed},

		{"identity", "identities", id, "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=west;k8s:io.kubernetes.pod.namespace=shop;", ""},
		{"our identity", "identities", "cilium/state/identities/v1/id/65537", "k8s:io.cilium.k8s.policy.cluster=west;", ForeignIdentity},
		{"our cluster's labels", "identities", id, "k8s:io.cilium.k8s.policy.cluster=east;", ForeignName},
		{"no cluster's labels", "identities", id, "k8s:app=web;", ForeignName},
		{"our cluster's labels beside its own", "identities", id, "container:io.cilium.k8s.policy.cluster=east;k8s:app=frontend;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"its own cluster's labels from elsewhere", "identities", id, "container:io.cilium.k8s.policy.cluster=west;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"a cluster without value beside its own", "identities", id, "container:io.cilium.k8s.policy.cluster;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"its own namespace from elsewhere", "identities", id, "container:io.kubernetes.pod.namespace=shop;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"a namespace's label from elsewhere", "identities", id, "container:io.cilium.k8s.namespace.labels.team=pay;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"two clusters' labels", "identities", id, "k8s:io.cilium.k8s.policy.cluster=west;k8s:io.cilium.k8s.policy.cluster=east;", Malformed},
		{"a source in capitals", "identities", id, "K8S:io.cilium.k8s.policy.cluster=east;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"a source with a space", "identities", id, "k8s:io.cilium.k8s.policy.cluster=west; k8s:io.cilium.k8s.policy.cluster=east;", ForeignName},
		{"a label of any source", "identities", id, "any:app=frontend;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"labels of a DNS name", "identities", id, "fqdn:example.com=;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},
		{"labels of another source", "identities", id, "container:app=web;k8s:io.cilium.k8s.policy.cluster=west;", ""},
		{"reserved labels", "identities", id, "k8s:io.cilium.k8s.policy.cluster=west;reserved:host=;", ForeignName},
		{"CIDR labels", "identities", id, "cidr:0.0.0.0/0=;k8s:io.cilium.k8s.policy.cluster=west;", ForeignName},

		{"service", "services", svc, `{"cluster":"west","namespace":"shop","name":"web","clusterID":2,"backends":{"10.2.1.2":{"http":{"Protocol":"TCP","Port":80}}}}`, ""},
		{"service with our backend", "services", svc, `{"cluster":"west","namespace":"shop","name":"web","clusterID":2,"backends":{"10.1.1.2":{}}}`, ForeignAddress},
		{"slice", "endpointslices", eps, string(slice(nil)), ""},
		{"slice with a foreign endpoint", "endpointslices", eps, string(slice(func(s *wire.ClusterEndpointSlice) { s.Endpoints[0].Addresses = []string{"10.3.1.2"} })), ForeignAddress},
		{"slice of another cluster", "endpointslices", eps, string(slice(func(s *wire.ClusterEndpointSlice) { s.Cluster = "east" })), Malformed},

		{"lanes", "weft", expNode, `{"name":"n1","epoch":1,"lanes":[{"publicKey":"","port":0},{"publicKey":"` + someKey + `","port":51872}]}`, ""},
		{"lanes of another node", "weft", expNode, `{"name":"n2"}`, Malformed},
		{"lane without port", "weft", expNode, `{"name":"n1","lanes":[{"publicKey":"` + someKey + `","port":0},{}]}`, Malformed},
		{"cluster", "weft", expCl, `{"podCIDRs":["10.2.0.0/16"],"generation":"w1"}`, ""},
		{"grown cluster", "weft", expCl, `{"podCIDRs":["10.2.0.0/16","10.1.0.0/16"],"generation":"w1"}`, ForeignAddress},
		{"our liveness", "weft", "weft/export/liveness", `{}`, Malformed},
		{"unknown key", "weft", "weft/export/weights/x", `{}`, Malformed},
	} {
		_, kept, reason, err := c.judge(in[tc.folder], tc.key, []byte(tc.value))
		if reason != tc.want || (reason != "") != (err != nil) {
			t.Errorf("%s: %q, %v; want %q", tc.name, reason, err, tc.want)
		}
		if reason == "" && string(kept) != tc.value || reason != "" && kept != nil {
			t.Errorf("%s: kept %q", tc.name, kept)
		}
	}
}

// Of a dual-stack peer its IPv6 addresses are its own like the others.
func TestClaimsOfADualStackPeer(t *testing.T) {
	peer := westAsPeer
	peer.PodCIDRs = append([]netip.Prefix{netip.MustParsePrefix("fd00:10:2::/48")}, peer.PodCIDRs...)
	c := newClaims(east, peer, nil)
	in := map[string]folder{}
	for _, f := range c.folders(false) {
		in[f.name] = f
	}
	six := func(address string) string {
		return string(slice(func(s *wire.ClusterEndpointSlice) {
			s.AddressType, s.Endpoints = "IPv6", []wire.SliceEndpoint{{Addresses: []string{address}}}
		}))
	}
	const eps = "cilium/state/endpointslices/v1/west/shop/web-1"
	for _, tc := range []struct {
		name, folder, key, value string
		want                     Reason
	}{
		{"node", "nodes", "cilium/state/nodes/v1/west/n1", `{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"172.16.2.1"},{"Type":"InternalIP","IP":"fd00:172::1"},{"Type":"CiliumInternalIP","IP":"fd00:10:2:1::1"}],` +
			`"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="},"IPv6AllocCIDR":{"IP":"fd00:10:2:1::","Mask":"//////////8AAAAAAAAAAA=="},"IPv6HealthIP":"fd00:10:2:1::9"}`, ""},
		{"node with a foreign prefix", "nodes", "cilium/state/nodes/v1/west/n1", `{"Name":"n1","Cluster":"west","ClusterID":2,"IPv6AllocCIDR":{"IP":"fd00:10:1:1::","Mask":"//////////8AAAAAAAAAAA=="}}`, ForeignAddress},
		{"address", "ip", "cilium/state/ip/v1/default/fd00:10:2:1::2", `{"IP":"fd00:10:2:1::2","HostIP":"172.16.2.1","ID":131073}`, ""},
		{"foreign address", "ip", "cilium/state/ip/v1/default/fd00:10:1::2", `{"IP":"fd00:10:1::2","HostIP":"172.16.2.1","ID":131073}`, ForeignAddress},
		{"slice", "endpointslices", eps, six("fd00:10:2:1::2"), ""},
		{"slice with a foreign endpoint", "endpointslices", eps, six("fd00:10:3::2"), ForeignAddress},
	} {
		if _, _, reason, err := c.judge(in[tc.folder], tc.key, []byte(tc.value)); reason != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.name, reason, err, tc.want)
		}
	}
}

func TestBrake(t *testing.T) {
	for _, c := range []struct {
		name string
		r    relist
		held bool
	}{
		{"nothing missing", relist{Have: 5, Generation: "a", Listed: "b"}, false},
		{"a pod less", relist{Have: 10, Missing: 2, Nodes: 2, Generation: "a", Listed: "a"}, false},
		{"ten of twelve, but nodes remain", relist{Have: 12, Missing: 10, Nodes: 2, MissingNodes: 1, Generation: "a", Listed: "a"}, false},
		{"eleven of twelve", relist{Have: 12, Missing: 11, Nodes: 2, MissingNodes: 1, Generation: "a", Listed: "a"}, true},
		{"no node left", relist{Have: 6, Missing: 2, Nodes: 2, MissingNodes: 2, Generation: "a", Listed: "a"}, true},
		{"a third of a thousand", relist{Have: 1000, Missing: 301, Nodes: 9, Generation: "a", Listed: "a"}, true},
		{"less than a third of a thousand", relist{Have: 1000, Missing: 300, Nodes: 9, Generation: "a", Listed: "a"}, false},
		{"rebuilt, one missing", relist{Have: 1000, Missing: 1, Nodes: 9, Generation: "a", Listed: "b"}, true},
		{"rebuilt, says nothing", relist{Have: 10, Missing: 1, Nodes: 9, Generation: "a", Listed: ""}, true},
		{"a Cilium peer has no generation", relist{Have: 10, Missing: 1, Nodes: 9}, false},
	} {
		if why := hold(c.r); (why != "") != c.held {
			t.Errorf("%s: %q", c.name, why)
		}
	}
}

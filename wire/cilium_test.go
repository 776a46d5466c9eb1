package wire

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func ptr[T any](v T) *T { return &v }

func TestPodCIDRsOfADualStackNode(t *testing.T) {
	_, values := fixtures(t, "read.txtar")
	n, err := ParseNode(CacheRef{Cluster: "c3", Node: "worker-1"}, 3, values["cilium/state/nodes/v1/c3/worker-1"])
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")}
	if got := n.PodCIDRs(); !slices.Equal(got, want) {
		t.Errorf("pod CIDRs %v, want %v", got, want)
	}
	if got := n.Address(NodeCiliumInternalIP); got != netip.MustParseAddr("10.244.0.10") {
		t.Errorf("internal address %v", got)
	}
}

func TestClusterConfigsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"ID 0":         `{"id":0,"capabilities":{}}`,
		"unknown mode": `{"id":1,"capabilities":{"endpointSlicesExportMode":"none"}}`,
		"odd maximum":  `{"id":1,"capabilities":{"maxConnectedClusters":256}}`,
		"no JSON":      `id: 1`,
	} {
		if _, err := ParseClusterConfig([]byte(text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func slice() *ClusterEndpointSlice {
	return &ClusterEndpointSlice{
		Cluster: "c3", ClusterID: 3, Namespace: "test", Name: "echo-1",
		Labels: map[string]string{ServiceNameLabel: "echo", "a": "b"}, AddressType: "IPv4",
		Endpoints: []SliceEndpoint{
			{Addresses: []string{"10.244.1.1"}, Conditions: Conditions{ptr(true), ptr(true), ptr(false)}, NodeName: "w", Zone: "z1", ForZones: []string{"z1"}},
			{Addresses: []string{"10.244.1.2"}},
		},
		Ports: []SlicePort{{Name: "http", Protocol: "TCP", Port: 8080}},
	}
}

func TestSliceBombIsRefused(t *testing.T) {
	bomb := encoder.EncodeAll(make([]byte, maxSliceSize+1), nil)
	if len(bomb) > 10_000 {
		t.Fatalf("%d bytes is not a bomb", len(bomb))
	}
	if _, err := ParseClusterEndpointSlice(bomb); err == nil {
		t.Error("17 MiB were unpacked")
	}
}

func TestValuesThatDisagreeWithTheirKey(t *testing.T) {
	ref := CacheRef{Cluster: "west", Node: "n1", Namespace: "shop", Name: "web", IP: netip.MustParsePrefix("10.2.0.1/32")}
	node := func(s string) error { _, err := ParseNode(ref, 2, []byte(s)); return err }
	pair := func(s string) error { _, err := ParseIPIdentityPair(ref, []byte(s)); return err }
	svc := func(s string) error { _, err := ParseClusterService(ref, 2, []byte(s)); return err }
	slc := func(change func(*ClusterEndpointSlice)) error {
		s := slice()
		s.Cluster, s.ClusterID, s.Namespace, s.Name = "west", 2, "shop", "web"
		change(s)
		_, err := ParseSlice(ref, 2, s.Marshal())
		return err
	}
	if err := slc(func(*ClusterEndpointSlice) {}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"node: cluster":      node(`{"Name":"n1","Cluster":"east","ClusterID":2}`),
		"node: name":         node(`{"Name":"n2","Cluster":"west","ClusterID":2}`),
		"node: cluster ID":   node(`{"Name":"n1","Cluster":"west","ClusterID":3}`),
		"node: address":      node(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"x"}]}`),
		"node: no address":   node(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":""}]}`),
		"node: zone":         node(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"fe80::1%a"}]}`),
		"node: mask hole":    node(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4AllocCIDR":{"IP":"10.2.0.0","Mask":"/wD/AA=="}}`),
		"node: mask length":  node(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4AllocCIDR":{"IP":"10.2.0.0","Mask":"/w=="}}`),
		"node: host bits":    node(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPv4AllocCIDR":{"IP":"10.2.0.1","Mask":"////AA=="}}`),
		"pair: other IP":     pair(`{"IP":"10.2.0.2"}`),
		"pair: wider":        pair(`{"IP":"10.2.0.1","Mask":"////AA=="}`),
		"pair: none":         pair(`{}`),
		"pair: host zone":    pair(`{"IP":"10.2.0.1","HostIP":"fe80::1%a"}`),
		"service: cluster":   svc(`{"cluster":"east","namespace":"shop","name":"web","clusterID":2}`),
		"service: name":      svc(`{"cluster":"west","namespace":"shop","name":"db","clusterID":2}`),
		"service: ID":        svc(`{"cluster":"west","namespace":"shop","name":"web","clusterID":1}`),
		"service: backend":   svc(`{"cluster":"west","namespace":"shop","name":"web","clusterID":2,"backends":{"fe80::1%a":{}}}`),
		"service: protocol":  svc(`{"cluster":"west","namespace":"shop","name":"web","clusterID":2,"backends":{"10.2.0.1":{"a":{"Protocol":"XX"}}}}`),
		"slice: cluster":     slc(func(s *ClusterEndpointSlice) { s.Cluster = "east" }),
		"slice: name":        slc(func(s *ClusterEndpointSlice) { s.Name = "other" }),
		"slice: ID":          slc(func(s *ClusterEndpointSlice) { s.ClusterID = 9 }),
		"slice: family":      slc(func(s *ClusterEndpointSlice) { s.AddressType = "IPv6" }),
		"slice: FQDN":        slc(func(s *ClusterEndpointSlice) { s.AddressType = "FQDN" }),
		"slice: no service":  slc(func(s *ClusterEndpointSlice) { s.Labels = nil }),
		"slice: port":        slc(func(s *ClusterEndpointSlice) { s.Ports[0].Port = 65536 }),
		"slice: bad address": slc(func(s *ClusterEndpointSlice) { s.Endpoints[0].Addresses = []string{"fe80::1%a"} }),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseIdentity([]byte("")); err == nil {
		t.Error("an identity without labels was accepted")
	}
	if _, err := ParseIdentity([]byte("app=web;")); err == nil {
		t.Error("a label without source was accepted")
	}
}

func TestTimesReadBack(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC)
	back, err := ParseTime(TimeText(now))
	if err != nil || !back.Equal(now) {
		t.Errorf("%v, %v", back, err)
	}
	if _, err := ParseTime([]byte("Sat, 21 Nov 2026 12:00:00 UTC")); err != nil {
		t.Error(err)
	}
	if _, err := ParseTime([]byte("soon")); err == nil {
		t.Error("soon was accepted as a time")
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	for _, v := range []interface {
		String() string
		GoString() string
	}{PeerSecret{Key: "k3y"}, GossipKeys{LAN: [][]byte{[]byte("k3y")}}} {
		if v.String() != "[secret]" || v.GoString() != "[secret]" {
			t.Errorf("%T prints itself", v)
		}
	}
}

// FuzzSlice: whatever is accepted reads back the same.
func FuzzSlice(f *testing.F) {
	f.Add(slice().proto())
	f.Add([]byte("\x42\x04\x0a\x02::\x42\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseSlice(raw)
		if err != nil {
			return
		}
		back, err := ParseClusterEndpointSlice(s.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, back); diff != "" {
			t.Error(diff)
		}
	})
}

// FuzzCompressedSlice: bad input gives an error and nothing worse.
func FuzzCompressedSlice(f *testing.F) {
	f.Add(slice().Marshal())
	seed, _ := base64.StdEncoding.DecodeString("KLUv/QQAAQAA")
	f.Add(seed)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = ParseClusterEndpointSlice(b) })
}

// FuzzJSON: whatever is accepted reads back the same, for every JSON value that
// a peer writes.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"Name":"n1","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"10.0.0.1"}],"IPv4AllocCIDR":{"IP":"10.2.0.0","Mask":"//8AAA=="}}`))
	f.Add([]byte(`{"IP":"10.2.0.1","Mask":null,"HostIP":"172.16.2.1","ID":131073,"NamedPorts":[{"Name":"a","Port":1,"Protocol":"TCP"}]}`))
	f.Add([]byte(`{"cluster":"west","namespace":"shop","name":"web","backends":{"10.2.0.1":{"http":{"Protocol":"TCP","Port":80}}}}`))
	f.Add([]byte(`{"id":2,"capabilities":{"syncedCanaries":true}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		readsBack[Node](t, b)
		readsBack[IPIdentityPair](t, b)
		readsBack[ClusterService](t, b)
		readsBack[ClusterConfig](t, b)
		readsBack[ExportCluster](t, b)
		readsBack[ExportNode](t, b)
	})
}

func readsBack[T any](t *testing.T, b []byte) {
	t.Helper()
	v, err := Unmarshal[T](b)
	if err != nil {
		return
	}
	once := Marshal(v)
	again, err := Unmarshal[T](once)
	if err != nil {
		t.Fatalf("%T: %v\n%s", v, err, once)
	}
	if twice := Marshal(again); string(once) != string(twice) {
		t.Errorf("%T: %s then %s", v, once, twice)
	}
}

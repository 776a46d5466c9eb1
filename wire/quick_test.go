package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/weft-mesh/weft/identity"
)

// FuzzQuick: what a quick reader takes, encoding/json takes too, and reads the same.
func FuzzQuick(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		for _, v := range []any{somePair(r), someNode(r), someExportNode(r), someService(r)} {
			f.Add(Marshal(v))
		}
	}
	for _, text := range []string{
		`{}`, `null`, `{"IP":"10.0.0.1","IP":"10.0.0.2"}`, `{"ip":"10.0.0.1"}`, `{"ID":01}`, `{"ID":4294967296}`, `{"Key":256}`, `{"ID":1.0}`,
		`{"IP":"10.0.0.01"}`, `{"IP":"1.2.3"}`, `{"IP":"::ffff:1.2.3.4"}`, `{"IP":"fe80::1%x"}`, `{"IP":null}`, `{"IP":"10.0.0.1"} `, `{"IP":"10.0.0.1"}{}`,
		`{"Mask":""}`, `{"Mask":"////AA=="}`, `{"Mask":"/"}`, `{"Metadata":"\u0041"}`, "{\"Metadata\":\"\xff\"}", `{"Metadata":"é"}`, `{"NamedPorts":[]}`, `{"NamedPorts":[{}]}`,
		`{"IPAddresses":[]}`, `{"IPv4AllocCIDR":{}}`, `{"IPv4SecondaryAllocCIDRs":[null]}`, `{"Labels":{"a":"b","a":"c"}}`, `{"Labels":{}}`,
		`{"lanes":[{}]}`, `{"lanes":[{},{},{}]}`, `{"lanes":[{},{}]}`, `{"backends":{"::1":{},"0::1":{"a":{"Port":1}}}}`, `{"zones":{"":{"forZones":[]}}}`, `{"shared":1}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		readsAsJSON[IPIdentityPair](t, b)
		readsAsJSON[Node](t, b)
		readsAsJSON[ExportNode](t, b)
		readsAsJSON[ClusterService](t, b)
	})
}

func readsAsJSON[T any](t *testing.T, b []byte) {
	t.Helper()
	var got, want T
	before := bytes.Clone(b)
	taken := readQuickly(any(&got).(quickly), b)
	if !bytes.Equal(before, b) {
		t.Fatalf("%T: reading changed %q to %q", got, before, b)
	}
	err := json.Unmarshal(b, &want)
	if taken && (err != nil || !reflect.DeepEqual(got, want)) {
		t.Errorf("%T of %q: read as %+v, by encoding/json as %+v, %v", got, b, got, want, err)
	}
	again, failed := Unmarshal[T](b)
	if (failed == nil) != (err == nil) || err == nil && !reflect.DeepEqual(again, want) {
		t.Errorf("%T of %q: read as %+v, %v, by encoding/json as %+v, %v", got, b, again, failed, want, err)
	}
}

// What this package writes is read quickly: otherwise quick readers would be of no use and
// nobody would notice.
func TestWhatIsWrittenIsReadQuickly(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 8 {
		pair, node, export, service := somePair(r), someNode(r), someExportNode(r), someService(r)
		isReadQuickly(t, pair)
		isReadQuickly(t, node)
		isReadQuickly(t, export)
		isReadQuickly(t, service)
	}
}

func isReadQuickly[T any](t *testing.T, v T) {
	t.Helper()
	var got T
	b := Marshal(v)
	if !readQuickly(any(&got).(quickly), b) {
		t.Fatalf("%T: declined %s", v, b)
	}
	readsAsJSON[T](t, b)
	// Nothing that is cut short or changed is read as something else.
	readsAsJSON[T](t, b[:len(b)/2])
	for i := range b {
		for _, c := range []byte(`"{}[],:0 \x`) {
			changed := bytes.Clone(b)
			changed[i] = c
			var got T
			if readQuickly(any(&got).(quickly), changed) {
				readsAsJSON[T](t, changed)
			}
		}
	}
}

func oneOf[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func someAddr(r *rand.Rand) netip.Addr {
	four := netip.AddrFrom4([4]byte{byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(3)), byte(r.IntN(256))})
	six := four.As16()
	six[0], six[10], six[11] = 0xfd, 0, 0
	return oneOf(r, four, four, netip.AddrFrom16(six), netip.Addr{})
}

func someCIDRs(r *rand.Rand) (out []*CIDR) {
	for range r.IntN(3) {
		if a := someAddr(r); a.IsValid() {
			p, _ := a.Prefix(r.IntN(a.BitLen() + 1))
			out = append(out, ptr(CIDR(p)))
		}
	}
	return out
}

func somePair(r *rand.Rand) IPIdentityPair {
	p := IPIdentityPair{
		IP: someAddr(r), HostIP: someAddr(r), ID: identity.Number(r.Uint32()), Key: uint8(r.IntN(256)), Metadata: oneOf(r, "", "m:1"),
		K8sNamespace: oneOf(r, "", "shop"), K8sPodName: oneOf(r, "", "web-1"), K8sServiceAccount: oneOf(r, "", "default"),
	}
	if r.IntN(4) == 0 {
		p.Mask = []byte{255, 255, byte(r.IntN(256)), 0}
	}
	for i := range r.IntN(3) {
		p.NamedPorts = append(p.NamedPorts, NamedPort{fmt.Sprint("p", i), uint16(r.IntN(1 << 16)), oneOf(r, "TCP", "")})
	}
	return p
}

func someNode(r *rand.Rand) Node {
	n := Node{
		Name: "n1", Cluster: oneOf(r, "west", ""), ClusterID: r.Uint32(), Source: SourceCustomResource, EncryptionKey: uint8(r.IntN(256)),
		IPv4HealthIP: someAddr(r), IPv6IngressIP: someAddr(r), WireguardPubKey: oneOf(r, "", "a+/="), BootID: "b",
		IPv4SecondaryAllocCIDRs: someCIDRs(r), IPv6SecondaryAllocCIDRs: someCIDRs(r),
		Labels: oneOf(r, nil, map[string]string{}, map[string]string{"kubernetes.io/hostname": "n1", "zone": ""}),
	}
	for range r.IntN(3) {
		n.IPAddresses = append(n.IPAddresses, NodeAddress{oneOf(r, NodeInternalIP, NodeCiliumInternalIP), someAddr(r)})
	}
	if all := someCIDRs(r); len(all) > 0 {
		n.IPv4AllocCIDR = all[0]
	}
	return n
}

func someExportNode(r *rand.Rand) ExportNode {
	n := ExportNode{Name: "n1", Epoch: oneOf(r, 0, r.Uint64())}
	for i := range n.Lanes {
		n.Lanes[i] = Lane{oneOf(r, "", "a+/="), uint16(r.IntN(1 << 16))}
	}
	return n
}

func someService(r *rand.Rand) ClusterService {
	s := NewClusterService()
	s.Cluster, s.Namespace, s.Name, s.ClusterID, s.Shared, s.IncludeExternal = "west", "shop", "web", r.Uint32(), r.IntN(2) == 0, r.IntN(2) == 0
	for range r.IntN(4) {
		a := someAddr(r)
		s.Backends[a] = oneOf(r, nil, map[string]L4Addr{}, map[string]L4Addr{"http": {"TCP", uint16(r.IntN(1 << 16))}, "": {}})
		s.Hostnames[a] = oneOf(r, "", "web-1")
		s.Zones[a] = BackendZone{oneOf(r, "", "z1"), oneOf(r, nil, []ForZone{}, []ForZone{{"z1"}, {""}})}
	}
	s.Labels = oneOf(r, nil, map[string]string{"a": "b"})
	return s
}

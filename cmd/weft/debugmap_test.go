package main

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/bpf"
)

func TestRowsOfKernelMapsAreReadable(t *testing.T) {
	a := func(s string) bpf.Addr { return bpf.AddrOf(netip.MustParseAddr(s)) }
	service := bpf.Service{ID: 3, Groups: 1}
	service.Group[0] = bpf.Group{Count: 2, Cluster: 1, Weight: 1}
	for _, test := range []struct {
		name       string
		key, value any
		want       string
	}{
		{"ips", a("10.2.1.9"), bpf.IPInfo{Identity: 131080, Node: 3, Cluster: 2, Flags: bpf.IPMember}, "KEY=10.2.1.9 IDENTITY=131080 NODE=3 CLUSTER=2 FLAGS=member"},
		{"prefixes", bpf.PrefixOf(netip.MustParsePrefix("10.2.0.0/16")), bpf.IPInfo{Flags: bpf.IPMember | bpf.IPFormer}, "BITS=112 ADDR=10.2.0.0 IDENTITY=0 NODE=0 CLUSTER=0 FLAGS=member,former"},
		{"endpoints", a("10.1.1.2"), bpf.Endpoint{Ifindex: 7, Identity: 65540, MAC: [6]uint8{46, 58, 0, 1, 2, 3}}, "KEY=10.1.1.2 IFINDEX=7 IDENTITY=65540 SET=0 ID=0 MAC=2e:3a:00:01:02:03 HOSTMAC=00:00:00:00:00:00 HELD=0"},
		{"classes", bpf.ClassKey{Gen: 1, Identity: 65540}, uint32(4), "GEN=1 IDENTITY=65540 VALUE=4"},
		{"flows", bpf.FlowKey{Local: a("10.1.1.2")}, bpf.Flow{}, "LOCAL=10.1.1.2 REMOTE= "},
		{"services", bpf.ServiceKey{Addr: a("10.101.0.7"), Port: bpf.PortOf(80), Proto: 6}, service, "ADDR=10.101.0.7 PORT=80 PROTO=6 SCOPE=any ID=3 GROUPS=1 TIMEOUT=0s GROUP={Count:2 Cluster:1"},
	} {
		i := slices.IndexFunc(kernelMaps(), func(k kernelMap) bool { return k.name == test.name })
		if i < 0 {
			t.Fatalf("there is no map %s among %v", test.name, mapNames())
		}
		k := kernelMaps()[i]
		cells := k.cells(reflect.ValueOf(test.key), reflect.ValueOf(test.value))
		var words []string
		for i, head := range k.heads() {
			words = append(words, head+"="+cells[i])
		}
		if got := strings.Join(words, " "); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: got %s, want %s…", test.name, got, test.want)
		}
	}
}

// Every row has a fixed size, as in the kernel.
func TestKernelMapsHaveFixedRows(t *testing.T) {
	if n := len(kernelMaps()); n < 15 {
		t.Errorf("found %d maps", n)
	}
	for _, k := range kernelMaps() {
		if k.key.Size() == 0 || k.value.Size() == 0 {
			t.Errorf("map %s: rows without a size", k.name)
		}
	}
}

func TestTheNewestLayoutIsRead(t *testing.T) {
	for want, pins := range map[string][]string{
		"weft_flows_v1":  {"weft_flows_v1"},
		"weft_flows_v3":  {"weft_flows_v1", "weft_flows_v3", "weft_flows_v2"},
		"weft_flows_v10": {"weft_flows_v10", "weft_flows_v9"},
	} {
		if got := newest(pins); got != want {
			t.Errorf("of %v, %s is read, want %s", pins, got, want)
		}
	}
}

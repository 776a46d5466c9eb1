package wire

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// fixtures reads a file of keys and values. Values of endpoint slices are as stored.
func fixtures(t testing.TB, file string) (keys []string, values map[string][]byte) {
	t.Helper()
	archive, err := txtar.ParseFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string][]byte{}
	for _, f := range archive.Files {
		if values[f.Name] != nil {
			t.Fatalf("%s: %s is there twice", file, f.Name)
		}
		keys = append(keys, f.Name)
		values[f.Name] = []byte(strings.TrimSuffix(string(f.Data), "\n"))
	}
	return keys, values
}

// isSlice reports whether a fixture is an endpoint slice, and not a canary of them.
func isSlice(key string) bool {
	return strings.Contains(key, "/endpointslices/v1/")
}

// unhex returns the protobuf that a fixture spells.
func unhex(t testing.TB, text []byte) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stored returns a fixture as it is in etcd: hexadecimal if we write it, base64 if
// Cilium does.
func stored(t testing.TB, key string, text []byte) []byte {
	t.Helper()
	if !isSlice(key) {
		return text
	}
	if !strings.HasPrefix(string(text), "KLUv") { // how every zstd frame begins
		return encoder.EncodeAll(unhex(t, text), nil)
	}
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readAndWrite reads any entry of Cilium's format, by its key, and writes it again;
// slices uncompressed.
func readAndWrite(key string, value []byte) ([]byte, error) {
	switch {
	case key == HeartbeatKey, strings.HasPrefix(key, CiliumSyncedPrefix):
		at, err := ParseTime(value)
		return TimeText(at), err
	case strings.HasPrefix(key, ClusterConfigPrefix):
		if _, ok := ParseClusterConfigKey(key); !ok {
			return nil, fmt.Errorf("key %s was not read", key)
		}
		c, err := ParseClusterConfig(value)
		return Marshal(c), err
	}
	ref, ok := ParseCiliumCacheKey(key)
	for i := 0; !ok && i < len(Resources); i++ {
		r := Resources[i]
		cluster := ""
		if rest, found := strings.CutPrefix(key, CiliumStatePrefix+string(r)+"/v1/"); found {
			cluster, _, _ = strings.Cut(rest, "/") // addresses and identities have none
			ref, ok = r.ParseStateKey(key, cluster)
		}
	}
	if !ok {
		return nil, fmt.Errorf("key %s was not read", key)
	}
	switch ref.Resource {
	case Nodes:
		v, err := ParseNode(ref, 0, value)
		return Marshal(v), err
	case IPs:
		v, err := ParseIPIdentityPair(ref, value)
		return Marshal(v), err
	case Identities:
		v, err := ParseIdentity(value)
		return []byte(v.String()), err
	case Services:
		v, err := ParseClusterService(ref, 0, value)
		if err != nil {
			return nil, err
		}
		return Marshal(v), nil
	case ServiceExports:
		v, err := ParseServiceExport(ref, value)
		if err != nil {
			return nil, err
		}
		return Marshal(v), nil
	}
	v, err := ParseSlice(ref, 0, value)
	if err != nil {
		return nil, err
	}
	return v.proto(), nil
}

// What we write reads back the same, and nothing that we write is without a fixture.
func TestWhatWeWriteReadsBack(t *testing.T) {
	keys, values := fixtures(t, "written.txtar")
	for _, key := range keys {
		want := values[key]
		if isSlice(key) {
			want = unhex(t, want)
		}
		got, err := readAndWrite(key, stored(t, key, values[key]))
		if err != nil {
			t.Errorf("%s: %v", key, err)
		} else if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-fixture +written again):\n%s", key, diff)
		}
	}
	any := func(prefix string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, prefix) })
	}
	for _, r := range Resources {
		for _, prefix := range []string{r.StatePrefix("east"), r.CachePrefix("west"), r.CacheSyncedKey("west")} {
			if !any(prefix) {
				t.Errorf("no fixture below %s", prefix)
			}
		}
	}
	for _, r := range Resources {
		if values[r.StateSyncedKey("east")] == nil {
			t.Errorf("no fixture of %s", r.StateSyncedKey("east"))
		}
	}
}

// What Cilium writes is understood, except for fields that only later releases have.
func TestWhatCiliumWrites(t *testing.T) {
	keys, values := fixtures(t, "read.txtar")
	for _, key := range keys {
		if strings.HasPrefix(key, "again ") {
			continue
		}
		want, there := values["again "+key]
		if !there {
			t.Errorf("%s: no repetition", key)
			continue
		}
		if isSlice(key) {
			want = unhex(t, want)
		}
		got, err := readAndWrite(key, stored(t, key, values[key]))
		if err != nil {
			t.Errorf("%s: %v", key, err)
		} else if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-fixture +written again):\n%s", key, diff)
		}
	}
}

// The fixtures are what our types write.
func TestTypesWriteTheFixtures(t *testing.T) {
	_, values := fixtures(t, "written.txtar")
	addr, at := netip.MustParseAddr, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	const key = "VRksOB6ZNds4oXWIGfSVpvc0gBhcOWFmzvTDcyvULlI="
	node := Node{
		Name: "n1", Cluster: "east", ClusterID: 1, Source: SourceCustomResource, EncryptionKey: WireGuardKey,
		IPAddresses: []NodeAddress{{NodeInternalIP, addr("172.16.1.1")}, {NodeCiliumInternalIP, addr("10.1.1.1")}},
		Labels:      map[string]string{"kubernetes.io/hostname": "n1"}, Annotations: map[string]string{"network.cilium.io/wg-pub-key": key},
		WireguardPubKey: key, BootID: "570d3fd1-93db-4862-ba99-6a3c2c10c38f",
	}
	node.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("10.1.9.0/28")})
	slice := &ClusterEndpointSlice{
		Cluster: "east", ClusterID: 1, Namespace: "shop", Name: "web-v4", AddressType: "IPv4",
		Labels: map[string]string{ServiceNameLabel: "web"}, Annotations: map[string]string{"service.cilium.io/weight": "0"},
		Endpoints: []SliceEndpoint{
			{Addresses: []string{"10.1.1.2"}, Conditions: Conditions{ptr(true), ptr(true), ptr(false)}, Hostname: "web-0", NodeName: "n1", Zone: "a", ForZones: []string{"a"}},
			{Addresses: []string{"10.1.1.3"}, Conditions: Conditions{Ready: ptr(false), Terminating: ptr(true)}},
			{Addresses: []string{"10.1.1.4"}},
		},
		Ports: []SlicePort{{Name: "http", Protocol: "TCP", Port: 8080, AppProtocol: "h2"}, {Protocol: "UDP"}},
	}
	http := map[string]L4Addr{"http": {"TCP", 8080}}
	for key, value := range map[string][]byte{
		ClusterConfigKey("east"): Marshal(ClusterConfig{ID: 1, Capabilities: Capabilities{SyncedCanaries: true, MaxConnectedClusters: 255,
			ServiceExportsEnabled: ptr(false), EndpointSlicesExportMode: ServicesAndEndpointSlices}}),
		NodeStateKey("east", "n1"): Marshal(node),
		IPStateKey(addr("10.1.1.2")): Marshal(IPIdentityPair{IP: addr("10.1.1.2"), HostIP: addr("172.16.1.1"), ID: 65537, Key: WireGuardKey,
			K8sNamespace: "shop", K8sPodName: "web-1", K8sServiceAccount: "default", NamedPorts: []NamedPort{{"http", 8080, "TCP"}}}),
		ServiceStateKey("east", "shop", "web"): Marshal(ClusterService{
			Cluster: "east", Namespace: "shop", Name: "web", ClusterID: 1, IncludeExternal: true, Shared: true,
			Frontends: map[netip.Addr]map[string]L4Addr{addr("10.101.0.1"): {"http": {"TCP", 80}}},
			Backends:  map[netip.Addr]map[string]L4Addr{addr("10.1.1.3"): http, addr("10.1.1.2"): http},
			Hostnames: map[netip.Addr]string{addr("10.1.1.2"): "web-0"},
			Zones:     map[netip.Addr]BackendZone{addr("10.1.1.3"): {Zone: "a", ForZones: []ForZone{{"a"}}}},
			Labels:    map[string]string{}, Selector: map[string]string{"app": "web"},
		}),
		SliceStateKey("east", "shop", "web-v4"): slice.proto(),
		Nodes.StateSyncedKey("east"):            TimeText(at),
		HeartbeatKey:                            TimeText(at.Add(123456789)),
	} {
		want, there := values[key]
		if !there {
			t.Errorf("no fixture of %s", key)
			continue
		}
		if isSlice(key) {
			want = unhex(t, want)
		}
		if diff := cmp.Diff(string(want), string(value)); diff != "" {
			t.Errorf("%s (-fixture +written):\n%s", key, diff)
		}
	}
	b := slice.Marshal()
	if magic := "\x28\xb5\x2f\xfd"; !strings.HasPrefix(string(b), magic) {
		t.Errorf("not a zstd frame: %x", b[:4])
	}
	if string(b) != string(slice.Marshal()) {
		t.Error("the same slice gave other bytes")
	}
}

// freely lists the fields whose names are data, such as addresses and labels.
var freely = []string{"frontends", "backends", "hostnames", "zones", "labels", "selector", "Labels", "Annotations", "annotations"}

// Whatever field has a value of another type is refused, and a field that nobody knows
// is not.
func TestTypesOfFields(t *testing.T) {
	for _, file := range []string{"written.txtar", "read.txtar"} {
		keys, values := fixtures(t, file)
		for _, key := range keys {
			var value any
			if json.Unmarshal(values[key], &value) != nil || strings.HasPrefix(key, "again ") {
				continue // not JSON
			}
			encode := func() []byte {
				b, err := json.Marshal(value)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			known, err := readAndWrite(key, encode())
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			var walk func(path string, v any, set func(any))
			walk = func(path string, v any, set func(any)) {
				var wrong []any
				switch v := v.(type) {
				case map[string]any:
					wrong = []any{"x", 1, true, []any{1}}
					for name, field := range v {
						if strings.EqualFold(name, "tomorrow") || name == "NodeIdentity" || name == "K8sPodUID" {
							continue // not known to us
						}
						walk(path+"/"+name, field, func(to any) { v[name] = to })
					}
					at := strings.Split(path, "/")
					if last := at[len(at)-1]; !slices.Contains(freely, last) && !slices.Contains(freely, at[max(0, len(at)-2)]) {
						v["someday"] = map[string]any{"a": []any{1}}
						if got, err := readAndWrite(key, encode()); err != nil || string(got) != string(known) {
							t.Errorf("%s%s: with an unknown field: %v", key, path, err)
						}
						delete(v, "someday")
					}
				case []any:
					wrong = []any{"x", 1, true, map[string]any{"a": 1}}
					for i, item := range v {
						walk(fmt.Sprintf("%s/%d", path, i), item, func(to any) { v[i] = to })
					}
				case string:
					wrong = []any{1, true, []any{"x"}, map[string]any{"a": 1}}
				case float64:
					wrong = []any{"1", true, -1, 1.5, 1e20, []any{1}}
				case bool:
					wrong = []any{"true", 1, []any{true}}
				case nil:
					return // its type cannot be seen
				}
				for _, w := range wrong {
					set(w)
					if _, err := readAndWrite(key, encode()); err == nil {
						t.Errorf("%s%s: %v was accepted", key, path, w)
					}
				}
				set(v)
			}
			walk("", value, func(to any) { value = to })
		}
	}
}

// FuzzEntry: for every key and value of Cilium's format, whatever is accepted reads back
// the same.
func FuzzEntry(f *testing.F) {
	for _, file := range []string{"written.txtar", "read.txtar"} {
		keys, values := fixtures(f, file)
		for _, key := range keys {
			if !strings.HasPrefix(key, "again ") {
				f.Add(key, stored(f, key, values[key]))
			}
		}
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		once, err := readAndWrite(key, value)
		if err != nil {
			return
		}
		again := once
		if isSlice(key) && !strings.HasPrefix(key, CiliumSyncedPrefix) && !strings.HasPrefix(key, ClusterConfigPrefix) {
			again = encoder.EncodeAll(once, nil)
		}
		if twice, err := readAndWrite(key, again); err != nil || string(once) != string(twice) {
			t.Errorf("%s: %q, then %q, %v", key, once, twice, err)
		}
	})
}

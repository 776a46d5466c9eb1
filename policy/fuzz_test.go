package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/weft-mesh/weft/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FuzzCompile derives a world from the fuzzed seed and compares every verdict of its
// tables with the oracle, also after identities were added one by one.
func FuzzCompile(f *testing.F) {
	for seed := range uint64(60) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { checkWorld(t, rand.New(rand.NewPCG(seed, 2))) })
}

func checkWorld(t *testing.T, r *rand.Rand) {
	w := World{Cluster: "west", Identities: map[identity.Number]identity.Labels{}}
	var text strings.Builder
	for i := range 1 + r.IntN(5) {
		text.WriteString(randomPolicy(r, i))
	}
	for i := range r.IntN(3) {
		text.WriteString(randomGroup(r, i))
	}
	var err error
	if w.Policies, w.Groups, err = ParseManifest([]byte(text.String())); err != nil {
		t.Fatalf("%v\n%s", err, text.String())
	}
	blocks, names := Blocks(w.Policies), NamedPorts(w.Policies)
	var subjects []identity.Labels
	for i := range 12 + r.IntN(20) {
		labels := withAddress(r, withPorts(r, randomPod(r), names), blocks)
		w.Identities[identity.Number(0x010000+i)] = labels
		if len(subjects) < 4 {
			subjects = append(subjects, labels)
		}
	}
	i := uint32(1)
	w.Identities[identity.RemoteNode] = withAddress(r, identity.ReservedLabels(identity.RemoteNode), blocks)
	for _, labels := range CIDRIdentities(w.Policies, w.Groups, []netip.Addr{netip.MustParseAddr("192.0.2.7")}) {
		w.Identities[identity.LocalNumber(i)] = labels
		i++
	}
	whole, err := Compile(w, subjects)
	if err != nil {
		t.Fatal(err)
	}
	checkFlows(t, r, w, whole, subjects, text.String(), 300)

	// The same world, learnt one identity at a time, gives the same verdicts.
	some := World{Cluster: w.Cluster, Policies: w.Policies, Groups: w.Groups, Identities: map[identity.Number]identity.Labels{}}
	grown, err := Compile(some, subjects)
	if err != nil {
		t.Fatal(err)
	}
	for n, labels := range w.Identities {
		if !grown.Knows(labels) { // a named port has a new number
			some.Identities[n] = labels
			if grown, err = Compile(some, subjects); err != nil {
				t.Fatal(err)
			}
			continue
		}
		before := maps.Clone(grown.Entries)
		grown.AddIdentity(n, labels)
		more := grown.Take().Entries
		for key, e := range before {
			if grown.Entries[key] != e {
				t.Fatalf("identity %v changed entry %+v from %+v to %+v", n, key, e, grown.Entries[key])
			}
		}
		if len(before)+len(more) != len(grown.Entries) {
			t.Fatalf("%d entries and %d new ones make %d", len(before), len(more), len(grown.Entries))
		}
		some.Identities[n] = labels
		if r.IntN(4) == 0 {
			checkFlows(t, r, some, grown, subjects, text.String(), 30)
		}
	}
	checkFlows(t, r, w, grown, subjects, text.String(), 100)

	slices.Reverse(w.Policies)
	again, err := Compile(w, subjects)
	if err != nil {
		t.Fatal(err)
	}
	whole.compiler, again.compiler = nil, nil
	if !reflect.DeepEqual(whole, again) {
		t.Fatalf("another order of policies makes other tables:\n%s", cmp.Diff(whole, again, cmp.AllowUnexported(Tables{})))
	}
}

func checkFlows(t *testing.T, r *rand.Rand, w World, tables *Tables, subjects []identity.Labels, text string, flows int) {
	peers := slices.Collect(maps.Keys(w.Identities))
	peers = append(peers, identity.Unknown, identity.Host, identity.World, identity.WorldIPv6, identity.RemoteNode, identity.UnknownMember, 0x7fffff)
	for range flows {
		f := Flow{
			Subject: subjects[r.IntN(len(subjects))], Direction: Direction(r.IntN(2)), Peer: peers[r.IntN(len(peers))],
			Proto: pick(r, ProtoTCP, ProtoUDP, ProtoSCTP, ProtoICMP, ProtoICMPv6, 47), Port: uint16(r.IntN(12)),
		}
		if r.IntN(10) == 0 {
			f.Port = uint16(r.UintN(65536))
		}
		set, ok, _ := tables.SetOf(f.Subject)
		if !ok {
			t.Fatalf("no set for %v", f.Subject)
		}
		got, want := tables.Verdict(set, f.Direction, f.Peer, f.Proto, f.Port), Evaluate(w, f)
		if problem := disagree(tables, got, want); problem != "" {
			t.Fatalf("%s: %+v, peer %v\ntables %+v %v\noracle %+v\n%s", problem, f, w.Identities[f.Peer], got, tables.Rules[got.Rule], want, text)
		}
		if len(w.Identities[f.Peer])+len(identity.ReservedLabels(f.Peer)) > 0 && f.Peer != identity.UnknownMember {
			if allow := naively(w, f); allow != want.Allow {
				t.Fatalf("the manifests say %v: %+v, peer %v\noracle %+v\n%s", allow, f, w.Identities[f.Peer], want, text)
			}
		}
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomPod(r *rand.Rand) identity.Labels {
	labels := map[string]string{"app": pick(r, "a", "b", "c")}
	if r.IntN(2) == 0 {
		labels["tier"] = pick(r, "x", "y")
	}
	ns := pick(r, "default", "other")
	return identity.PodLabels(ns, map[string]string{"team": ns}, labels, pick(r, "", "sa"), pick(r, "west", "west", "east"))
}

// withPorts gives a pod's ports the names that policies use, with numbers that differ
// from pod to pod.
func withPorts(r *rand.Rand, labels identity.Labels, names map[string]bool) identity.Labels {
	for _, key := range slices.Sorted(maps.Keys(names)) {
		if proto, name, _ := strings.Cut(key, "/"); r.IntN(2) == 0 {
			labels = identity.NewLabels(append(slices.Clone(labels), PortLabel(proto, name, uint16(1+r.IntN(5))))...)
		}
	}
	return labels
}

// withAddress puts an endpoint into one of the blocks, or into none.
func withAddress(r *rand.Rand, labels identity.Labels, blocks map[netip.Prefix]bool) identity.Labels {
	if in := slices.SortedFunc(maps.Keys(blocks), netip.Prefix.Compare); len(in) > 0 && r.IntN(2) == 0 {
		return identity.NewLabels(append(slices.Clone(labels), BlockLabel(in[r.IntN(len(in))]))...)
	}
	return labels
}

func randomGroup(r *rand.Rand, i int) string {
	cidrs := []string{}
	for range r.IntN(3) {
		cidrs = append(cidrs, pick(r, "10.0.0.0/8", "10.1.2.0/24", "0.0.0.0/0", "203.0.113.0/24", "fd00::/8"))
	}
	text, _ := json.Marshal(map[string]any{
		"apiVersion": APIVersion, "kind": KindCIDRGroup, "spec": map[string]any{"externalCIDRs": cidrs},
		"metadata": map[string]any{"name": fmt.Sprintf("g%d", i), "labels": map[string]any{"of": pick(r, "us", "them")}},
	})
	return "---\n" + string(text) + "\n"
}

// randomNetworkPolicy returns a Kubernetes NetworkPolicy.
func randomNetworkPolicy(r *rand.Rand, i int) string {
	selector := func() map[string]any {
		switch r.IntN(4) {
		case 0:
			return map[string]any{}
		case 1:
			return map[string]any{"matchExpressions": []any{map[string]any{"key": pick(r, "app", "tier"), "operator": pick(r, "In", "NotIn"), "values": []any{pick(r, "a", "x"), "c"}}}}
		case 2:
			return map[string]any{"matchExpressions": []any{map[string]any{"key": "tier", "operator": pick(r, "Exists", "DoesNotExist")}}}
		}
		return map[string]any{"matchLabels": map[string]any{"app": pick(r, "a", "b", "c")}}
	}
	spec := map[string]any{"podSelector": selector()}
	for list, side := range map[string]string{"ingress": "from", "egress": "to"} {
		if r.IntN(3) == 0 {
			continue
		}
		rules := []any{}
		for range r.IntN(3) {
			rule := map[string]any{}
			if r.IntN(5) > 0 {
				peers := []any{}
				for range r.IntN(3) {
					switch r.IntN(4) {
					case 0:
						peers = append(peers, map[string]any{"podSelector": selector()})
					case 1:
						peers = append(peers, map[string]any{"namespaceSelector": pick(r, map[string]any{}, map[string]any{"matchLabels": map[string]any{"team": pick(r, "default", "other")}})})
					case 2:
						peers = append(peers, map[string]any{"podSelector": selector(), "namespaceSelector": map[string]any{"matchLabels": map[string]any{identity.NamespaceName: pick(r, "default", "other")}}})
					case 3:
						block := map[string]any{"cidr": pick(r, "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "::/0")}
						if block["cidr"] != "::/0" && r.IntN(2) == 0 {
							block["except"] = []any{pick(r, "10.1.2.0/24", "10.1.0.0/17")}
						}
						peers = append(peers, map[string]any{"ipBlock": block})
					}
				}
				rule[side] = peers
			}
			if r.IntN(2) == 0 {
				ports := []any{}
				for range r.IntN(3) {
					p := map[string]any{}
					if r.IntN(3) > 0 {
						p["protocol"] = pick(r, "TCP", "UDP", "SCTP")
					}
					switch r.IntN(4) {
					case 0:
					case 1:
						p["port"] = pick(r, "web", "dns")
					case 2:
						p["port"] = 1 + r.IntN(9)
					case 3:
						p["port"], p["endPort"] = 1+r.IntN(9), 10+r.IntN(3)
					}
					ports = append(ports, p)
				}
				rule["ports"] = ports
			}
			rules = append(rules, rule)
		}
		spec[list] = rules
	}
	switch r.IntN(4) {
	case 0:
		spec["policyTypes"] = []any{"Egress"}
	case 1:
		spec["policyTypes"] = []any{"Ingress", "Egress"}
	}
	text, _ := json.Marshal(map[string]any{
		"apiVersion": NetworkAPIVersion, "kind": KindNetwork, "spec": spec,
		"metadata": map[string]any{"name": fmt.Sprintf("p%d", i), "namespace": pick(r, "default", "other")},
	})
	return "---\n" + string(text) + "\n"
}

func randomPolicy(r *rand.Rand, i int) string {
	if r.IntN(4) == 0 {
		return randomNetworkPolicy(r, i)
	}
	doc := map[string]any{"apiVersion": APIVersion, "kind": KindNamespaced}
	meta := map[string]any{"name": fmt.Sprintf("p%d", i), "namespace": pick(r, "default", "other")}
	if r.IntN(3) == 0 {
		doc["kind"] = KindClusterwide
		delete(meta, "namespace")
	}
	doc["metadata"] = meta
	doc["spec"] = randomSpec(r)
	if r.IntN(3) == 0 {
		doc["specs"] = []any{randomSpec(r), randomSpec(r)}
	}
	text, _ := json.Marshal(doc)
	return "---\n" + string(text) + "\n"
}

func randomSpec(r *rand.Rand) map[string]any {
	spec := map[string]any{"endpointSelector": randomSubject(r)}
	for list, prefix := range map[string]string{"ingress": "from", "ingressDeny": "from", "egress": "to", "egressDeny": "to"} {
		if r.IntN(2) == 0 {
			continue
		}
		var items []any
		for range 1 + r.IntN(3) {
			items = append(items, randomItem(r, prefix))
		}
		spec[list] = items
	}
	if len(spec) == 1 {
		spec["ingress"] = []any{map[string]any{}}
	}
	if r.IntN(3) == 0 {
		spec["enableDefaultDeny"] = map[string]any{"ingress": r.IntN(2) == 0, "egress": r.IntN(2) == 0}
	}
	return spec
}

// randomSubject returns a selector that some pod can satisfy.
func randomSubject(r *rand.Rand) map[string]any {
	for {
		s := pick(r, map[string]any{}, randomSelector(r))
		text, _ := json.Marshal(s)
		var in metav1.LabelSelector
		if err := json.Unmarshal(text, &in); err != nil {
			panic(err)
		}
		if parseSelector("", &in, parseKey, &problems{}).reservedWord() == "" {
			return s
		}
	}
}

func randomSelector(r *rand.Rand) map[string]any {
	switch r.IntN(10) {
	case 0:
		return map[string]any{}
	case 8:
		return map[string]any{"matchLabels": map[string]any{"reserved:" + pick(r, "all", "none", "cluster", "world", "world-ipv4", "remote-node"): ""}}
	case 9:
		return map[string]any{"matchExpressions": []any{map[string]any{"key": "reserved:" + pick(r, "all", "cluster", "world-ipv6", "host"), "operator": pick(r, "Exists", "DoesNotExist")}}}
	case 1:
		return map[string]any{"matchExpressions": []any{map[string]any{"key": pick(r, "tier", "app"), "operator": pick(r, "Exists", "DoesNotExist")}}}
	case 2:
		return map[string]any{"matchExpressions": []any{map[string]any{"key": "any:app", "operator": pick(r, "In", "NotIn"), "values": []any{pick(r, "a", "b"), "c"}}}}
	case 3:
		return map[string]any{
			"matchLabels":      map[string]any{"app": pick(r, "a", "b")},
			"matchExpressions": []any{map[string]any{"key": identity.KeyCluster, "operator": "Exists"}, map[string]any{"key": "k8s:" + identity.KeyNamespace, "operator": "Exists"}},
		}
	case 4:
		return map[string]any{"matchLabels": map[string]any{identity.KeyNamespaceLabels + ".team": pick(r, "default", "other")}}
	}
	return map[string]any{"matchLabels": map[string]any{"k8s:app": pick(r, "a", "b", "c"), "tier": pick(r, "x", "y")}}
}

func randomItem(r *rand.Rand, prefix string) map[string]any {
	item := map[string]any{}
	cidr := func() string {
		return pick(r, "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "::/0", "fd00::/8")
	}
	switch r.IntN(8) {
	case 0:
	case 1:
		item[prefix+"Entities"] = []any{pick(r, "all", "world", "cluster", "cluster-mesh", "host", "none", "world-ipv4", "world-ipv6", "kube-apiserver", "remote-node")}
	case 2:
		item[prefix+"CIDR"] = []any{cidr(), cidr()}
	case 3:
		item[prefix+"CIDRSet"] = []any{pick(r,
			map[string]any{"cidr": "10.0.0.0/8", "except": []any{pick(r, "10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/8")}},
			map[string]any{"cidr": "0.0.0.0/0", "except": []any{pick(r, "0.0.0.0/0", "10.0.0.0/8")}},
			map[string]any{"cidrGroupRef": pick(r, "g0", "g1")},
			map[string]any{"cidrGroupSelector": map[string]any{"matchLabels": map[string]any{"of": pick(r, "us", "them")}}},
		)}
		if r.IntN(8) == 0 {
			item[prefix+"CIDR"] = []any{}
		}
	case 4:
		item[prefix+"Endpoints"] = []any{}
	default:
		item[prefix+"Endpoints"] = []any{randomSelector(r), randomSelector(r)}
	}
	switch r.IntN(5) {
	case 0, 1:
		var ports []any
		for range 1 + r.IntN(3) {
			p := map[string]any{"port": fmt.Sprint(r.IntN(10)), "protocol": pick(r, "TCP", "TCP", "UDP", "sctp", "ANY")}
			if r.IntN(4) == 0 {
				p["port"] = pick(r, "web", "dns", "Web")
				ports = append(ports, p)
				continue
			}
			if p["port"] != "0" && r.IntN(2) == 0 {
				p["endPort"] = 10 + r.IntN(3)
			}
			ports = append(ports, p)
		}
		item["toPorts"] = []any{map[string]any{"ports": ports}}
	case 2:
		field := map[string]any{"type": r.IntN(12), "family": pick(r, "IPv4", "IPv6")}
		item["icmps"] = []any{map[string]any{"fields": []any{field}}}
	}
	return item
}

// FuzzParse checks that whatever is accepted reads back the same, and that nothing panics.
func FuzzParse(f *testing.F) {
	corpus, err := filepath.Glob("testdata/manifests/*.yaml")
	if err != nil || len(corpus) == 0 {
		f.Fatalf("no manifests: %v", err)
	}
	for _, file := range corpus {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 10 {
		f.Add([]byte(randomPolicy(r, i)))
		f.Add([]byte(randomNetworkPolicy(r, i)))
		f.Add([]byte(randomGroup(r, i)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		first, groups, err := ParseManifest(text)
		if err != nil {
			return
		}
		for _, p := range first {
			again, err := json.Marshal(p)
			if err != nil {
				t.Fatalf("%v does not encode: %v", p, err)
			}
			second, err := Parse(again)
			if err != nil || len(second) != 1 {
				t.Fatalf("%v does not read back: %v\n%s", p, err, again)
			}
			twice, _ := json.Marshal(second[0])
			if string(twice) != string(again) || !reflect.DeepEqual(p.rules, second[0].rules) {
				t.Fatalf("%v reads back as another:\n%s\n%s", p, again, twice)
			}
		}
		for _, g := range groups {
			again, err := json.Marshal(g)
			if err != nil {
				t.Fatalf("%v does not encode: %v", g, err)
			}
			second, err := ParseGroup(again)
			if err != nil || !reflect.DeepEqual(g.CIDRs, second.CIDRs) || !g.labels.Equal(second.labels) {
				t.Fatalf("%v reads back as another: %v\n%s", g, err, again)
			}
		}
		if _, err := Compile(World{Cluster: "west", Policies: first, Groups: groups}, []identity.Labels{nil}); err != nil {
			t.Fatalf("accepted, but does not compile: %v", err)
		}
	})
}

// FuzzCIDRKey checks that a prefix survives being a label.
func FuzzCIDRKey(f *testing.F) {
	f.Add("10.0.0.0/8")
	f.Add("fd00::/8")
	f.Add("::/0")
	f.Fuzz(func(t *testing.T, text string) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix.Addr().Is4In6() {
			return
		}
		labels, err := identity.ParseLabels(CIDRLabels(prefix).String())
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := cidrOf(labels); !ok || got != prefix.Masked() {
			t.Errorf("%v became %v", prefix, got)
		}
	})
}

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/identity"
)

// people holds the identities of the last testWorld, by name.
var people = map[string]identity.Number{}

// testWorld has pods of two clusters, and some addresses outside.
func testWorld(t testing.TB, manifests string) World {
	t.Helper()
	clear(people)
	w := World{Cluster: "west", Identities: map[identity.Number]identity.Labels{}}
	add := func(name string, n identity.Number, labels identity.Labels) {
		people[name] = n
		w.Identities[n] = labels
	}
	pod := func(name, ns, cluster string, n identity.Number, labels string) {
		set := map[string]string{}
		for _, l := range strings.Fields(labels) {
			k, v, _ := strings.Cut(l, "=")
			set[k] = v
		}
		add(name, n, identity.PodLabels(ns, map[string]string{"team": ns, "kubernetes.io/metadata.name": ns}, set, "sa-"+name, cluster))
	}
	pod("web", "default", "west", 0x020001, "app=web tier=front")
	pod("frontend", "default", "west", 0x020002, "app=frontend")
	pod("intruder", "default", "west", 0x020003, "app=intruder")
	pod("other/frontend", "other", "west", 0x020004, "app=frontend")
	pod("east/frontend", "default", "east", 0x010001, "app=frontend")
	pod("east/intruder", "default", "east", 0x010002, "app=intruder")
	pod("east/other/frontend", "other", "east", 0x010003, "app=frontend")
	for n, labels := range identity.AllReserved() {
		add(n.String(), n, labels)
	}
	people["never seen"] = 0x030001

	var err error
	if w.Policies, w.Groups, err = ParseManifest([]byte(manifests)); err != nil {
		t.Fatalf("Parse: %v\n%s", err, manifests)
	}
	prefixes := CIDRIdentities(w.Policies, w.Groups, nil)
	for i, prefix := range slices.SortedFunc(maps.Keys(prefixes), netip.Prefix.Compare) {
		add(prefix.String(), identity.LocalNumber(uint32(i+1)), prefixes[prefix])
	}
	return w
}

func parse(t testing.TB, manifests string) []*Policy {
	t.Helper()
	ps, err := Parse([]byte(manifests))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, manifests)
	}
	return ps
}

// cnp writes a policy for app=web in namespace default with the given spec.
func cnp(body string) string { return named("p", body) }

func named(name, body string) string {
	return fmt.Sprintf("---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s, namespace: default}\nspec:\n  endpointSelector: {matchLabels: {app: web}}\n%s\n", name, indent(body))
}

// netpol writes a Kubernetes NetworkPolicy.
func netpol(body string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  podSelector: {matchLabels: {app: web}}\n%s\n", indent(body))
}

func ccnp(name, body string) string {
	return fmt.Sprintf("---\napiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: %s}\nspec:\n  endpointSelector: {}\n%s\n", name, indent(body))
}

func indent(body string) string {
	lines := strings.Split(strings.Trim(body, "\n"), "\n")
	base := len(lines[0]) - len(strings.TrimLeft(lines[0], " \t"))
	for i, l := range lines {
		lines[i] = "  " + strings.ReplaceAll(l[min(base, len(l)):], "\t", "  ")
	}
	return strings.Join(lines, "\n")
}

// both judges by tables and by oracle, and fails if they disagree.
func both(t testing.TB, w World, tables *Tables, f Flow) Judgement {
	t.Helper()
	set, ok, _ := tables.SetOf(f.Subject)
	if !ok {
		t.Fatalf("no policy set for %v", f.Subject)
	}
	got, want := tables.Verdict(set, f.Direction, f.Peer, f.Proto, f.Port), Evaluate(w, f)
	if problem := disagree(tables, got, want); problem != "" {
		t.Fatalf("%v %v peer %v proto %d port %d: %s\ntables %+v\noracle %+v", f.Subject, f.Direction, f.Peer, f.Proto, f.Port, problem, got, want)
	}
	return want
}

func disagree(tables *Tables, got Verdict, want Judgement) string {
	if got.Allow != want.Allow {
		return "verdicts differ"
	}
	matching := want.Allowing
	if !got.Allow {
		matching = want.Denying
	}
	switch {
	case got.Default && len(want.Allowing)+len(want.Denying) > 0:
		return "default, though a rule matches"
	case !got.Default && !slices.Contains(matching, tables.Rules[got.Rule]):
		return "the rule named is none that decides"
	case got.Default && got.Rule != 0:
		return "a default has no rule"
	}
	return ""
}

func compileFor(t testing.TB, w World, subjects ...string) *Tables {
	t.Helper()
	var labels []identity.Labels
	for _, s := range subjects {
		labels = append(labels, w.Identities[people[s]])
	}
	tables, err := Compile(w, labels)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// passing lists everyone who may reach the subject on this port, or be reached by it.
func passing(t testing.TB, w World, subject string, dir Direction, proto uint8, port uint16) []string {
	t.Helper()
	tables := compileFor(t, w, subject)
	var out []string
	for name, n := range people {
		if both(t, w, tables, Flow{w.Identities[people[subject]], dir, n, proto, port}).Allow {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func prefixOf(t testing.TB, text string) netip.Prefix {
	t.Helper()
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		t.Fatal(err)
	}
	return prefix
}

// The entity cluster and the label reserved:cluster mean the API servers too, so
// either makes their addresses known.
func TestAPIServersHaveIdentitiesWhereAPolicyMeansThem(t *testing.T) {
	server := netip.MustParseAddr("192.0.2.7")
	for body, want := range map[string]bool{
		"egressDeny: [{toEntities: [kube-apiserver]}]":                                      true,
		"egressDeny: [{toEntities: [cluster]}]":                                             true,
		`egressDeny: [{toEndpoints: [{matchLabels: {"reserved:cluster": ""}}]}]`:            true,
		`egress: [{toEndpoints: [{matchLabels: {"reserved:kube-apiserver": ""}}]}]`:         true,
		"egressDeny: [{toEntities: [world]}]":                                               false,
		"egressDeny: [{toEndpoints: [{matchLabels: {app: cluster}}]}]":                      false,
		"egress: [{toEntities: [all]}]\ningressDeny: [{fromEntities: [host, remote-node]}]": false,
	} {
		ids := CIDRIdentities(parse(t, cnp(body)), nil, []netip.Addr{server})
		if _, got := ids[netip.PrefixFrom(server, 32)]; got != want {
			t.Errorf("%s: the API server has an identity: %v, want %v", body, got, want)
		}
	}
}

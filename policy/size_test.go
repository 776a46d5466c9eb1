package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/identity"
)

// manyWorkloads returns identities that differ in two labels: one of ten groups, and a
// name of their own.
func manyWorkloads(n int) map[identity.Number]identity.Labels {
	out := make(map[identity.Number]identity.Labels, n)
	ns := map[string]string{"kubernetes.io/metadata.name": "default"}
	for i := range n {
		pod := map[string]string{"group": fmt.Sprint("g", i%10), "app": fmt.Sprint("a", i), "app.kubernetes.io/part-of": "shop"}
		out[identity.Number(0x10000+i)] = identity.PodLabels("default", ns, pod, "runner", "west")
	}
	return out
}

// manyRules returns rules that each allow a tenth of all workloads to a port of its own.
func manyRules(n int) string {
	var rules strings.Builder
	rules.WriteString("ingress:\n")
	for i := range n {
		fmt.Fprintf(&rules, "- fromEndpoints: [{matchLabels: {group: g%d}}]\n  toPorts: [{ports: [{port: \"%d\", protocol: TCP}]}]\n", i%10, 1000+i)
	}
	return cnp(rules.String())
}

func sized(t testing.TB, identities, rules int) (World, []identity.Labels) {
	w := World{Cluster: "west", Policies: parse(t, manyRules(rules)), Identities: manyWorkloads(identities)}
	subject := identity.PodLabels("default", nil, map[string]string{"app": "web"}, "", "west")
	return w, []identity.Labels{subject}
}

func TestEntriesFollowTheRulesAndNotTheIdentities(t *testing.T) {
	var before int
	for _, n := range []int{1_000, 20_000} {
		w, subjects := sized(t, n, 100)
		tables, err := Compile(w, subjects)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(tables.Entries); got >= 2_000 || before != 0 && got != before {
			t.Errorf("%d identities and 100 rules make %d entries, %d before", n, got, before)
		}
		before = len(tables.Entries)

		tables.AddIdentity(0x20000, w.Identities[0x10003])
		if more := tables.Take(); more.Classes[0x20000] == 0 || len(more.Entries) != 0 {
			t.Errorf("one more identity of a known kind: %+v", more)
		}
	}
	t.Logf("%d entries", before)
}

// A class takes no room where it is treated like everyone else.
func TestNoEntryThatSaysNothing(t *testing.T) {
	for _, tt := range []struct {
		name, manifests string
		want            int
	}{
		{"no rules for anyone", cnp("ingress: [{}]"), 0},
		{"one for whoever", cnp("ingress: [{fromEntities: [all]}]"), 1},
		{"a workload whom whoever covers", cnp("ingress: [{fromEntities: [all]}, {fromEndpoints: [{matchLabels: {app: frontend}}]}]"), 1},
		{"its ports too", cnp("ingress: [{fromEntities: [all]}, {fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: \"80\"}]}]}]"), 1},
		{"one workload, one port", cnp("ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]"), 1},
		{"any port covers one", cnp("ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}, {fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: \"80\"}]}]}]"), 1},
		{"adjoining ranges are one class", cnp("ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: \"80\", endPort: 99, protocol: TCP}]}]}]"), 1},
		{"two policies alike", named("a", "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]") + named("b", "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]"), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tables := compileFor(t, testWorld(t, tt.manifests), "web")
			if len(tables.Entries) != tt.want {
				t.Errorf("%d entries, want %d: %v", len(tables.Entries), tt.want, tables.Entries)
			}
		})
	}
}

func TestSubjectsUnderTheSameRulesShareASet(t *testing.T) {
	w := testWorld(t, named("a", "ingress: [{}]")+ccnp("everyone", "egress: [{toEntities: [all]}]"))
	tables := compileFor(t, w, "web", "frontend", "intruder")
	sets := map[string]uint32{}
	for _, name := range []string{"web", "frontend", "intruder"} {
		set, ok, _ := tables.SetOf(w.Identities[people[name]])
		if !ok {
			t.Fatalf("no set for %s", name)
		}
		sets[name] = set
	}
	if len(tables.Sets) != 2 || sets["frontend"] != sets["intruder"] || sets["web"] == sets["frontend"] {
		t.Fatalf("sets %v of %v", sets, tables.Sets)
	}
	got := tables.Sets[sets["web"]]
	want := SetInfo{Enforced: [2]bool{Egress: true, Ingress: true}, Policies: [2][]PolicyName{
		Egress: {{KindClusterwide, "", "everyone"}}, Ingress: {{KindNamespaced, "default", "a"}}}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("web's set is %v, want %v", got, want)
	}
	stranger := identity.PodLabels("default", nil, map[string]string{"app": "web"}, "", "west")
	if set, ok, _ := tables.SetOf(stranger); !ok || set != sets["web"] {
		t.Errorf("another workload under the same rules: set %d, %v", set, ok)
	}
}

func TestSubjectOfAnotherKindGetsASetOfItsOwn(t *testing.T) {
	w := testWorld(t, cnp("ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]"))
	tables := compileFor(t, w, "frontend")
	if set, ok, _ := tables.SetOf(w.Identities[people["frontend"]]); !ok || set != 0 {
		t.Errorf("frontend has set %d, %v; want none", set, ok)
	}
	set, ok, err := tables.SetOf(w.Identities[people["web"]])
	if !ok || err != nil || set == 0 || len(tables.Take().Entries) == 0 {
		t.Errorf("web has set %d, %v, %v", set, ok, err)
	}
	for _, name := range []string{"frontend", "intruder"} {
		both(t, w, tables, Flow{w.Identities[people["web"]], Ingress, people[name], ProtoTCP, 80})
	}
}

func TestAPolicyGivenTwice(t *testing.T) {
	p := parse(t, cnp("ingress: [{}]"))
	if _, err := Compile(World{Cluster: "west", Policies: append(p, p...)}, nil); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Errorf("got %v", err)
	}
}

func TestRulesSayWhereTheyStand(t *testing.T) {
	w := testWorld(t, cnp("log: {value: front}\ningress: [{fromEntities: [host]}, {fromEntities: [remote-node]}]\nenableDefaultDeny: {ingress: false}")+
		ccnp("c", "ingressDeny: [{fromEntities: [world]}]"))
	tables := compileFor(t, w, "web")
	set, _, _ := tables.SetOf(w.Identities[people["web"]])
	for peer, want := range map[identity.Number]string{
		identity.RemoteNode: "CiliumNetworkPolicy default/p ingress[1]",
		identity.World:      "CiliumClusterwideNetworkPolicy c ingressDeny[0]",
	} {
		v := tables.Verdict(set, Ingress, peer, ProtoTCP, 80)
		if got := tables.Rules[v.Rule].String(); got != want {
			t.Errorf("%v: %s, want %s", peer, got, want)
		}
	}
	if log := tables.Rules[len(tables.Rules)-1].Log; log != "front" {
		t.Errorf("log is %q", log)
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{1_000, 20_000} {
		for _, rules := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("identities=%d/rules=%d", n, rules), func(b *testing.B) {
				w, subjects := sized(b, n, rules)
				var entries int
				for b.Loop() {
					tables, err := Compile(w, subjects)
					if err != nil {
						b.Fatal(err)
					}
					entries = len(tables.Entries)
				}
				b.ReportMetric(float64(entries), "entries")
			})
		}
	}
}

func BenchmarkAddIdentity(b *testing.B) {
	w, subjects := sized(b, 10_000, 100)
	tables, err := Compile(w, subjects)
	if err != nil {
		b.Fatal(err)
	}
	labels := w.Identities[0x10003]
	b.ReportAllocs()
	for i := uint32(0); b.Loop(); i++ {
		tables.AddIdentity(identity.Number(0x20000+i%0x10000), labels)
	}
}

func BenchmarkParse(b *testing.B) {
	text := []byte(manyRules(100))
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

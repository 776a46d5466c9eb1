package program

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// small is a bench whose policy map has room for n rows.
func small(t *testing.T, limit int) *bench {
	b := newBench(t)
	m := bpftest.New()
	m.Policy = bpftest.NewTable[bpf.PolicyKey, bpf.PolicyEntry]("policy", limit)
	b.maps = tapMaps(m, b.tap)
	b.restart()
	return b
}

// late makes everything due that waits for a moment after the last switch.
func (b *bench) late() {
	if !b.p.policies.stale.IsZero() {
		b.p.policies.stale = time.Now().Add(-time.Hour)
	}
	b.p.pass(b.t.Context())
}

// wide lets an intruder in at ten ports: more entries than small tables hold.
func wide() string {
	var text strings.Builder
	text.WriteString(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: wide, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: intruder, io.cilium.k8s.policy.cluster: west}}]
    toPorts:
    - ports:
`)
	for port := range 10 {
		fmt.Fprintf(&text, "      - {port: \"%d\", protocol: TCP}\n", 80+port)
	}
	return text.String()
}

func TestPolicyThatDoesNotFitChangesNothing(t *testing.T) {
	for _, before := range []string{"", allowFrontend} {
		b := small(t, 8)
		web := b.pod("web-1", "web", "10.1.1.2", 65537)
		b.remote("frontend", 131073)
		b.remote("intruder", 131074)
		b.policy("web", before)
		b.pass()
		b.late()
		b.tap.after = func() {
			if ok, known := judgePacket(b.maps, web, 131073, bpf.Ingress, 6, 80); !ok || !known {
				t.Fatal("the frontend is kept out")
			}
			if ok, _ := judgePacket(b.maps, web, 131074, bpf.Ingress, 6, 80); ok != (before == "") {
				t.Fatal("the intruder's verdict changed")
			}
		}
		b.policy("wide", wide())
		for range 5 {
			b.pass()
			b.late()
		}
		problems := tables.All(b.tab.DB.ReadTxn(), b.tab.Problems)
		if len(problems) != 1 || !strings.Contains(problems[0].Error, "--limit-policy") {
			t.Errorf("problems: %+v", problems)
		}
		if n := len(rowsIn(b.maps.Sets)); n > 4 {
			t.Errorf("%d sets after a few attempts", n)
		}
	}
}

// What a failed attempt leaves must neither take effect nor take up room.
func TestPolicyFitsAfterOneThatDidNot(t *testing.T) {
	for range 20 { // rows are written in any order
		b := small(t, 8)
		web := b.pod("web-1", "web", "10.1.1.2", 65537)
		b.remote("frontend", 131073)
		b.remote("intruder", 131074)
		b.pass()
		b.policy("wide", wide())
		b.pass()
		if problems := tables.All(b.tab.DB.ReadTxn(), b.tab.Problems); len(problems) != 1 {
			t.Fatalf("the wide policy fits: %+v", problems)
		}
		b.tap.after = func() {
			s, _, _ := b.maps.Settings.Lookup(0)
			row, _, _ := b.maps.Endpoints.Lookup(web)
			if info, _, _ := b.maps.Sets.Lookup(bpf.SetKey{Gen: s.PolicyGen, Set: row.Set}); info.Enforced[bpf.Ingress] == 0 {
				return
			}
			for port := range uint16(20) {
				if ok, _ := judgePacket(b.maps, web, 131074, bpf.Ingress, 6, 80+port); ok {
					t.Fatalf("the intruder gets in at port %d", 80+port)
				}
			}
		}
		b.policy("wide", "")
		b.policy("web", allowFrontend)
		b.pass()
		b.late()
		b.want("frontend", web, 131073, 80, true)
		b.want("intruder", web, 131074, 80, false)
		if problems := tables.All(b.tab.DB.ReadTxn(), b.tab.Problems); len(problems) > 0 {
			t.Fatalf("problems left: %+v", problems[0])
		}
	}
}

// TestNoGapBetweenNoPolicyAndOne fails every write once in turn while a pod's first
// policy comes and goes, cleaning up right after each switch.
func TestNoGapBetweenNoPolicyAndOne(t *testing.T) {
	const writes = 80 // at least as many as there are
	for failAt := range writes {
		b := newBench(t)
		web := b.pod("web-1", "web", "10.1.1.2", 65537)
		b.remote("frontend", 131073)
		b.pass()
		b.tap.after = func() {
			if ok, known := judgePacket(b.maps, web, 131073, bpf.Ingress, 6, 80); !ok || !known {
				t.Fatalf("write %d fails: the frontend is kept out", failAt)
			}
		}
		n := 0
		b.tap.before = func() error {
			if n++; n == failAt {
				return errors.New("injected")
			}
			return nil
		}
		for _, text := range []string{allowFrontend, ""} {
			b.policy("web", text)
			for range 4 {
				b.late()
			}
		}
		if n == 0 || failAt == 0 && n >= writes {
			t.Fatalf("%d writes", n)
		}
		row, _, _ := b.maps.Endpoints.Lookup(web)
		if row.Set != noSet {
			t.Errorf("write %d fails: set %d without a policy", failAt, row.Set)
		}
	}
}

// An identity that comes after one whose class the kernel could not take is not put into
// that class either: the entries that deny may be missing.
func TestNobodyIsInAClassThatIsNotWritten(t *testing.T) {
	b := newBench(t)
	m := bpftest.New()
	full := bpftest.NewTable[bpf.PolicyKey, bpf.PolicyEntry]("policy", 1000)
	m.Policy = full
	b.maps = tapMaps(m, b.tap)
	b.restart()
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	b.remote("frontend", 131073)
	b.policy("web", `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEntities: [all]}]
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: intruder, io.cilium.k8s.policy.cluster: west}}]}]
`)
	b.pass()
	b.late()
	b.want("frontend", web, 131073, 80, true)
	b.tap.after = func() {
		for intruder := identity.Number(131074); intruder < 131084; intruder++ {
			if ok, _ := judgePacket(b.maps, web, intruder, bpf.Ingress, 6, 80); ok {
				t.Fatalf("intruder %d gets in", intruder)
			}
		}
	}
	full.Fail(func(string, bpf.PolicyKey) error { return errors.New("no memory") })
	b.write(func(txn statedb.WriteTxn) {
		for intruder := identity.Number(131074); intruder < 131084; intruder++ {
			tables.Put(txn, b.tab.Identities, &tables.Identity{Cluster: "west", Number: intruder, Labels: identity.PodLabels("shop", nil, map[string]string{"app": "intruder"}, "default", "west")})
		}
	})
	b.p.pass(t.Context())
	b.p.pass(t.Context())
	full.Fail(nil)
	b.pass()
	if len(rowsIn(b.maps.Classes)) < 10 {
		t.Error("the intruders are still unknown")
	}
}

// The number of a prefix that no policy names goes even if its row becomes somebody's,
// whether this agent has named it or one before.
func TestNumberOfAnAnnexedPrefixGoes(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restarts), func(t *testing.T) {
			b := newBench(t)
			b.policy("web", fmt.Sprintf(allowTo, "10.3.0.0/16")) // of no pod here
			b.pass()
			n, ok := b.p.cidrs[netip.MustParsePrefix("10.3.0.0/16")]
			if !ok {
				t.Fatal("the prefix has no number")
			}
			b.policy("web", "")
			if restarts {
				b.restart()
			}
			b.pass()
			b.write(func(txn statedb.WriteTxn) {
				tables.Put(txn, b.tab.Clusters, &tables.Cluster{Name: "north", Peer: &wire.Peer{Name: "north", ID: 3, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")}}})
			})
			b.settle() // without a restart, gives up the prefix in the pass that finds the peer
			if _, ok := rowsIn(b.maps.Classes)[bpf.ClassKey{Gen: b.p.policies.gen, Identity: uint32(n)}]; ok {
				t.Errorf("number %v still has a class", n)
			}
		})
	}
}

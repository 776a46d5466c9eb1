package program

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// resting is a flow between a pod of this node and an address, with the verdict that the
// datapath would remember.
type resting struct {
	pod, remote bpf.Addr
	dir         bpf.Direction
}

type remembered struct {
	sum     uint32 // of revisions, as in lib/revision.h
	who     bpf.IPInfo
	set     uint32
	allowed bool
}

// locate finds who has an address as the datapath does.
func locate(m *bpf.Maps, a bpf.Addr) bpf.IPInfo {
	if ep, ok, _ := m.Endpoints.Lookup(a); ok {
		return bpf.IPInfo{Identity: ep.Identity}
	}
	if info, ok, _ := m.IPs.Lookup(a); ok {
		return info
	}
	for bits := 128; bits >= 0; bits-- {
		p := netip.PrefixFrom(netip.AddrFrom16(a), bits).Masked()
		if info, ok, _ := m.Prefixes.Lookup(bpf.PrefixKey{Bits: uint32(bits), Addr: bpf.Addr(p.Addr().As16())}); ok {
			return info
		}
	}
	return bpf.IPInfo{Identity: uint32(identity.World)}
}

// sum is what the datapath compares for a flow that was judged by this identity.
func (f resting) sum(m *bpf.Maps, n uint32) uint32 {
	sum := rowsIn(m.Settings)[0].Revision
	for _, i := range []uint32{bpf.RevisionOf(f.pod), bpf.RevisionOf(f.remote), bpf.RevisionOfIdentity(n)} {
		r, _, _ := m.Revisions.Lookup(i)
		sum += r
	}
	return sum
}

func (f resting) judge(m *bpf.Maps) remembered {
	r := remembered{who: locate(m, f.remote)}
	ep, _, _ := m.Endpoints.Lookup(f.pod)
	r.set = ep.Set
	if r.who.Flags&bpf.IPMember != 0 && r.who.Identity == 0 {
		r.who.Identity = uint32(identity.UnknownMember)
	}
	r.sum = f.sum(m, r.who.Identity)
	ok, known := judgePacket(m, f.pod, identity.Number(r.who.Identity), f.dir, 6, 80)
	r.allowed = ok && known
	return r
}

// restingFlows are flows between every pod of this node and some addresses.
func restingFlows(m *bpf.Maps) (flows []resting) {
	for pod, ep := range rowsIn(m.Endpoints) {
		if ep.Held != 0 {
			continue
		}
		for cluster := byte(1); cluster < 4; cluster++ {
			for node := byte(1); node < 4; node++ {
				for host := range byte(6) {
					remote := bpf.AddrOf(netip.AddrFrom4([4]byte{10, cluster, node, host}))
					flows = append(flows, resting{pod, remote, bpf.Egress}, resting{pod, remote, bpf.Ingress})
				}
			}
		}
		for _, remote := range []string{"192.0.2.1", "192.0.2.9", "192.0.1.2", "203.0.113.7"} {
			flows = append(flows, resting{pod, bpf.AddrOf(netip.MustParseAddr(remote)), bpf.Egress})
		}
	}
	return flows
}

// A verdict that a flow remembers is the one that it would get now, unless a revision
// says that it has to be judged again: whatever changes, in whatever order, with failing
// writes and restarts in between. And no revision is raised without a cause.
func TestNoVerdictOutlivesWhatItRestsOn(t *testing.T) {
	var kept, judged, narrow int
	for seed := range uint64(20) {
		b := newBench(t)
		b.maps = tapMaps(bpftest.New(), b.tap)
		b.restart()
		c := changer{b, rand.New(rand.NewPCG(seed, 9)), false}
		memory := map[resting]remembered{}
		members := map[bpf.MemberKey]uint32{} // what a flow that only rests on its backend would keep
		for step := range 60 {
			b.write(func(txn statedb.WriteTxn) {
				for range 1 + c.IntN(3) {
					c.change(txn)
				}
			})
			switch c.IntN(10) {
			case 0:
				b.restart()
			case 1:
				b.tap.before = func() error {
					if c.IntN(3) == 0 {
						return errors.New("no memory")
					}
					return nil
				}
				b.p.pass(t.Context())
				b.tap.before = nil
			default:
				before := b.everything()
				settings, revisions := rowsIn(b.maps.Settings)[0], rowsIn(b.maps.Revisions)
				b.p.pass(t.Context())
				if rowsIn(b.maps.Settings)[0].Revision == settings.Revision {
					narrow++
					why := causes(before, b.everything(), settings.PolicyGen)
					for i, r := range rowsIn(b.maps.Revisions) {
						if r != revisions[i] && !why[i] {
							t.Fatalf("seed %d, step %d: revision %d was raised and nothing it stands for has changed", seed, step, i)
						}
					}
				}
			}
			b.pass()
			for f, was := range memory {
				ep, ok, _ := b.maps.Endpoints.Lookup(f.pod)
				if !ok || ep.Held != 0 || f.sum(b.maps, was.who.Identity) != was.sum {
					judged++
					continue
				}
				kept++
				if now := f.judge(b.maps); now != was {
					t.Fatalf("seed %d, step %d: %+v: the verdict %+v is still remembered; it would be %+v", seed, step, f, was, now)
				}
			}
			for k, sum := range members {
				if _, ok, _ := b.maps.Members.Lookup(k); !ok && sum == (resting{remote: k.Addr}).sum(b.maps, 0) {
					t.Fatalf("seed %d, step %d: %v left service %d, and its flows would not notice", seed, step, k.Addr, k.Service)
				}
			}
			clear(memory)
			for _, f := range restingFlows(b.maps) {
				memory[f] = f.judge(b.maps)
			}
			clear(members)
			for k := range rowsIn(b.maps.Members) {
				members[k] = resting{remote: k.Addr}.sum(b.maps, 0)
			}
		}
	}
	t.Logf("%d verdicts kept, %d judged again, %d passes without a new Settings.Revision", kept, judged, narrow)
	if kept < judged || narrow == 0 {
		t.Errorf("%d verdicts kept, %d judged again, %d narrow passes", kept, judged, narrow)
	}
}

// causes are the revisions that the difference between two states explains.
func causes(a, b everything, gen uint32) map[uint32]bool {
	out := map[uint32]bool{}
	for k := range changed(a.ips, b.ips) {
		out[bpf.RevisionOf(k)] = true
	}
	for k := range changed(a.endpoints, b.endpoints) {
		out[bpf.RevisionOf(k)] = true
	}
	for k := range changed(a.prefixes, b.prefixes) {
		if rows, ok := bpf.RevisionsOf(k); ok {
			for i := range rows {
				out[i] = true
			}
		}
	}
	for k := range changed(a.classes, b.classes) {
		if k.Gen == gen {
			out[bpf.RevisionOfIdentity(k.Identity)] = true
		}
	}
	for k := range changed(a.members, b.members) {
		out[bpf.RevisionOf(k.Addr)] = true
	}
	return out
}

// changed are the keys whose rows differ.
func changed[K, V comparable](a, b map[K]V) map[K]bool {
	out := map[K]bool{}
	for k, v := range a {
		if other, ok := b[k]; !ok || other != v {
			out[k] = true
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out[k] = true
		}
	}
	return out
}

// ordered records the writes of some tables, in order.
type ordered[K, V comparable] struct {
	bpf.Table[K, V]
	log *[]string
}

func (o ordered[K, V]) Update(k K, v V) error {
	what := o.Name()
	if now, ok := any(v).(bpf.Settings); ok {
		before, _, _ := o.Lookup(k)
		if what = "generation"; any(before).(bpf.Settings).Revision != now.Revision {
			what = "revision"
		}
	}
	*o.log = append(*o.log, what)
	return o.Table.Update(k, v)
}

func (o ordered[K, V]) UpdateBatch(rows map[K]V) error {
	*o.log = append(*o.log, fmt.Sprint(o.Name(), " ", len(rows)))
	return o.Table.UpdateBatch(rows)
}

func (o ordered[K, V]) Delete(k K) error {
	*o.log = append(*o.log, "delete from "+o.Name())
	return o.Table.Delete(k)
}

// Rows are written before their revisions, and the policy's generation before the
// revision that makes flows see it. One change raises one revision.
func TestRowsComeBeforeTheirRevisions(t *testing.T) {
	b := newBench(t)
	var log []string
	m := *b.maps
	m.Settings, m.Revisions = ordered[uint32, bpf.Settings]{m.Settings, &log}, ordered[uint32, uint32]{m.Revisions, &log}
	m.IPs, m.Classes = ordered[bpf.Addr, bpf.IPInfo]{m.IPs, &log}, ordered[bpf.ClassKey, uint32]{m.Classes, &log}
	m.Endpoints = ordered[bpf.Addr, bpf.Endpoint]{m.Endpoints, &log}
	b.maps = &m
	b.restart()
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	b.remote("frontend", 131073)
	b.policy("web", allowFrontend)
	b.pass()
	for _, c := range []struct {
		name string
		act  func()
		want []string
	}{
		{"nothing", func() {}, nil},
		{"an address", func() { b.address("10.2.1.7", 131073) }, []string{"ips", "revisions 1"}},
		{"it gets another identity", func() { b.address("10.2.1.7", 131074) }, []string{"ips", "revisions 1"}},
		{"an identity is known", func() { b.remote("frontend", 131074) }, []string{"classes", "revisions 1"}},
		{"it has other labels", func() { b.remote("intruder", 131074) }, []string{"classes", "revisions 1"}},
		{"a pod", func() { b.pod("web-2", "web", "10.1.1.3", 65537) }, []string{"endpoints", "revisions 1"}},
		{"an identity goes", func() { b.forget(131074) }, []string{"delete from classes", "revisions 1"}},
		{"a policy goes", func() { b.policy("web", "") }, []string{"endpoints", "revisions 2"}},
		{"one comes for a pod", func() { b.policy("web", allowFrontend) }, []string{"endpoints", "revisions 2"}},
	} {
		log = nil
		c.act()
		b.p.pass(t.Context())
		if log = slices.Compact(log); !slices.Equal(log, c.want) {
			t.Errorf("%s: %v, want %v", c.name, log, c.want)
		}
	}
	if _, ok, _ := b.maps.Endpoints.Lookup(web); !ok {
		t.Error("the pod has no row")
	}
}

// A policy change makes the flows of the pods that it selects be judged again, and no
// others: also when identities move between classes for it, and back when it goes.
func TestAPolicyConcernsThePodsItSelects(t *testing.T) {
	b := newBench(t)
	web, other := b.pod("web-1", "web", "10.1.1.2", 65537), b.pod("other-1", "other", "10.1.1.3", 65538)
	b.remote("frontend", 131073)
	b.remote("intruder", 131074)
	b.policy("other", strings.ReplaceAll(strings.ReplaceAll(allowFrontend, "web", "other"), "frontend", "intruder"))
	b.pass()
	b.settle()
	var set uint32 // web's, while there is a policy
	for i, text := range []string{allowFrontend, ""} {
		name := []string{"comes", "goes"}[i]
		settings, revisions := rowsIn(b.maps.Settings)[0], rowsIn(b.maps.Revisions)
		b.policy("web", text)
		b.pass()
		b.settle()
		if now := rowsIn(b.maps.Settings)[0]; now != settings {
			t.Errorf("a policy %s: settings %+v, before %+v", name, now, settings)
		}
		for i := range changed(revisions, rowsIn(b.maps.Revisions)) {
			if i != bpf.RevisionOf(web) {
				t.Errorf("a policy %s: revision %d was raised; web's is %d, other's %d", name, i, bpf.RevisionOf(web), bpf.RevisionOf(other))
			}
		}
		if row := rowsIn(b.maps.Endpoints)[web]; row.Set != noSet {
			set = row.Set
		}
		if x := b.p.Explain().Of(b.p.settings.PolicyGen); len(x.Sets[set].Policies[bpf.Ingress]) != 1 {
			t.Errorf("a policy %s: an event that is read late names no policy: %+v", name, x.Sets)
		}
		b.want("web, frontend", web, 131073, 80, true)
		b.want("web, intruder", web, 131074, 80, text == "")
		b.want("other, frontend", other, 131073, 80, false)
		b.want("other, intruder", other, 131074, 80, true)
	}
}

func (b *bench) forget(n identity.Number) {
	b.write(func(txn statedb.WriteTxn) {
		tables.Drop(txn, b.tab.Identities, &tables.Identity{Cluster: "west", Number: n})
	})
}

// When most cookies belong to policies that are gone, everything is compiled again.
func TestCookiesDoNotPileUp(t *testing.T) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	b.remote("frontend", 131073)
	b.pass()
	gen, most := b.p.settings.PolicyGen, 0
	for range 100 {
		b.policy("web", strings.Replace(allowFrontend, "ingress:\n", "ingress:\n"+strings.Repeat("  - fromEndpoints: [{matchLabels: {app: other}}]\n", 200), 1))
		b.p.pass(t.Context())
		most = max(most, len(b.p.policies.current.Rules))
	}
	b.want("frontend", web, 131073, 80, true)
	if b.p.settings.PolicyGen != gen+1 || most > 17_000 {
		t.Errorf("%d cookies, generation %d, at first %d", most, b.p.settings.PolicyGen, gen)
	}
}

// What could not be raised stays due, and is not mistaken for raised when it is due
// twice.
func TestRevisionsStayDue(t *testing.T) {
	table := bpftest.New().Revisions.(*bpftest.Table[uint32, uint32])
	r, err := newRevisions(table)
	if err != nil {
		t.Fatal(err)
	}
	a := bpf.AddrOf(netip.MustParseAddr("10.2.1.7"))
	i := bpf.RevisionOf(a)
	r.address(a)
	table.Fail(func(string, uint32) error { return errors.New("no memory") })
	if err := r.raise(); err == nil || !r.pending() {
		t.Errorf("error %v, pending %v", err, r.pending())
	}
	// The kernel may have taken the row before it failed, and a flow have seen it.
	table.Fail(nil)
	if err := table.Update(i, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.raise(); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := table.Lookup(i); n < 2 {
		t.Errorf("revision %d, want more than 1", n)
	}
	// A new agent goes on where the last one stopped, and has everything due.
	again, err := newRevisions(table)
	if err != nil || !again.all {
		t.Fatalf("all %v, error %v", again.all, err)
	}
	again.address(a)
	if err := again.raise(); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := table.Lookup(i); n != 3 {
		t.Errorf("revision %d, want 3", n)
	}
}

// One changed address raises one revision, however many addresses are known.
func TestOneAddressRaisesOneRevision(t *testing.T) {
	p, tab := programOf(t, 1000)
	before, settings := rowsIn(p.cfg.Maps.Revisions), p.settings
	txn := tab.DB.WriteTxn(tab.IPs)
	tables.PutIP(txn, tab, remoteAddress(7, 5000))
	txn.Commit()
	p.pass(t.Context())
	if got := changed(before, rowsIn(p.cfg.Maps.Revisions)); len(got) != 1 || p.settings != settings {
		t.Errorf("%d revisions were raised, settings %+v, before %+v", len(got), p.settings, settings)
	}
}

// The node's own address decides whom it is taken for, so every flow is judged again when
// it changes. A tunnel's device decides nothing.
func TestAnotherOwnAddressConcernsEveryFlow(t *testing.T) {
	b := newBench(t)
	b.pass()
	for _, c := range []struct {
		ifindex  [2]uint32
		internal string
		want     bool
	}{
		{[2]uint32{7, 8}, "10.1.1.1", true},
		{[2]uint32{7, 9}, "10.1.1.1", false},
		{[2]uint32{7, 9}, "10.1.1.2", true},
	} {
		before := rowsIn(b.maps.Settings)[0].Revision
		b.p.SetTunnels(c.ifindex, netip.MustParseAddr(c.internal))
		b.pass()
		now := rowsIn(b.maps.Settings)[0]
		if now.TunnelIfindex != c.ifindex || now.Internal[0].Netip() != netip.MustParseAddr(c.internal) || (now.Revision != before) != c.want {
			t.Errorf("%v, %s: settings %+v, revision before %d, want it raised: %v", c.ifindex, c.internal, now, before, c.want)
		}
	}
}

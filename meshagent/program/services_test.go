package program

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

func backendAt(i int) bpf.Backend {
	return bpf.Backend{Addr: bpf.AddrOf(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})), Port: bpf.PortOf(80)}
}

func frontendWith(clusters map[uint16][]bpf.Backend) *frontend {
	w := &frontend{
		key:   bpf.ServiceKey{Addr: bpf.AddrOf(netip.MustParseAddr("10.101.0.1")), Port: bpf.PortOf(80), Proto: 6},
		slots: clusters, members: map[bpf.MemberKey]bpf.Member{},
	}
	for c := uint16(1); c < 5; c++ {
		backends, ok := clusters[c]
		if !ok {
			continue
		}
		w.groups = append(w.groups, bpf.Group{Count: uint32(len(backends)), Cluster: c, Weight: 1})
		for _, b := range backends {
			w.members[bpf.MemberKey{Addr: b.Addr, Port: b.Port}] = bpf.Member{}
		}
	}
	return w
}

// usable says what is wrong with the maps as a packet would find them.
func usable(m *bpf.Maps) error {
	for key, s := range rowsIn(m.Services) {
		for _, g := range s.Group[:s.Groups] {
			for i := range g.Count {
				b, ok, _ := m.Backends.Lookup(bpf.SlotKey{Service: s.ID, Slot: i, Cluster: g.Cluster})
				if !ok {
					return fmt.Errorf("%v: cluster %d has no slot %d of %d", key, g.Cluster, i, g.Count)
				}
				if _, ok, _ := m.Members.Lookup(bpf.MemberKey{Addr: b.Addr, Service: s.ID, Port: b.Port}); !ok {
					return fmt.Errorf("%v: backend %v is not a member", key, b.Addr)
				}
			}
			if err := listed(m, s, g.Tier); g.Count > 0 && g.Weight > 0 && err != nil {
				return fmt.Errorf("%v: %w", key, err)
			}
		}
	}
	return nil
}

// TestServicesAreUsableAfterEveryWrite changes backends at random, with writes that
// fail and agents that restart in between.
func TestServicesAreUsableAfterEveryWrite(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		tp := &tap{}
		inner := bpftest.New()
		m := *inner
		m.Services = tapped[bpf.ServiceKey, bpf.Service]{inner.Services, tp}
		m.Backends = tappedBatch[bpf.SlotKey, bpf.Backend]{tapped[bpf.SlotKey, bpf.Backend]{inner.Backends, tp}}
		m.Balancing = tapped[uint32, bpf.Balancing]{inner.Balancing, tp}
		m.Maglev = tappedBatch[bpf.MaglevKey, bpf.MaglevSlots]{tapped[bpf.MaglevKey, bpf.MaglevSlots]{inner.Maglev, tp}}
		m.Members = tapped[bpf.MemberKey, bpf.Member]{inner.Members, tp}
		tp.after = func() {
			if err := usable(inner); err != nil && !t.Failed() {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
		failing := false
		tp.before = func() error {
			if failing && r.IntN(6) == 0 {
				return errors.New("injected")
			}
			return nil
		}
		s, err := newBalancer(&m, func(bpf.Addr) {})
		if err != nil {
			t.Fatal(err)
		}
		var id uint32
		for round := range 25 {
			clusters := map[uint16][]bpf.Backend{}
			for c := uint16(1); c < 5; c++ {
				if r.IntN(4) == 0 {
					continue
				}
				for i := range 8 {
					if r.IntN(2) == 0 {
						clusters[c] = append(clusters[c], backendAt(int(c)*256+i))
					}
				}
			}
			if r.IntN(5) == 0 {
				if s, err = newBalancer(&m, func(bpf.Addr) {}); err != nil {
					t.Fatal(err)
				}
			}
			how := randomBalancing(r)
			f := frontendWith(clusters)
			f.how = how
			failing = true
			for range 3 {
				_, _ = s.put(f)
			}
			failing = false
			if _, err := s.put(f); err != nil {
				t.Fatal(err)
			}

			n := 0
			for _, b := range clusters {
				n += len(b)
			}
			if got := rowsIn(inner.Services)[f.key]; how.maglev != (rowsIn(inner.Balancing)[got.ID].Slots > 0) && !t.Failed() {
				t.Errorf("seed %d round %d: maglev %v, row %+v", seed, round, how.maglev, rowsIn(inner.Balancing)[got.ID])
			}
			members := n
			if how.maglev {
				n *= 2
			}
			if got, have := len(rowsIn(inner.Backends)), len(rowsIn(inner.Members)); (got != n || have != members) && !t.Failed() {
				t.Errorf("seed %d round %d: %d slots and %d members, want %d and %d", seed, round, got, have, n, members)
			}
			if stray := strayShares(everything{services: rowsIn(inner.Services), balancing: rowsIn(inner.Balancing), maglev: rowsIn(inner.Maglev)}); stray != "" && !t.Failed() {
				t.Errorf("seed %d round %d: %s", seed, round, stray)
			}
			for _, row := range rowsIn(inner.Services) {
				if id == 0 {
					id = row.ID
				}
				if row.ID != id {
					t.Fatalf("seed %d: the service's number %d became %d", seed, id, row.ID)
				}
			}
		}
		failing = true
		_, _ = s.drop(frontendWith(nil).key)
		failing = false
		for range 2 {
			none := func(bpf.ServiceKey) bool { return false }
			s.prune(none, true, func(key bpf.ServiceKey, err error) { t.Fatalf("%v: %v", key, err) })
			s, _ = newBalancer(&m, func(bpf.Addr) {})
		}
		if n := len(rowsIn(inner.Services)) + len(rowsIn(inner.Backends)) + len(rowsIn(inner.Members)); n != 0 {
			t.Errorf("seed %d: %d rows left of a removed service", seed, n)
		}
	}
}

// tappedBatch also calls the hook before batch deletions, and for every row of batch updates.
type tappedBatch[K, V comparable] struct{ tapped[K, V] }

func (t tappedBatch[K, V]) DeleteBatch(keys []K) error {
	return t.tap.write(func() error { return t.Table.DeleteBatch(keys) })
}

func (t tappedBatch[K, V]) UpdateBatch(rows map[K]V) error {
	for k, v := range rows {
		if err := t.Update(k, v); err != nil {
			return err
		}
	}
	return nil
}

func TestAFullMapSaysWhichAndKeepsWhatFits(t *testing.T) {
	m := bpftest.New()
	m.Backends = bpftest.NewTable[bpf.SlotKey, bpf.Backend]("backends", 3)
	s, err := newBalancer(m, func(bpf.Addr) {})
	if err != nil {
		t.Fatal(err)
	}
	var many []bpf.Backend
	for i := range 5 {
		many = append(many, backendAt(i))
	}
	_, said := s.put(frontendWith(map[uint16][]bpf.Backend{1: many}))
	if !errors.Is(said, bpf.ErrFull) {
		t.Errorf("problems %v", said)
	}
	for _, row := range rowsIn(m.Services) {
		if row.Group[0].Count != 3 {
			t.Errorf("usable backends: %+v", row.Group[0])
		}
	}
	if err := usable(m); err != nil {
		t.Error(err)
	}
}

// A peer that has just joined may not know our keys yet: anything sent to it would be
// lost.
func TestServicesUseAPeerOnceItHasAnswered(t *testing.T) {
	m := bpftest.New()
	rows, err := paths.NewRows(tables.New(), m)
	if err != nil {
		t.Fatal(err)
	}
	v := &view{own: &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1}}, answered: rows.HasAnswered}
	weights := func() (east, west uint16) {
		f := service.Frontend{Addr: netip.MustParseAddr("10.101.0.1"), Port: 80, Protocol: service.TCP,
			Groups: []service.Group{{Cluster: 1}, {Cluster: 2}}}
		g := v.rowsFor(f, func(string) uint16 { return 0 }).groups
		return uint16(g[0].Weight), uint16(g[1].Weight)
	}
	want := func(when string, west uint16) {
		t.Helper()
		if e, got := weights(); e != 1 || got != west {
			t.Errorf("%s: weights %d and %d, want 1 and %d", when, e, got, west)
		}
	}
	answers := func(id identity.ClusterID) {
		t.Helper()
		if err := rows.See(paths.Seen{Clusters: map[identity.ClusterID]probe.Standing{id: probe.Alive}}); err != nil {
			t.Fatal(err)
		}
	}
	rows.Admit(1)
	rows.Admit(2)
	rows.Flush()
	want("joined", 0)
	answers(2)
	if !rows.Answers()[2] {
		t.Error("no news of the answer")
	}
	want("answered", 1)
	if again, err := paths.NewRows(tables.New(), m); err != nil || !again.HasAnswered(2) {
		t.Error("forgotten by a restart", err)
	}
	rows.Expel(2)
	rows.Admit(2)
	rows.Flush()
	want("left and joined again", 0)
	answers(3)
	if len(rowsIn(m.Clusters)) != 2 || rows.HasAnswered(3) {
		t.Error("a cluster that is not a member has a row")
	}
}

// A peer's slice with weight 0 is in maintenance.
func TestAPeersSliceOfWeightZeroDrains(t *testing.T) {
	for weight, want := range map[string]service.Endpoint{
		"0": {Addr: netip.MustParseAddr("10.2.1.2"), Serving: true, Draining: true},
		"5": {Addr: netip.MustParseAddr("10.2.1.2"), Ready: true, Serving: true},
	} {
		s := (&wire.ClusterEndpointSlice{
			Annotations: map[string]string{service.AnnotationWeight: weight},
			Endpoints:   []wire.SliceEndpoint{{Addresses: []string{"10.2.1.2"}}},
		}).Slice()
		if !reflect.DeepEqual(s.Endpoints, []service.Endpoint{want}) {
			t.Errorf("weight %s: %+v", weight, s.Endpoints)
		}
	}
}

func (c changer) service(txn statedb.WriteTxn, cluster string, there bool) {
	row := &tables.Service{Cluster: cluster, Service: service.Service{Namespace: "shop", Name: fmt.Sprint("s", c.IntN(3)), Global: true, Shared: true}}
	if cluster == "east" {
		row.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 101, 0, byte(1 + c.IntN(3))}), six(101, 0, byte(1+c.IntN(3)))}
		switch c.IntN(3) { // of both families, or of one
		case 0:
			row.Addresses = row.Addresses[:1]
		case 1:
			row.Addresses = row.Addresses[1:]
		}
		row.Ports = []service.Port{{Protocol: service.TCP, Port: uint16(80 + c.IntN(2))}}
		row.NodeLocal, row.ExternalLocal = c.IntN(4) == 0, c.IntN(4) == 0
		row.Distribution = service.Distribution(c.IntN(3))
		if c.IntN(2) == 0 {
			row.Ports[0].NodePort = uint16(30080 + c.IntN(2))
		}
		c.outside(&row.Service)
		if row.ExternalLocal && c.IntN(2) == 0 {
			row.HealthPort = 30000
		}
		row.Session = time.Duration(c.IntN(3)) * 100000 * time.Second
		c.balancing(&row.Service)
		if c.IntN(4) == 0 {
			row.Ports = append(row.Ports, service.Port{Protocol: service.TCP, Port: 80})
		}
	} else {
		row.Carried = []tables.Carried{{Ports: []service.SlicePort{{Protocol: service.TCP, Port: 80}}, Addrs: []netip.Addr{c.addr(2, 1, byte(2+c.IntN(3)))}}}
	}
	put(txn, c.tab.Services, row, there)
}

// outside gives a service addresses outside of the mesh, or what some clusters take for inside.
func (c changer) outside(s *service.Service) {
	pick := func() (out []netip.Addr) {
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + c.IntN(2))}), six(203, 0, byte(1+c.IntN(2))), netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + c.IntN(4))}),
			netip.AddrFrom4([4]byte{10, byte(2 + c.IntN(3)), 1, 2}), netip.AddrFrom4([4]byte{10, byte(102 + c.IntN(3)), 0, 2})} {
			if c.IntN(4) == 0 {
				out = append(out, a)
			}
		}
		return out
	}
	s.External, s.Balanced = pick(), pick()
	if s.Ranged = c.IntN(2) == 0; s.Ranged {
		for _, p := range []string{"198.51.100.0/24", "192.0.2.0/31", "fd00::/16", "0.0.0.0/0"} {
			if c.IntN(2) == 0 {
				s.Ranges = append(s.Ranges, netip.MustParsePrefix(p))
			}
		}
	}
}

// hosted is a pod that may have host ports.
func (c changer) hosted() *corev1.Pod {
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: fmt.Sprint("n", 1+c.IntN(4)/3)}}
	for i, at := range []string{"", "0.0.0.0", "::", "192.0.2.1", "10.2.1.2", "203.0.113.1"} {
		if c.IntN(4) == 0 {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{{HostPort: 80 + int32(c.IntN(3)), HostIP: at, ContainerPort: 8080 + int32(i)}}})
		}
	}
	return pod
}

// addresses changes those at which the node offers node ports.
func (c changer) addresses() {
	var all []netip.Addr
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{192, 0, 2, 2}), six(192, 0, 2)} {
		if c.IntN(2) == 0 {
			all = append(all, a)
		}
	}
	c.p.SetAddresses(all)
}

// Node ports lead to the backends of the service at each address of the node that is of its
// families. Those of an earlier agent stay until the addresses are known.
func TestNodePorts(t *testing.T) {
	b := newBench(t)
	front := func(addr string, port uint16) bpf.ServiceKey {
		return keyOf(netip.MustParseAddr(addr), port, service.TCP)
	}
	row := &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: "web", Global: true, Shared: true,
		Addresses: []netip.Addr{netip.MustParseAddr("10.101.0.1")}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []service.Port{{Protocol: service.TCP, Port: 80, NodePort: 30080}}}}
	slice := sliceOf("east", "web-1", "web", netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("10.1.2.2"))
	slice.Derived, slice.Endpoints[0].Node, slice.Endpoints[1].Node = true, "n1", "n2"
	b.write(func(txn statedb.WriteTxn) {
		tables.Drop(txn, b.tab.Clusters, &tables.Cluster{Name: "west"}) // nothing of it has been read
		tables.Put(txn, b.tab.Services, row)
		tables.Put(txn, b.tab.Slices, slice)
	})
	b.pass()
	has := func(when string, want ...bpf.ServiceKey) {
		t.Helper()
		got := rowsIn(b.maps.Services)
		for _, k := range want {
			if _, ok := got[k]; !ok {
				t.Errorf("%s: %v:%v is missing", when, k.Addr, k.Port.Number())
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d frontends, want %d", when, len(got), len(want))
		}
		if where := b.balance(b.everything()); where != "" {
			t.Errorf("%s: %s", when, where)
		}
	}
	own := front("10.101.0.1", 80)
	has("without addresses", own)
	b.p.SetAddresses([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")})
	b.pass()
	first, second := front("192.0.2.1", 30080), front("198.51.100.1", 30080)
	has("with addresses", own, first, second)

	// One backend more is one more for each.
	more := *slice
	more.Endpoints = append(slices.Clone(slice.Endpoints), service.Endpoint{Addr: netip.MustParseAddr("10.1.1.3"), Node: "n1", Ready: true, Serving: true})
	b.write(func(txn statedb.WriteTxn) { tables.Put(txn, b.tab.Slices, &more) })
	b.pass()
	has("another backend", own, first, second)
	if n := rowsIn(b.maps.Services)[second].Group[0].Count; n != 3 {
		t.Errorf("%d backends", n)
	}

	// A client outside stays on the node that it asked, one inside does not.
	local := *row
	local.ExternalLocal = true
	b.write(func(txn statedb.WriteTxn) { tables.Put(txn, b.tab.Services, &local) })
	b.pass()
	of := func(k bpf.ServiceKey) bpf.ServiceKey { k.Scope = bpf.ScopeOutside; return k }
	has("on this node", own, first, second, of(first), of(second))
	rows := rowsIn(b.maps.Services)
	if rows[of(second)].Group[0].Count != 2 || rows[second].Group[0].Count != 3 || rows[own].Group[0].Count != 3 {
		t.Errorf("outside %+v, inside %+v and %+v", rows[of(second)].Group[0], rows[second].Group[0], rows[own].Group[0])
	}
	if rows[second].Timeout.Flags() != bpf.ServiceSplit || rows[own].Timeout.Flags() != 0 {
		t.Errorf("flags %v, inside %v", rows[second].Timeout, rows[own].Timeout)
	}

	b.restart()
	b.p.addressed = false // as with Config.Outside
	b.pass()
	if n := len(rowsIn(b.maps.Services)); n != 5 {
		t.Errorf("%d frontends after a restart", n)
	}
	b.p.SetAddresses([]netip.Addr{netip.MustParseAddr("198.51.100.1")})
	b.pass()
	has("one address left", own, second, of(second))
}

// A backend that is no longer a member keeps its open TCP connections, but no UDP
// flows and no unanswered SYN: right only while it is about to go.
func TestNotReadyBackendsAreNoMembers(t *testing.T) {
	svc := service.Service{Namespace: "shop", Name: "dns", Addresses: []netip.Addr{netip.MustParseAddr("10.101.0.1")},
		Ports: []service.Port{{Protocol: service.UDP, Port: 53}}}
	v := &view{own: &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1}}}
	f := service.Frontends(service.Client{Cluster: 1}, &svc, map[service.ClusterID][]service.Slice{1: {{
		Ports: []service.SlicePort{{Protocol: service.UDP, Port: 53}},
		Endpoints: []service.Endpoint{
			{Addr: netip.MustParseAddr("10.1.1.2"), Ready: true, Serving: true},
			{Addr: netip.MustParseAddr("10.1.1.3")},
			{Addr: netip.MustParseAddr("10.1.1.4"), Serving: true, Terminating: true},
			{Addr: netip.MustParseAddr("10.1.1.5"), Terminating: true},
		},
	}}})
	got := v.rowsFor(f[0], func(string) uint16 { return 0 }).members
	want := map[bpf.MemberKey]bpf.Member{
		{Addr: bpf.AddrOf(netip.MustParseAddr("10.1.1.2")), Port: bpf.PortOf(53)}: {},
		{Addr: bpf.AddrOf(netip.MustParseAddr("10.1.1.4")), Port: bpf.PortOf(53)}: {Terminating: 1},
	}
	if !maps.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
}

// Services with a hand-written slice hear of who has an address also in a pass that writes all
// addresses again.
func TestServicesHearOfAnAddressWhileAllAreWritten(t *testing.T) {
	b := newBench(t)
	row := &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: "web",
		Addresses: []netip.Addr{netip.MustParseAddr("10.101.0.1")}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}}
	slice := sliceOf("east", "web-1", "web", netip.MustParseAddr("10.1.1.2"))
	slice.Endpoints[0].Node = "n1"
	of := func(namespace string) *tables.IP {
		return &tables.IP{Cluster: "east", Prefix: netip.MustParsePrefix("10.1.1.2/32"), Namespace: namespace, Pod: "web-0"}
	}
	b.write(func(txn statedb.WriteTxn) {
		tables.Put(txn, b.tab.Services, row)
		tables.Put(txn, b.tab.Slices, slice)
		tables.PutIP(txn, b.tab, of("shop"))
	})
	b.pass()
	backends := func() uint32 {
		return rowsIn(b.maps.Services)[keyOf(row.Addresses[0], 80, service.TCP)].Group[0].Count
	}
	if n := backends(); n != 1 {
		t.Fatalf("%d backends", n)
	}
	b.write(func(txn statedb.WriteTxn) { tables.PutIP(txn, b.tab, of("other")) })
	b.p.owners.all = true
	b.pass()
	if n := backends(); n != 0 {
		t.Errorf("%d backends, of which one is another namespace's pod", n)
	}
}

// A backend that an earlier agent left, of a peer whose services have not been read again, stays
// for the connections that rest on it, and takes no new ones. Once everything was read, it goes
// unless it is wanted.
func TestABackendOfAPeerThatIsNotReadYetKeepsItsConnections(t *testing.T) {
	b := newBench(t)
	lost, there := netip.MustParseAddr("10.2.1.2"), netip.MustParseAddr("10.2.1.3")
	svc := service.Service{Namespace: "shop", Name: "s0", Global: true, Shared: true, Addresses: []netip.Addr{netip.MustParseAddr("10.101.0.1")}, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}
	synced := func(is bool) {
		b.write(func(txn statedb.WriteTxn) {
			row := &tables.Cluster{Name: "west", Peer: &wire.Peer{Name: "west", ID: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}}
			if is {
				row.Synced = map[wire.Resource]time.Time{wire.Nodes: {}, wire.Identities: {}, wire.IPs: {}, wire.Services: {}}
			}
			tables.Put(txn, b.tab.Clusters, row)
		})
	}
	offer := func(addrs ...netip.Addr) {
		b.write(func(txn statedb.WriteTxn) {
			tables.Put(txn, b.tab.Services, &tables.Service{Cluster: "east", Service: svc})
			tables.Put(txn, b.tab.Slices, sliceOf("west", "s0-0", "s0", addrs...))
		})
	}
	want := func(when string, members, slots int) {
		t.Helper()
		if m, s := len(rowsIn(b.maps.Members)), len(rowsIn(b.maps.Backends)); m != members || s != slots {
			t.Errorf("%s: %d members and %d slots, want %d and %d", when, m, s, members, slots)
		}
	}
	synced(true)
	offer(lost, there)
	b.pass()
	want("at first", 2, 2)
	synced(false)
	offer(there) // as an old copy says
	b.restart()
	b.pass()
	want("not read yet", 2, 1)
	synced(true)
	b.pass()
	want("read", 1, 1)
}

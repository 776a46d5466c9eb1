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
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// While source ranges change, and writes fail, nobody may use a frontend who may neither before
// nor after, and everybody may who may both before and after.
func TestSourceRangesWhileTheyChange(t *testing.T) {
	const all = "0.0.0.0/0"
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 11))
		tp := &tap{}
		inner := bpftest.New()
		m := *inner
		m.Services = tapped[bpf.ServiceKey, bpf.Service]{inner.Services, tp}
		m.Sources = tapped[bpf.RangeKey, uint32]{inner.Sources, tp}
		// By what was wanted since the last write that succeeded in full: anybody who might use it,
		// and those who always might.
		asked, always := map[string]bool{}, []string(nil)
		admitted := func() (out []string) {
			for _, row := range rowsIn(inner.Services) {
				if row.Timeout.Flags()&bpf.ServiceRanged == 0 {
					return []string{all}
				}
				for k := range rowsIn(inner.Sources) {
					if k.Service == row.ID {
						out = append(out, k.Netip().String())
					}
				}
			}
			return out
		}
		tp.after = func() {
			now := admitted()
			for _, p := range always {
				if !slices.Contains(now, p) && !slices.Contains(now, all) && !t.Failed() {
					t.Errorf("seed %d: %s may not use it, only %v", seed, p, now)
				}
			}
			for _, p := range now {
				if !asked[p] && !asked[all] && !t.Failed() {
					t.Errorf("seed %d: %s may use it, and only %v should", seed, p, asked)
				}
			}
		}
		failing := false
		tp.before = func() error {
			if failing && r.IntN(4) == 0 {
				always = nil // rather than let somebody in, it keeps somebody out
				return errors.New("injected")
			}
			return nil
		}
		s, err := newBalancer(&m, func(bpf.Addr) {})
		if err != nil {
			t.Fatal(err)
		}
		for round := range 30 {
			f := frontendWith(nil)
			f.ranges = map[bpf.RangeKey]bool{}
			var want []string
			if r.IntN(4) == 0 {
				want = []string{all}
			} else {
				f.timeout = f.timeout.With(bpf.ServiceRanged)
				for i := range 5 {
					if p := fmt.Sprintf("198.51.%d.0/24", i); r.IntN(2) == 0 {
						want = append(want, p)
						f.ranges[bpf.RangeOf(netip.MustParsePrefix(p))] = true
					}
				}
			}
			for _, p := range want {
				asked[p] = true
			}
			switch {
			case slices.Contains(always, all):
				always = slices.Clone(want)
			case !slices.Contains(want, all):
				always = slices.DeleteFunc(always, func(p string) bool { return !slices.Contains(want, p) })
			}
			if failing = true; r.IntN(3) > 0 {
				_, _ = s.put(f)
			}
			if failing = false; r.IntN(5) == 0 {
				if s, err = newBalancer(&m, func(bpf.Addr) {}); err != nil {
					t.Fatal(err)
				}
			}
			if r.IntN(3) == 0 {
				continue
			}
			if _, err := s.put(f); err != nil {
				t.Fatal(err)
			}
			clear(asked)
			always = slices.Clone(want)
			for _, p := range want {
				asked[p] = true
			}
			got := admitted()
			slices.Sort(got)
			if !slices.Equal(got, want) && !t.Failed() {
				t.Errorf("seed %d round %d: %v may use it, want %v", seed, round, got, want)
			}
		}
		always = nil
		if _, err := s.drop(frontendWith(nil).key); err != nil {
			t.Fatal(err)
		}
		none := func(bpf.ServiceKey) bool { return false }
		s.prune(none, true, func(key bpf.ServiceKey, err error) { t.Fatalf("%v: %v", key, err) })
		if n := len(rowsIn(inner.Sources)); n != 0 {
			t.Errorf("seed %d: %d rows left of a removed service", seed, n)
		}
	}
}

// External addresses that would cut the mesh are told of and left out; what two want has the
// first by name.
func TestExternalAddressesThatCannotBe(t *testing.T) {
	with := func(name, external string, port uint16) *tables.Service {
		return &tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: name,
			External: []netip.Addr{netip.MustParseAddr(external)}, Ports: []service.Port{{Protocol: service.TCP, Port: port}}}}
	}
	peers := &wire.Node{IPAddresses: []wire.NodeAddress{{Type: wire.NodeCiliumInternalIP, IP: netip.MustParseAddr("10.2.1.1")}, {Type: wire.NodeInternalIP, IP: netip.MustParseAddr("192.0.2.7")}}}
	alloc := wire.CIDR(netip.MustParsePrefix("10.2.1.0/24"))
	peers.IPv4AllocCIDR = &alloc
	for name, c := range map[string]struct {
		rows []*tables.Service
		want string // the keys in the kernel, then what is told
	}{
		"outside":                      {[]*tables.Service{with("web", "203.0.113.9", 80)}, "203.0.113.9:80"},
		"at a port of Weft's":          {[]*tables.Service{with("web", "203.0.113.9", 81)}, "203.0.113.9:81"},
		"of this node":                 {[]*tables.Service{with("web", "192.0.2.1", 80)}, "192.0.2.1:80"},
		"of this node, Weft's":         {[]*tables.Service{with("web", "192.0.2.1", 81)}, "shop/web: 192.0.2.1 is the address of a machine of the mesh that needs port 81 itself"},
		"of a peer's node, Weft's":     {[]*tables.Service{with("web", "192.0.2.7", 81)}, "shop/web: 192.0.2.7 is the address of a machine of the mesh that needs port 81"},
		"of an API server's port":      {[]*tables.Service{with("web", "192.0.2.1", 7443)}, "shop/web: 192.0.2.1 is the address of a machine of the mesh that needs port 7443"},
		"a peer's pod":                 {[]*tables.Service{with("web", "10.2.1.9", 80)}, "shop/web: 10.2.1.9 is inside of the mesh"},
		"our own":                      {[]*tables.Service{with("web", "10.1.1.9", 80)}, "shop/web: 10.1.1.9 is inside of the mesh"},
		"of two":                       {[]*tables.Service{with("web", "203.0.113.9", 80), with("api", "203.0.113.9", 80)}, "203.0.113.9:80 | shop/web: 203.0.113.9 port 80 already belongs to service east/shop/api"},
		"of two, at different ports":   {[]*tables.Service{with("web", "203.0.113.9", 80), with("api", "203.0.113.9", 443)}, "203.0.113.9:443 203.0.113.9:80"},
		"of two that clients stay for": {[]*tables.Service{local(with("web", "203.0.113.9", 80)), local(with("api", "203.0.113.9", 80))}, "203.0.113.9:80 203.0.113.9:80 outside | shop/web: 203.0.113.9 port 80 already belongs to service east/shop/api"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.p.SetAddresses([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
			b.write(func(txn statedb.WriteTxn) {
				east := *tables.Get(txn, b.tab.Clusters, "east")
				east.Access = &wire.Access{Servers: []string{"https://192.0.2.1:7443"}}
				tables.Put(txn, b.tab.Clusters, &east)
				tables.Put(txn, b.tab.Nodes, &tables.Node{Cluster: "west", Name: "n1", Place: tables.PlaceOf(peers)})
				for _, row := range c.rows {
					tables.Put(txn, b.tab.Services, row)
				}
			})
			b.pass()
			var keys, told []string
			for k := range rowsIn(b.maps.Services) {
				text := frontendName(k)
				if k.Scope == bpf.ScopeOutside {
					text += " outside"
				}
				keys = append(keys, text)
			}
			for _, p := range tables.All(b.tab.DB.ReadTxn(), b.tab.Problems) {
				if p.Table == "services" {
					told = append(told, strings.TrimPrefix(p.Row, "east/")+": "+p.Error)
				}
			}
			slices.Sort(keys)
			got := strings.Join(keys, " ")
			if len(told) > 0 {
				got = strings.TrimPrefix(got+" | "+strings.Join(told, ", "), " | ")
			}
			if !strings.HasPrefix(got, c.want) || strings.Contains(got, "|") != strings.Contains(c.want, "|") {
				t.Errorf("%s, want %s", got, c.want)
			}
			if where := b.balance(b.everything()); where != "" {
				t.Error(where)
			}
		})
	}
}

func local(s *tables.Service) *tables.Service {
	s.ExternalLocal = true
	return s
}

// In a full table, who may no longer use a service makes room for who may.
func TestSourceRangesMakeRoom(t *testing.T) {
	m := bpftest.New()
	m.Sources = bpftest.NewTable[bpf.RangeKey, uint32]("sources", 1)
	b, err := newBalancer(m, func(bpf.Addr) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"198.51.100.0/24", "203.0.113.0/24"} {
		f := frontendWith(nil)
		key := bpf.RangeOf(netip.MustParsePrefix(p))
		f.timeout, f.ranges = f.timeout.With(bpf.ServiceRanged), map[bpf.RangeKey]bool{key: true}
		if _, err := b.put(f); err != nil {
			t.Fatal(err)
		}
		for k := range rowsIn(m.Sources) {
			if k.Netip() != key.Netip() {
				t.Errorf("%v may use it, not %s", k.Netip(), p)
			}
		}
	}
}

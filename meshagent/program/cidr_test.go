package program

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// whoIs returns the identity that the kernel gives an address outside the mesh.
func whoIs(m *bpf.Maps, a netip.Addr) identity.Number {
	best, who := -1, identity.World
	for k, info := range rowsIn(m.Prefixes) {
		// The kernel's 128-bit addresses have no family.
		if p := netip.PrefixFrom(netip.AddrFrom16(k.Addr), int(k.Bits)); p.Contains(netip.AddrFrom16(a.As16())) && p.Bits() > best {
			best, who = p.Bits(), identity.Number(info.Identity)
		}
	}
	return who
}

// denyTo lets a pod speak to everybody except these prefixes, allowTo only to them.
const (
	denyTo = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toPorts: [{ports: [{port: "80", protocol: TCP}]}]
  egressDeny:
  - toCIDR: [%s]
`
	allowTo = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toCIDR: [%s]
`
)

// TestNoGapWhilePrefixesChange: an address that is denied, or allowed, before and
// after a change stays so at every moment between, even if the policy changed while
// the agent was away.
func TestNoGapWhilePrefixesChange(t *testing.T) {
	const wide, narrow, other = "198.0.0.0/8", "198.51.0.0/16", "203.0.0.0/8"
	for _, c := range []struct {
		name          string
		before, after []string
	}{
		{"narrower", []string{wide}, []string{narrow}},
		{"wider", []string{narrow}, []string{wide}},
		{"the inner one goes", []string{wide, narrow}, []string{wide}},
		{"the inner one comes", []string{wide}, []string{wide, narrow}},
		{"the outer one goes", []string{wide, narrow}, []string{narrow}},
		{"another comes", []string{narrow}, []string{narrow, other}},
		{"one of IPv6 comes that holds ::ffff:0:0/96", []string{narrow}, []string{narrow, `"::/1"`}},
	} {
		for _, restarts := range []bool{false, true} {
			for rule, text := range map[string]string{"deny": denyTo, "allow": allowTo} {
				t.Run(fmt.Sprintf("%s, %s, restart %v", rule, c.name, restarts), func(t *testing.T) {
					prefixesChange(t, text, c.before, c.after, restarts)
				})
			}
		}
	}
}

func prefixesChange(t *testing.T, text string, before, after []string, restarts bool) {
	b := newBench(t)
	web := b.pod("web-1", "web", "10.1.1.2", 65537)
	apply := func(cidrs []string) { b.policy("web", fmt.Sprintf(text, strings.Join(cidrs, ", "))) }
	named, elsewhere := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.1")
	look := func() {
		for a, want := range map[netip.Addr]bool{named: text == allowTo, elsewhere: text == denyTo} {
			if got, known := judgePacket(b.maps, web, whoIs(b.maps, a), bpf.Egress, 6, 80); got != want || !known {
				t.Errorf("%v as %v: allowed %v (known %v), before and after %v", a, whoIs(b.maps, a), got, known, want)
			}
		}
	}
	apply(before)
	b.pass()
	look()
	b.write(func(txn statedb.WriteTxn) {
		west := tables.Get(txn, b.tab.Clusters, "west")
		next := *west
		next.Synced = map[wire.Resource]time.Time{wire.Nodes: {}, wire.Identities: {}, wire.IPs: {}, wire.Services: {}}
		tables.Put(txn, b.tab.Clusters, &next)
	})
	if restarts {
		b.restart()
	}
	b.tap.after = look
	apply(after)
	for range 4 {
		b.pass()
		b.p.policies.stale = time.Now().Add(-time.Hour) // the previous generation's rows go
	}
	if got := len(rowsIn(b.maps.Prefixes)); got != 3+len(after) { // the world, two members
		t.Errorf("prefixes %v", rowsIn(b.maps.Prefixes))
	}
	local := 0
	for k := range rowsIn(b.maps.Classes) {
		if identity.Number(k.Identity).Scope() == identity.ScopeLocal {
			local++
		}
	}
	if local != len(after) {
		t.Errorf("%d numbers of prefixes are left: %v", local, rowsIn(b.maps.Classes))
	}
}

// Among random prefixes, nested and side by side, around finds the same one as trying
// them all, with one lookup per length.
func TestAroundFindsTheNarrowest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Prefix { // few bits differ, so that many are nested
		if r.IntN(2) == 0 {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{0: byte(r.IntN(2)) << 7, 3: byte(r.IntN(4))}), r.IntN(33)).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: byte(r.IntN(2)) << 7, 15: byte(r.IntN(4))}), r.IntN(129)).Masked()
	}
	for range 500 {
		rows := map[bpf.PrefixKey]bpf.IPInfo{}
		for n := range r.IntN(40) {
			rows[bpf.PrefixOf(random())] = bpf.IPInfo{Identity: uint32(identity.LocalNumber(uint32(n + 1)))}
		}
		prefix := random()
		best, want := -1, identity.World
		for k, info := range rows {
			if p := k.Netip(); p.Bits() <= prefix.Bits() && p.Bits() > best && p.Contains(prefix.Addr()) {
				best, want = p.Bits(), identity.Number(info.Identity)
			}
		}
		looks := 0
		got := around(prefix, func(k bpf.PrefixKey) (bpf.IPInfo, bool) { looks++; info, ok := rows[k]; return info, ok })
		if got != want || looks > prefix.Bits()+1 {
			t.Errorf("around %v: %v by %d looks, want %v", prefix, got, looks, want)
		}
	}
}

// Service addresses have no other owner, whatever a policy names.
func TestServiceAddressesAreNobodyElses(t *testing.T) {
	b := newBench(t)
	b.pod("web-1", "web", "10.1.1.2", 65537)
	b.write(func(txn statedb.WriteTxn) {
		east := tables.Get(txn, b.tab.Clusters, "east")
		next, own := *east, *east.Own
		own.ServiceCIDR = netip.MustParsePrefix("10.101.0.0/16")
		next.Own = &own
		tables.Put(txn, b.tab.Clusters, &next)
	})
	b.policy("web", fmt.Sprintf(allowTo, "10.0.0.0/8, 10.101.0.0/16, 10.101.0.80/32"))
	b.pass()
	services := 0
	for k, info := range rowsIn(b.maps.Prefixes) {
		if p := k.Netip(); p.Bits() >= 8 && p.Contains(netip.MustParseAddr("10.101.0.80")) && p != netip.MustParsePrefix("10.0.0.0/8") {
			services++
			if info != (bpf.IPInfo{Identity: uint32(identity.World), Flags: bpf.IPService}) {
				t.Errorf("%v is %+v", p, info)
			}
		}
	}
	if services != 1 {
		t.Errorf("prefixes %v", rowsIn(b.maps.Prefixes))
	}
}

package program

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

func parse(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestFormerCIDRs(t *testing.T) {
	east := &tables.Cluster{Name: "east", Own: &wire.Cluster{Name: "east", ID: 1, PodCIDRs: parse("10.1.0.0/16")}}
	west := &tables.Cluster{Name: "west", Peer: &wire.Peer{ID: 2, PodCIDRs: parse("10.2.0.0/16")}}
	record := func(forgotten bool, cidrs ...string) *tables.Former {
		f := &tables.Former{Former: wire.Former{Name: "west", PodCIDRs: parse(cidrs...)}}
		if forgotten {
			f.Forgotten = time.Unix(1000, 0)
		}
		return f
	}
	member := func(all ...string) map[bpf.PrefixKey]bpf.IPInfo {
		rows := map[bpf.PrefixKey]bpf.IPInfo{bpf.PrefixOf(everyIPv4): {Identity: 2}, bpf.PrefixOf(parse("10.101.0.0/16")[0]): {Identity: 2, Flags: bpf.IPService}}
		for _, p := range parse(all...) {
			rows[bpf.PrefixOf(p)] = bpf.IPInfo{Cluster: 2, Flags: bpf.IPMember}
		}
		return rows
	}
	for _, c := range []struct {
		name           string
		members        []*tables.Cluster
		records        []*tables.Former
		kernel         map[bpf.PrefixKey]bpf.IPInfo
		former, memory []string
	}{
		{name: "nobody left", members: []*tables.Cluster{east, west}, kernel: member("10.1.0.0/16", "10.1.1.0/24", "10.2.0.0/16", "10.2.1.0/24")},
		{name: "a peer was removed", members: []*tables.Cluster{east}, records: []*tables.Former{record(false, "10.2.0.0/16")},
			kernel: member("10.1.0.0/16", "10.2.0.0/16", "10.2.1.0/24"), former: []string{"10.2.0.0/16"}},
		{name: "and this node never knew it", members: []*tables.Cluster{east}, records: []*tables.Former{record(false, "10.2.0.0/16")},
			kernel: member("10.1.0.0/16"), former: []string{"10.2.0.0/16"}},
		{name: "it was forgotten", members: []*tables.Cluster{east}, records: []*tables.Former{record(true, "10.2.0.0/16")},
			kernel: member("10.1.0.0/16", "10.2.0.0/16", "10.2.1.0/24")},
		{name: "it is back", members: []*tables.Cluster{east, west}, records: []*tables.Former{record(false, "10.2.0.0/16")},
			kernel: member("10.1.0.0/16", "10.2.0.0/16")},
		{name: "it is back with half of what it had", members: []*tables.Cluster{east, {Name: "west", Peer: &wire.Peer{ID: 2, PodCIDRs: parse("10.2.0.0/17")}}},
			records: []*tables.Former{record(false, "10.2.0.0/16")}, kernel: member("10.1.0.0/16", "10.2.0.0/16"), former: []string{"10.2.0.0/16"}},
		{name: "a store from before it was added", members: []*tables.Cluster{east}, kernel: member("10.1.0.0/16", "10.2.0.0/16", "10.2.1.0/24", "10.2.2.0/24"),
			former: []string{"10.2.0.0/16"}, memory: []string{"10.2.0.0/16"}},
		{name: "an operator unblocks that by its CIDR", members: []*tables.Cluster{east}, records: []*tables.Former{record(true, "10.2.0.0/16")},
			kernel: member("10.1.0.0/16", "10.2.0.0/16", "10.2.1.0/24", "10.2.2.0/24")},
		{name: "another had the CIDR later", members: []*tables.Cluster{east}, records: []*tables.Former{record(true, "10.2.0.0/16"), record(false, "10.2.0.0/16", "10.3.0.0/16")},
			kernel: member("10.1.0.0/16", "10.2.0.0/16"), former: []string{"10.2.0.0/16", "10.3.0.0/16"}},
		{name: "a node of an own cluster left", members: []*tables.Cluster{east}, kernel: member("10.1.0.0/16", "10.1.2.0/24")},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			for k, info := range c.kernel {
				if err := b.maps.Prefixes.Update(k, info); err != nil {
					t.Fatal(err)
				}
			}
			b.restart()
			b.write(func(txn statedb.WriteTxn) {
				_ = b.tab.Clusters.DeleteAll(txn)
				for _, m := range c.members {
					tables.Put(txn, b.tab.Clusters, m)
				}
				for i, f := range c.records {
					row := *f
					row.Name = fmt.Sprint(i)
					tables.Put(txn, b.tab.Former, &row)
				}
			})
			b.p.beliefs.look(b.tab.DB.ReadTxn())
			former, memory := b.p.beliefs.view.former.list, b.p.beliefs.view.former.memory
			if fmt.Sprint(former) != fmt.Sprint(parse(c.former...)) || fmt.Sprint(memory) != fmt.Sprint(parse(c.memory...)) {
				t.Errorf("former %v, of these by memory %v; want %v and %v", former, memory, c.former, c.memory)
			}
		})
	}
}

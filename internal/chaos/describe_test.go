package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/internal/meshtest"
)

// describe says what a node's maps make the kernel do, a line for each fact, sorted. Numbers
// that an agent gives out as it goes are replaced by what they stand for: the index of a node
// by its CIDR, the ID of a service by its frontends, policy sets, classes and port classes by
// what they decide. Left out is what is not state: revisions, flows, shares and the lane that
// carries a path, which is the one whose last handshake was best.
func describe(n *meshtest.Node) []string {
	m, out := n.Maps(), []string{}
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	name := nodeNames(n)
	info := func(i bpf.IPInfo) string {
		return fmt.Sprintf("identity %d, cluster %d, flags %b, node %s", i.Identity, i.Cluster, i.Flags, name(i.Node))
	}
	for a, i := range meshtest.Rows(n, m.IPs) {
		add("address %v: %s", a, info(i))
	}
	for p, i := range meshtest.Rows(n, m.Prefixes) {
		add("prefix %v: %s", p, info(i))
	}
	for i, row := range meshtest.Rows(n, m.Nodes) {
		add("node %s: path %d, keyed %d, cluster %d", name(uint16(i)), row.Path, row.Keyed, row.Cluster)
	}
	for id, row := range meshtest.Rows(n, m.Clusters) {
		add("cluster %d: %+v", id, row)
	}
	frontends := map[uint32][]string{}
	services := meshtest.Rows(n, m.Services)
	for k, s := range services {
		frontends[s.ID] = append(frontends[s.ID], fmt.Sprintf("%v:%d/%d", k.Addr, k.Port, k.Proto))
	}
	for _, names := range frontends {
		slices.Sort(names)
	}
	for k, s := range services {
		for _, g := range s.Group[:s.Groups] {
			var slots []string
			for i := range g.Count {
				b, _, _ := m.Backends.Lookup(bpf.SlotKey{Service: s.ID, Slot: i, Cluster: g.Cluster})
				slots = append(slots, fmt.Sprintf("%v:%d at %s", b.Addr, b.Port, name(b.Node)))
			}
			slices.Sort(slots)
			cluster, part := bpf.ClusterOf(g.Cluster)
			add("frontend %v:%d/%d: cluster %d, part %d, tier %d, weight %d: %s", k.Addr, k.Port, k.Proto, cluster, part, g.Tier, g.Weight, strings.Join(slots, ", "))
		}
	}
	for k, row := range meshtest.Rows(n, m.Members) {
		add("member %v:%d of %v: terminating %d", k.Addr, k.Port, frontends[k.Service], row.Terminating)
	}
	for a, e := range meshtest.Rows(n, m.Endpoints) {
		add("endpoint %v: device %d, identity %d, ID %d, held %d, %s", a, e.Ifindex, e.Identity, e.ID, e.Held, decisions(n, a))
	}
	slices.Sort(out)
	return out
}

// nodeNames names the indices of nodes by the first prefix that leads to them.
func nodeNames(n *meshtest.Node) func(uint16) string {
	names := map[uint16]string{0: "none"}
	all := meshtest.Rows(n, n.Maps().Prefixes)
	keys := slices.SortedFunc(maps.Keys(all), func(a, b bpf.PrefixKey) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	for _, k := range keys {
		if i := all[k].Node; names[i] == "" {
			names[i] = fmt.Sprint(k)
		}
	}
	return func(i uint16) string {
		if names[i] == "" {
			return fmt.Sprint("unnamed ", i)
		}
		return names[i]
	}
}

// decisions are those of a pod's policies about everyone that the node knows.
func decisions(n *meshtest.Node, pod bpf.Addr) string {
	m, peers := n.Maps(), map[uint32]bool{0: true, 1: true, 2: true}
	for _, i := range meshtest.Rows(n, m.IPs) {
		peers[i.Identity] = true
	}
	var denied []string
	for _, peer := range slices.Sorted(maps.Keys(peers)) {
		for _, dir := range []bpf.Direction{bpf.Egress, bpf.Ingress} {
			for _, port := range asked {
				if ok, _ := bpftest.Judge(m, pod, peer, dir, 6, port); !ok {
					denied = append(denied, fmt.Sprintf("%d/%d/%d", peer, dir, port))
				}
			}
		}
	}
	return "denies " + strings.Join(denied, " ")
}

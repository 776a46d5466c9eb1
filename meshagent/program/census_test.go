package program

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// census derives who has which address from all tables at once, without an index: the
// oracle of the row by row derivation. It shares with it only how a single row is
// judged.
type census struct {
	b       *bench
	own     *tables.Cluster
	members map[string]*tables.Cluster
	nodes   map[string]*tables.Node
	why     map[rowName]string
	former  []netip.Prefix
}

func (b *bench) census() *census {
	txn := b.tab.DB.ReadTxn()
	w := &census{b: b, members: map[string]*tables.Cluster{}, nodes: map[string]*tables.Node{}, why: map[rowName]string{}}
	clusters := tables.All(txn, b.tab.Clusters)
	for _, c := range clusters {
		if c.Own != nil {
			w.own = c
		}
	}
	w.admit(clusters)
	w.addNodes(tables.All(txn, b.tab.Nodes))
	w.former = w.formerly(tables.All(txn, b.tab.Former))
	return w
}

func (w *census) admit(clusters []*tables.Cluster) {
	w.members[w.own.Name] = w.own
	ids := map[identity.ClusterID]bool{w.own.ID(): true}
	for _, c := range clusters {
		if c == w.own || c.Peer == nil {
			continue
		}
		overlaps := false
		for _, m := range w.members {
			for _, p := range m.PodCIDRs() {
				overlaps = overlaps || slices.ContainsFunc(c.PodCIDRs(), p.Overlaps)
			}
		}
		if c.ID() == 0 || ids[c.ID()] || overlaps {
			w.why[rowName{"clusters", c.Name}] = "contradicts another"
			continue
		}
		ids[c.ID()] = true
		w.members[c.Name] = c
	}
}

func (w *census) addNodes(all []*tables.Node) {
	type claim struct {
		cidr netip.Prefix
		node string
	}
	var claims []claim
	for _, n := range all {
		c := w.members[n.Cluster]
		if c == nil || !n.Internal().IsValid() || len(n.PodCIDRs()) == 0 {
			continue
		}
		if why := overclaim(c, n); why != "" {
			w.why[rowName{"nodes", n.Key()}] = why
			continue
		}
		w.nodes[n.Key()] = n
		for _, cidr := range n.PodCIDRs() {
			claims = append(claims, claim{cidr.Masked(), n.Key()})
		}
	}
	// Sorted by address, widest first, a CIDR that contains another comes before it.
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.cidr.Addr().Compare(b.cidr.Addr()), cmp.Compare(a.cidr.Bits(), b.cidr.Bits()), cmp.Compare(a.node, b.node))
	})
	var open []claim
	for _, c := range claims {
		for len(open) > 0 && !open[len(open)-1].cidr.Overlaps(c.cidr) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 && open[len(open)-1].node != c.node {
			delete(w.nodes, c.node)
			w.why[rowName{"nodes", c.node}] = "overlaps another"
			continue
		}
		open = append(open, c)
	}
}

func (w *census) formerly(records []*tables.Former) []netip.Prefix {
	var recorded, forgotten, remembered []netip.Prefix
	for _, r := range records {
		if r.Forgotten.IsZero() {
			recorded = append(recorded, r.PodCIDRs...)
		} else {
			forgotten = append(forgotten, r.PodCIDRs...)
		}
	}
	for k, info := range rowsIn(w.b.maps.Prefixes) {
		if info.Flags&bpf.IPMember != 0 {
			remembered = append(remembered, k.Netip())
		}
	}
	former, _ := formerCIDRs(w.owned, recorded, forgotten, remembered)
	return former
}

func (w *census) owned(p netip.Prefix) bool {
	for _, c := range w.members {
		if c.Owns(p) {
			return true
		}
	}
	return false
}

func (w *census) inMesh(p netip.Prefix) bool {
	for _, c := range w.members {
		for _, s := range c.ServiceCIDRs() {
			if holds(s, p) {
				return true
			}
		}
	}
	return w.owned(p) || within(p, w.former)
}

// rows are those of the maps ips and prefixes.
func (w *census) rows() (ips map[bpf.Addr]bpf.IPInfo, prefixes map[bpf.PrefixKey]bpf.IPInfo) {
	p := w.b.p
	ips, prefixes = map[bpf.Addr]bpf.IPInfo{}, map[bpf.PrefixKey]bpf.IPInfo{}
	prefixes[bpf.PrefixOf(everyIPv4)] = bpf.IPInfo{Identity: uint32(identity.World)}
	for cidr, n := range p.cidrs {
		if !w.inMesh(cidr) {
			prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Identity: uint32(n)}
		}
	}
	for _, c := range w.members {
		for _, cidr := range c.ServiceCIDRs() {
			holdsPods := false
			for _, m := range w.members {
				holdsPods = holdsPods || slices.ContainsFunc(m.PodCIDRs(), cidr.Overlaps)
			}
			if c == w.own || !holdsPods {
				prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Identity: uint32(identity.World), Flags: bpf.IPService}
			}
		}
	}
	for _, cidr := range w.former {
		prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Flags: bpf.IPMember | bpf.IPFormer}
	}
	for _, c := range w.members {
		for _, cidr := range c.PodCIDRs() {
			prefixes[bpf.PrefixOf(cidr)] = bpf.IPInfo{Cluster: uint16(c.ID()), Flags: bpf.IPMember}
		}
	}
	txn := w.b.tab.DB.ReadTxn()
	for _, own := range []bool{false, true} { // what comes later counts
		for _, n := range tables.All(txn, w.b.tab.Nodes) {
			if own != (n.Cluster == w.own.Name) || w.isSelf(n) {
				continue
			}
			for addr, who := range w.outsideOf(n) {
				info := bpf.IPInfo{Identity: uint32(p.variants.of(endpointAt{whole(addr), who, nil})), Flags: bpf.IPNode}
				if at := w.carrier(addr); own && at != "" {
					info.Node = p.cfg.Rows.Index(at)
				}
				ips[bpf.AddrOf(addr)] = info
			}
		}
	}
	hosts, inside := map[host]*tables.Node{}, map[bpf.Addr]bool{}
	for _, key := range slices.Backward(slices.Sorted(maps.Keys(w.nodes))) { // the first by name counts
		n := w.nodes[key]
		info, who := bpf.IPInfo{Node: p.cfg.Rows.Index(key), Cluster: uint16(w.members[n.Cluster].ID()), Flags: bpf.IPMember}, identity.RemoteNode
		if w.isSelf(n) {
			info.Flags |= bpf.IPLocal
			who = identity.Host
			for addr := range w.outsideOf(n) {
				ips[bpf.AddrOf(addr)] = bpf.IPInfo{Identity: uint32(who)}
			}
		}
		for _, cidr := range n.PodCIDRs() {
			row := info
			row.Bits = uint8(bpf.PrefixOf(cidr).Bits)
			prefixes[bpf.PrefixOf(cidr)] = row
		}
		for _, internal := range n.Internals() {
			info.Identity = uint32(p.variants.of(endpointAt{whole(internal), who, nil}))
			ips[bpf.AddrOf(internal)], inside[bpf.AddrOf(internal)] = info, true
		}
		for _, a := range n.Addresses() {
			hosts[host{n.Cluster, a}] = n
		}
	}
	for ip := range w.b.tab.EachIP(txn) {
		c := w.members[ip.Cluster]
		if c == nil || p.beliefs.view.doubtful(c, &ip) != "" {
			continue
		}
		info := bpf.IPInfo{Identity: uint32(p.variants.of(endpointAt{ip.Prefix, ip.Identity, ip.NamedPorts})), Cluster: uint16(c.ID()), Flags: bpf.IPMember}
		if n := hosts[host{ip.Cluster, ip.Host}]; n != nil && w.isSelf(n) {
			info.Flags |= bpf.IPLocal
		} else if n != nil {
			info.Node = p.cfg.Rows.Index(n.Key())
		}
		if !ip.Prefix.IsSingleIP() {
			prefixes[bpf.PrefixOf(ip.Prefix)] = info
		} else if key := bpf.AddrOf(ip.Prefix.Addr()); !inside[key] {
			ips[key] = info
		}
	}
	return ips, prefixes
}

// carrier is the first of our own nodes that has an address, if it is also the first that is
// registered with it.
func (w *census) carrier(addr netip.Addr) string {
	registered, believed := "", ""
	for _, n := range tables.All(w.b.tab.DB.ReadTxn(), w.b.tab.Nodes) { // in order of name
		if n.Cluster != w.own.Name {
			continue
		}
		if registered == "" && n.Registration != nil && slices.Contains(n.Registration.Addresses, addr) {
			registered = n.Key()
		}
		if believed == "" && w.nodes[n.Key()] != nil && slices.Contains(n.Addresses(), addr) {
			believed = n.Key()
		}
	}
	if registered != believed || w.inMesh(whole(addr)) {
		return ""
	}
	return believed
}

func (w *census) isSelf(n *tables.Node) bool { return n.Key() == w.own.Name+"/"+w.b.p.cfg.Self }

func (w *census) outsideOf(n *tables.Node) map[netip.Addr]identity.Number {
	own := n.Cluster == w.own.Name
	addrs := n.Addresses()
	switch {
	case w.members[n.Cluster] == nil || own && n.Registration == nil:
		return nil
	case own:
		addrs = n.Registration.Addresses
	}
	out := map[netip.Addr]identity.Number{}
	for _, addr := range addrs {
		server := slices.Contains(w.b.servers, addr)
		switch {
		case w.inMesh(whole(addr)) || server && !own:
		case server:
			out[addr] = identity.KubeAPIServer
		default:
			out[addr] = identity.RemoteNode
		}
	}
	return out
}

// tolerate takes rows for wanted that were found.
func tolerate[K comparable, V any](want, got map[K]V, found iter.Seq[K]) {
	for k := range found {
		if _, ok := want[k]; !ok {
			want[k] = got[k]
		}
	}
}

// left takes rows that an earlier agent left for wanted while they are as it left them.
func left[V comparable](want, got, found map[uint32]V) {
	for i, row := range found {
		if _, ok := want[i]; !ok && got[i] == row {
			want[i] = row
		}
	}
}

// differ says where the maps differ from the whole, "" if nowhere.
func (w *census) differ(got everything) string {
	complete := true
	for _, c := range w.members {
		complete = complete && c.Complete()
	}
	ips, prefixes := w.rows()
	if !complete { // rows of an earlier agent stay until everything was read in full
		tolerate(ips, got.ips, w.b.p.addrs.AllFound())
		tolerate(prefixes, got.prefixes, w.b.p.prefixes.AllFound())
	}
	nodes, clusters := map[uint32]bpf.Node{}, map[uint32]bpf.Cluster{}
	for key, n := range w.nodes {
		if i := uint32(w.b.p.cfg.Rows.Index(key)); !w.isSelf(n) {
			nodes[i] = got.nodes[i] // liveness and tunnels say what is in it
			if got.nodes[i].Cluster != uint16(w.members[n.Cluster].ID()) {
				return fmt.Sprintf("node %s is of cluster %d", key, got.nodes[i].Cluster)
			}
		}
	}
	for _, c := range w.members {
		clusters[uint32(c.ID())] = got.clusters[uint32(c.ID())]
		if got.clusters[uint32(c.ID())].Member != 1 {
			return fmt.Sprintf("cluster %s has no row", c.Name)
		}
	}
	if !complete {
		left(nodes, got.nodes, w.b.nodes)
		left(clusters, got.clusters, w.b.clusters)
	}
	var unsaid []string
	for row := range w.why {
		if got.problems[row.table+" "+row.row] == "" {
			unsaid = append(unsaid, row.table+" "+row.row)
		}
	}
	for key := range got.problems {
		if table, row, _ := strings.Cut(key, " "); (table == "nodes" || table == "clusters") && w.why[rowName{table, row}] == "" {
			unsaid = append(unsaid, key+", which is believed")
		}
	}
	if len(unsaid) > 0 {
		return fmt.Sprint("problems: ", unsaid)
	}
	return firstOf(differ("ips", got.ips, ips), differ("prefixes", got.prefixes, prefixes), differ("nodes", got.nodes, nodes), differ("clusters", got.clusters, clusters))
}

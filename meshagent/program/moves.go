package program

import (
	"net/netip"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// forget makes the next pass derive everything from scratch.
func (p *Program) forget() {
	p.beliefs.loaded = false
	p.owners = newOwners()
	p.joining, p.leaving, p.judging, p.ids = map[string]bool{}, map[string]bool{}, map[string]bool{}, map[identity.ClusterID]bool{}
	p.did = done{}
}

// beliefs keeps a view up to date. Close it when it is no longer needed.
type beliefs struct {
	view     *view
	loaded   bool
	clusters feed[*tables.Cluster]
	nodes    feed[*tables.Node]
	former   feed[*tables.Former]
}

func newBeliefs(t *tables.Tables, self string) (*beliefs, error) {
	b := &beliefs{view: newView(t, self)}
	var err error
	if b.clusters, err = follow(t.DB, t.Clusters); err != nil {
		return nil, err
	}
	if b.nodes, err = follow(t.DB, t.Nodes); err != nil {
		return nil, err
	}
	if b.former, err = follow(t.DB, t.Former); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *beliefs) close() {
	b.clusters.close()
	b.nodes.close()
	b.former.close()
}

// look brings the view up to a snapshot and says what has changed in it; nil is
// everything. It returns no view if our own cluster is not known.
func (b *beliefs) look(txn statedb.ReadTxn) (*view, *moved) {
	c := change{clusters: latest(b.clusters.take(txn), (*tables.Cluster).Key), nodes: latest(b.nodes.take(txn), (*tables.Node).Key), former: len(b.former.take(txn)) > 0}
	if b.loaded {
		if m := b.view.follow(txn, c); m != nil {
			return b.view, m
		}
	}
	if b.loaded = b.view.load(txn); !b.loaded {
		return nil, nil
	}
	return b.view, nil
}

// latest maps the keys of changed rows to what they are now, nil for those that are
// gone.
func latest[T any](changes []statedb.Change[*T], key func(*T) string) map[string]*T {
	out := map[string]*T{}
	for _, c := range changes {
		if out[key(c.Object)] = c.Object; c.Deleted {
			out[key(c.Object)] = nil
		}
	}
	return out
}

// learn notes what has to be written because of what has changed in the view; nil is
// everything.
func (p *Program) learn(v *view, m *moved, r *report) {
	if m == nil {
		p.forget()
		p.beliefs.loaded = true
		p.learnAll(v, r)
		return
	}
	for row := range m.rows {
		r.judged(v, row)
	}
	if !m.some() {
		return
	}
	p.unsaved = p.unsaved || m.former || len(m.ranges) > 0
	p.formerMoved = p.formerMoved || m.former
	for name := range m.clusters {
		p.owners.clusters[name], p.judging[name], p.frontends.clusters[name] = true, true, true
	}
	for id := range m.ids {
		p.ids[id] = true
	}
	for prefix := range m.ranges {
		p.moveRange(v, prefix)
	}
	for addr := range m.addrs {
		p.owners.addr(addr)
		p.frontends.renamed = append(p.frontends.renamed, whole(addr))
	}
	for _, n := range m.nodes {
		p.joining[n.key], p.leaving[n.key] = n.after != nil, n.after == nil
		for _, row := range []*tables.Node{n.before, n.after} {
			if row != nil {
				p.moveNode(v, row)
				for _, a := range row.Internals() {
					p.frontends.renamed = append(p.frontends.renamed, whole(a))
				}
			}
		}
	}
}

// learnAll notes that everything has to be written.
func (p *Program) learnAll(v *view, r *report) {
	r.stage("clusters", "nodes")
	for name, why := range v.clusters.why {
		v.doubts = append(v.doubts, doubt{"clusters", name, why})
	}
	for key := range v.nodes.known {
		if why := v.why(rowName{"nodes", key}); why != "" {
			v.doubts = append(v.doubts, doubt{"nodes", key, why})
		}
		if v.node(key) != nil {
			p.joining[key] = true
		}
	}
	for _, key := range p.cfg.Rows.Keys() {
		if v.node(key) == nil {
			p.leaving[key] = true
		}
	}
	for _, id := range p.cfg.Rows.Members() {
		p.ids[id] = true
	}
	for _, s := range v.clusters.admitted {
		p.ids[s.id] = true
	}
	p.owners.all, p.unsaved = true, true
	p.pruned = false
	p.frontends.forget()
}

// moveRange notes what depends on whose a prefix is, as far as the rows of its cluster
// do not say.
func (p *Program) moveRange(v *view, prefix netip.Prefix) {
	p.owners.prefix(prefix)
	for named := range p.named.within(prefix) {
		p.owners.prefix(named)
	}
	for service := range v.clusters.services.around(prefix) {
		p.owners.prefix(service)
	}
	for service := range v.clusters.services.within(prefix) {
		p.owners.prefix(service)
	}
	p.frontends.renamed = append(p.frontends.renamed, prefix)
}

// moveNode notes what depends on where a node is: its own rows, those of the addresses
// behind it, and the backends there.
func (p *Program) moveNode(v *view, n *tables.Node) {
	for _, a := range n.Internals() {
		p.owners.addr(a)
	}
	for _, cidr := range valid(n.PodCIDRs()) {
		p.owners.prefix(cidr)
		p.frontends.moved = append(p.frontends.moved, cidr)
	}
	for _, addr := range n.Addresses() {
		for key := range p.hosted.at(host{n.Cluster, addr}) {
			p.owners.ip(key)
		}
	}
	for _, addr := range v.ownHosts(n) { // and processes that are backends
		p.owners.addr(addr)
		p.frontends.renamed = append(p.frontends.renamed, whole(addr))
	}
	if v.isSelf(n) {
		for _, addr := range v.names(n) {
			p.owners.addr(addr)
		}
	}
}

// ways gives nodes their indexes and clusters their rows.
func (p *Program) ways(v *view, r *report) {
	for key, joins := range p.joining {
		n := v.node(key)
		if !joins || n == nil || v.isSelf(n) {
			delete(p.joining, key)
			continue
		}
		r.judged(v, rowName{"nodes", key})
		changed, err := p.cfg.Rows.Assign(paths.Member{Key: key, Cluster: v.member(n.Cluster).ID(), CIDRs: n.PodCIDRs()})
		if changed {
			p.moveNode(v, n)
		}
		if err != nil {
			r.fail("nodes", key, err)
		}
	}
	for id := range p.ids {
		name := v.clusters.withID(id)
		r.judged(v, rowName{"clusters", name})
		r.row("clusters", "")
		if name != "" {
			p.cfg.Rows.Admit(id)
		} else {
			p.cfg.Rows.Expel(id)
		}
	}
	p.flushWays(v, r)
	for key := range p.joining {
		if r.errs["nodes"][key] == "" {
			delete(p.joining, key)
		}
	}
	if len(p.joining) == 0 {
		p.joining = map[string]bool{} // a map that has been large stays so
	}
	for id := range p.cfg.Rows.Answers() {
		p.frontends.clusters[v.clusters.withID(id)] = true
	}
}

// flushWays writes the rows of nodes and clusters. Those that fail keep their problem.
func (p *Program) flushWays(v *view, r *report) {
	failed := p.cfg.Rows.Flush()
	for key, err := range failed.Nodes {
		r.fail("nodes", key, err)
	}
	for id := range p.ids { // some may have failed earlier in this pass, and not now
		delete(r.errs["clusters"], v.clusters.withID(id))
	}
	clear(p.ids)
	for id, err := range failed.Clusters {
		p.ids[id] = true
		r.fail("clusters", v.clusters.withID(id), err)
	}
	if failed.Pruned != nil {
		r.fail("nodes", "", failed.Pruned)
	}
}

// vacate releases the indexes of removed nodes once the flows that use them are judged
// again: until then, a flow would take a node without a row for a dead one.
func (p *Program) vacate(v *view, r *report) {
	prune := v.complete() && !p.pruned
	if len(p.leaving) == 0 && !prune || p.revisions.pending() || !r.clean("ips", "services", "settings") {
		return
	}
	for key, leaves := range p.leaving {
		if n := v.node(key); leaves && (n == nil || v.isSelf(n)) {
			r.judged(v, rowName{"nodes", key})
			p.cfg.Rows.Release(key)
		} else {
			delete(p.leaving, key)
		}
	}
	if prune {
		r.row("nodes", "")
		p.cfg.Rows.Prune()
	}
	p.flushWays(v, r)
	for key := range p.leaving {
		if r.errs["nodes"][key] == "" {
			delete(p.leaving, key)
		}
	}
	p.pruned = p.pruned || prune && r.errs["nodes"][""] == ""
}

// learnCIDRs takes over the numbers of the prefixes that policies name.
func (p *Program) learnCIDRs(cidrs map[netip.Prefix]identity.Number) {
	next := make(map[netip.Prefix]identity.Number, len(cidrs))
	for prefix, n := range cidrs {
		prefix = bpf.PrefixOf(prefix).Netip()
		if next[prefix] = n; p.cidrs[prefix] != n {
			p.owners.prefix(prefix)
			p.named.put(prefix, struct{}{})
		}
	}
	for prefix := range p.cidrs {
		if _, still := next[prefix]; !still {
			p.owners.prefix(prefix)
			p.named.drop(prefix)
		}
	}
	p.cidrs = next
}

// learnMember follows the prefixes that the kernel holds as a member's.
func (p *Program) learnMember(k bpf.PrefixKey, info bpf.IPInfo, there bool) {
	if there && info.Flags&bpf.IPMember != 0 {
		p.members.put(k.Netip(), struct{}{})
	} else {
		p.members.drop(k.Netip())
	}
}

package program

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// scope is what a cluster speaks for: all that others depend on in its row.
type scope struct {
	row      *tables.Cluster
	id       identity.ClusterID
	pods     []netip.Prefix
	services []netip.Prefix
	cilium   bool // it runs Cilium: there are no tunnels to its nodes
	// complete is set once the cluster's state has been read in full.
	complete bool
}

// scopeOf returns nil for a cluster that is not in the mesh.
func scopeOf(c *tables.Cluster) *scope {
	if c == nil || !c.Member() {
		return nil
	}
	return &scope{row: c, id: c.ID(), pods: valid(c.PodCIDRs()), services: valid(c.ServiceCIDRs()), cilium: c.Peer != nil && c.Peer.Cilium, complete: c.Complete()}
}

// valid are those that are prefixes, without host bits, each once. The list may be the one
// that was given: do not change it.
func valid(all []netip.Prefix) (out []netip.Prefix) {
	if len(all) == 1 && all[0].IsValid() && all[0] == all[0].Masked() {
		return all[:1:1]
	}
	for _, p := range all {
		if p = p.Masked(); p.IsValid() && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// same says whether two scopes differ in nothing but how much has been read.
func (s *scope) same(other *scope) bool {
	if s == nil || other == nil {
		return s == other
	}
	return s.id == other.id && s.cilium == other.cilium && slices.Equal(s.services, other.services) && slices.Equal(s.pods, other.pods)
}

// clusters knows which clusters are in the mesh. One that contradicts our own, or
// another that is in the mesh and comes before it by name, is left out. The API server
// has checked the same; this catches what it may have missed.
type clusters struct {
	// declared are those that an operator added, by name; of them, admitted are in the
	// mesh and why says what keeps out the others.
	declared, admitted map[string]*scope
	why                map[string]string
	// Who declares an ID, or a pod CIDR.
	ids  map[identity.ClusterID][]string
	pods ranges[[]string]
	// Of those admitted: whose a pod CIDR is, the service CIDRs and how many clusters
	// have each, and how many clusters have not been read in full.
	owners   ranges[string]
	services ranges[int]
	partial  int
}

func newClusters() clusters {
	return clusters{declared: map[string]*scope{}, admitted: map[string]*scope{}, why: map[string]string{}, ids: map[identity.ClusterID][]string{}}
}

// follow takes up new rows, nil for those that are gone, and settles the conflicts
// that they begin or end. It notes in m which clusters came, went or now speak for
// something else. The own cluster comes before all others.
func (c *clusters) follow(own string, rows map[string]*tables.Cluster, m *moved) {
	concerned := map[string]bool{}
	for name, row := range rows {
		m.row("clusters", name)
		before, next := c.declared[name], scopeOf(row)
		if before.same(next) {
			c.refresh(name, next)
			continue
		}
		concerned[name] = true
		c.rivals(before, concerned)
		c.undeclare(name, before)
		c.declare(name, next)
		c.rivals(next, concerned)
	}
	// Whoever a rival kept out may now come in, and so keep out others.
	for queue := slices.Collect(maps.Keys(concerned)); len(queue) > 0; queue = queue[1:] {
		more := map[string]bool{}
		c.rivals(c.declared[queue[0]], more)
		for name := range more {
			if !concerned[name] {
				concerned[name] = true
				queue = append(queue, name)
			}
		}
	}
	c.settle(own, slices.Collect(maps.Keys(concerned)), m)
}

// refresh replaces a row that speaks for the same as before.
func (c *clusters) refresh(name string, next *scope) {
	if next == nil {
		return
	}
	c.declared[name] = next
	if before := c.admitted[name]; before != nil {
		c.count(before, -1)
		c.count(next, 1)
		c.admitted[name] = next
	}
}

func (c *clusters) count(s *scope, by int) {
	if !s.complete {
		c.partial += by
	}
}

func (c *clusters) declare(name string, s *scope) {
	if s == nil {
		return
	}
	c.declared[name] = s
	c.ids[s.id] = append(c.ids[s.id], name)
	for _, p := range s.pods {
		by, _ := c.pods.get(p)
		c.pods.put(p, append(slices.Clip(by), name))
	}
}

func (c *clusters) undeclare(name string, s *scope) {
	if s == nil {
		return
	}
	delete(c.declared, name)
	other := func(by string) bool { return by == name }
	if c.ids[s.id] = slices.DeleteFunc(c.ids[s.id], other); len(c.ids[s.id]) == 0 {
		delete(c.ids, s.id)
	}
	for _, p := range s.pods {
		by, _ := c.pods.get(p)
		if by = slices.DeleteFunc(slices.Clone(by), other); len(by) > 0 {
			c.pods.put(p, by)
		} else {
			c.pods.drop(p)
		}
	}
}

// withID returns the cluster of the mesh that has an ID, or "".
func (c *clusters) withID(id identity.ClusterID) string {
	for _, name := range c.ids[id] {
		if c.admitted[name] != nil {
			return name
		}
	}
	return ""
}

// runsCilium says whether the cluster of the mesh that has an ID runs Cilium.
func (c *clusters) runsCilium(id identity.ClusterID) bool {
	s := c.admitted[c.withID(id)]
	return s != nil && s.cilium
}

// rivals adds the clusters that declare the same ID or a pod CIDR that overlaps.
func (c *clusters) rivals(s *scope, to map[string]bool) {
	if s == nil {
		return
	}
	add := func(names []string) {
		for _, name := range names {
			to[name] = true
		}
	}
	if s.id != 0 {
		add(c.ids[s.id])
	}
	for _, p := range s.pods {
		for _, names := range c.pods.around(p) {
			add(names)
		}
		for _, names := range c.pods.within(p) {
			add(names)
		}
	}
}

// settle decides who of these is in the mesh. None of the others is a rival of one of
// them.
func (c *clusters) settle(own string, names []string, m *moved) {
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(first(b == own)-first(a == own), cmp.Compare(a, b)) })
	var in []string
	for _, name := range names {
		s := c.declared[name]
		delete(c.why, name)
		if s == nil {
			continue
		}
		if why := c.against(s, in); why != "" {
			c.why[name] = why
			continue
		}
		in = append(in, name)
	}
	for _, name := range names { // who leaves makes room
		m.row("clusters", name)
		if before := c.admitted[name]; before != nil && (!slices.Contains(in, name) || !before.same(c.declared[name])) {
			c.leave(name, before, m)
		}
	}
	for _, name := range in {
		if c.admitted[name] == nil {
			c.join(name, c.declared[name], m)
		}
	}
}

// against says what of those in the mesh a cluster contradicts, or "" if nothing.
func (c *clusters) against(s *scope, in []string) string {
	if s.id == 0 {
		return "it has no cluster ID"
	}
	for _, name := range in {
		if c.declared[name].id == s.id {
			return fmt.Sprintf("its ID %d already belongs to cluster %q", s.id, name)
		}
	}
	for _, name := range in {
		for _, p := range c.declared[name].pods {
			if slices.ContainsFunc(s.pods, p.Overlaps) {
				return "its pod CIDRs overlap those of cluster " + name
			}
		}
	}
	return ""
}

func (c *clusters) join(name string, s *scope, m *moved) {
	c.admitted[name] = s
	c.count(s, 1)
	for _, p := range s.pods {
		c.owners.put(p, name)
	}
	for _, p := range s.services {
		n, _ := c.services.get(p)
		c.services.put(p, n+1)
	}
	m.cluster(name, s)
}

func (c *clusters) leave(name string, s *scope, m *moved) {
	delete(c.admitted, name)
	c.count(s, -1)
	for _, p := range s.pods {
		c.owners.drop(p)
	}
	for _, p := range s.services {
		if n, _ := c.services.get(p); n > 1 {
			c.services.put(p, n-1)
		} else if n == 1 {
			c.services.drop(p)
		}
	}
	m.cluster(name, s)
}

// first is 1 for what comes first, else 0.
func first(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// moved is what has changed in what is believed, as far as others depend on it.
type moved struct {
	// all is set if everything has: nothing else counts then.
	all bool
	// clusters came, went or speak for something else; ids are those that they had or have.
	clusters map[string]bool
	ids      map[identity.ClusterID]bool
	// ranges have another owner: members' pod and service CIDRs, and former ones.
	ranges map[netip.Prefix]bool
	// nodes are believed, or not, or say something else about where they are.
	nodes []movedNode
	// addrs are named by other nodes than before.
	addrs map[netip.Addr]bool
	// former is set if the list of former members' CIDRs has changed.
	former bool
	// rows were judged again.
	rows map[rowName]bool
}

// movedNode is a node before and after; nil is not believed.
type movedNode struct {
	key           string
	before, after *tables.Node
}

func newMoved() *moved {
	return &moved{clusters: map[string]bool{}, ids: map[identity.ClusterID]bool{}, ranges: map[netip.Prefix]bool{}, addrs: map[netip.Addr]bool{}, rows: map[rowName]bool{}}
}

func (m *moved) row(table, key string) { m.rows[rowName{table, key}] = true }

func (m *moved) cluster(name string, s *scope) {
	m.clusters[name], m.ids[s.id] = true, true
	for _, p := range s.pods {
		m.ranges[p] = true
	}
	for _, p := range s.services {
		m.ranges[p] = true
	}
}

// some says whether anything has changed that others depend on.
func (m *moved) some() bool {
	return m.all || m.former || len(m.clusters)+len(m.ranges)+len(m.nodes)+len(m.addrs) > 0
}

package program

import (
	"net/netip"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// live is what makes a change of one slice cost what the slice holds, and not what the
// service holds. It is made for a service when one of its slices has changed, and holds
// until anything else about the service does.
type live struct {
	own *tables.Service
	svc service.Service
	how balancing
	// fronts are its frontends.
	fronts []service.Front
	// pools are those of each frontend, by cluster.
	pools []map[service.ClusterID]*service.Pool
	// slices are those whose endpoints all count; under the key of any other is nil.
	slices map[string]*tables.Slice
	// of counts the slices of each cluster.
	of map[string]int
}

// newLive returns nil if the service has to be derived as a whole every time: it is not
// ours, has a frontend declared twice, or is offered by too many clusters.
func newLive(d *derived) *live {
	if d.own == nil || d.partial {
		return nil
	}
	l := &live{own: d.own, svc: d.svc, how: balancingOf(&d.svc), fronts: d.fronts, slices: d.whole, of: map[string]int{}}
	for _, s := range d.slicesRead {
		l.of[s.Cluster]++
	}
	for _, f := range l.fronts {
		pools := map[service.ClusterID]*service.Pool{}
		for cluster, slices := range d.from {
			pools[cluster] = service.NewPool(d.client, &d.svc, cluster, f.Of, f.Addr.Is4())
			for i := range slices {
				pools[cluster].Replace(nil, &slices[i], func(netip.AddrPort, service.Role, service.Role) {})
			}
		}
		l.pools = append(l.pools, pools)
	}
	return l
}

// delta is what a changed slice changes in one frontend.
type delta struct {
	key     bpf.ServiceKey
	cluster uint16
	groups  []bpf.Group // without their counts
	how     balancing
	// slots are those of the cluster's groups, by their numbers.
	slots   map[uint16]*exchange
	members map[bpf.MemberKey]bpf.Member // without the service number
	left    []bpf.MemberKey
}

// exchange are the backends that come to a group and go from it.
type exchange struct{ add, gone []bpf.Backend }

// of is the exchange in one of the cluster's groups.
func (d *delta) of(near service.Near, class service.Class) *exchange {
	number := groupOf(service.ClusterID(d.cluster), near, class)
	if d.slots[number] == nil {
		d.slots[number] = &exchange{}
	}
	return d.slots[number]
}

// follow takes up a change of one slice. It returns false, and l is of no use any more,
// if the service has to be derived as a whole.
func (l *live) follow(v *view, c statedb.Change[*tables.Slice], index func(string) uint16) (deltas []delta, ok bool) {
	s := c.Object
	m := v.member(s.Cluster)
	before, known := l.slices[s.Key()]
	if m == nil || known && before == nil || l.of[s.Cluster] == 0 {
		return nil, false
	}
	var old, next *service.Slice
	if known {
		old = &before.Slice
		l.of[s.Cluster]--
	}
	delete(l.slices, s.Key())
	if !c.Deleted {
		if m == v.own && !s.Derived {
			return nil, false
		}
		for _, e := range s.Endpoints {
			if v.misplaced(m, e.Addr) != "" || v.process(e.Addr) {
				return nil, false
			}
		}
		next, l.slices[s.Key()] = &s.Slice, s
		l.of[s.Cluster]++
	}
	if l.of[s.Cluster] == 0 {
		return nil, false // what its service carries counts now
	}
	cluster := service.ClusterID(m.ID())
	for i, f := range l.fronts {
		d := newDelta(f, cluster, l.how)
		if l.pools[i][cluster] == nil {
			return nil, false // it has joined, or has another ID, and a slice is gone at once
		}
		l.pools[i][cluster].Replace(old, next, func(b netip.AddrPort, was, now service.Role) { d.change(v, b, was, now, index) })
		if d.groups, ok = l.groups(v, i); !ok {
			return nil, false
		}
		if m == v.own || l.own.Global {
			deltas = append(deltas, d)
		}
	}
	return deltas, true
}

// newDelta is an empty change of one cluster's backends in a frontend.
func newDelta(f service.Front, cluster service.ClusterID, how balancing) delta {
	return delta{key: keyOf(f.Addr, f.Port, f.Of.Protocol), how: how, cluster: uint16(cluster), slots: map[uint16]*exchange{}, members: map[bpf.MemberKey]bpf.Member{}}
}

// groups are those of a frontend. It returns false if they are too many, or their backends too
// many for a Maglev table.
func (l *live) groups(v *view, i int) (groups []bpf.Group, ok bool) {
	places, ok := service.Places(service.ClusterID(v.own.ID()), &l.svc, l.pools[i])
	for _, p := range places {
		groups = append(groups, bpf.Group{Cluster: groupOf(p.Cluster, p.Near, p.Class), Tier: p.Tier, Weight: v.weight(p.Cluster)})
	}
	if l.how.maglev {
		n := 0
		for cluster, p := range l.pools[i] {
			if cluster == service.ClusterID(v.own.ID()) || l.svc.Global {
				n += p.Taking()
			}
		}
		ok = ok && service.FitsTable(n, l.how.size)
	}
	return groups, ok
}

// move says what changes because backends in these slices are on another node. It
// returns false if the service has to be derived as a whole.
func (l *live) move(v *view, keys []string, was, now func(netip.Addr) uint16) (deltas []delta, ok bool) {
	type spot struct {
		frontend int
		cluster  service.ClusterID
		backend  netip.AddrPort
	}
	done := map[spot]bool{} // two slices may have one backend
	for _, key := range keys {
		s, known := l.slices[key]
		if !known {
			continue
		}
		m := v.member(clusterOf(key))
		if s == nil || m == nil {
			return nil, false
		}
		cluster := service.ClusterID(m.ID())
		for i, f := range l.fronts {
			d := newDelta(f, cluster, l.how)
			if l.pools[i][cluster] == nil {
				return nil, false
			}
			for b, role := range l.pools[i][cluster].Of(&s.Slice) {
				near, weight, takes := role.Takes()
				if !takes {
					continue
				}
				class := service.ClassOf(weight)
				backend := slotOf(b, was(b.Addr()), weight, class)
				if to := now(b.Addr()); to != backend.Node && !done[spot{i, cluster, b}] {
					done[spot{i, cluster, b}] = true
					x := d.of(near, class)
					x.gone = append(x.gone, backend)
					backend.Node = to
					x.add = append(x.add, backend)
				}
			}
			if d.groups, ok = l.groups(v, i); !ok {
				return nil, false
			}
			if len(d.slots) > 0 && (m == v.own || l.own.Global) {
				deltas = append(deltas, d)
			}
		}
	}
	return deltas, true
}

// change notes that a backend's role has changed.
func (d *delta) change(v *view, b netip.AddrPort, was, now service.Role, index func(string) uint16) {
	node := v.nodeOf(b.Addr(), index)
	member := bpf.MemberKey{Addr: bpf.AddrOf(b.Addr()), Port: bpf.PortOf(b.Port())}
	near, weight, takes := now.Takes()
	switch {
	case takes:
		class := service.ClassOf(weight)
		x := d.of(near, class)
		x.add = append(x.add, slotOf(b, node, weight, class))
		d.members[member] = bpf.Member{}
	case now == service.Draining:
		d.members[member] = bpf.Member{Terminating: 1}
	default:
		d.left = append(d.left, member)
	}
	if near, weight, took := was.Takes(); took {
		class := service.ClassOf(weight)
		x := d.of(near, class)
		x.gone = append(x.gone, slotOf(b, node, weight, class))
	}
}

// weight is the weight of a cluster's group. There are no tunnels to a cluster that runs
// Cilium, whatever an earlier agent left in the kernel says.
func (v *view) weight(cluster service.ClusterID) uint8 {
	id := identity.ClusterID(cluster)
	if v.clusters.runsCilium(id) || id != v.own.ID() && v.answered != nil && !v.answered(id) {
		return 0 // prepared, but not used yet
	}
	return 1
}

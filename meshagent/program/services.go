package program

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// frontend is one address and port of a service, as kernel rows.
type frontend struct {
	key     bpf.ServiceKey
	timeout bpf.Seconds           // and flags
	ranges  map[bpf.RangeKey]bool // without the service number
	groups  []bpf.Group
	slots   map[uint16][]bpf.Backend     // by the groups' numbers
	members map[bpf.MemberKey]bpf.Member // without the service number
	how     balancing
}

// derived is the result of deriveService.
type derived struct {
	frontends []frontend // each key once
	// read names the table rows that it depends on and that doubts may name.
	read   []rowName
	doubts []doubt
	// outer are the addresses outside of the mesh that it names itself.
	outer []netip.Addr
	// byHand are the backends in our own cluster's hand-written slices.
	byHand []netip.Addr

	// For newLive: where clients are; our own cluster's service, nil if it has none; the slices that were
	// read, and those of them whose endpoints all count, by key; what they offer; and
	// whether some frontend or cluster was left out.
	client     service.Client
	own        *tables.Service
	svc        service.Service // with what follows from the numbers of clusters
	fronts     []service.Front
	slicesRead []*tables.Slice
	whole      map[string]*tables.Slice
	from       map[service.ClusterID][]service.Slice
	here       []service.Slice // of our own cluster, with this node's endpoints, if ExternalLocal
	partial    bool
}

type rowName struct{ table, row string }

// deriveService says which backends each frontend has that our own cluster declares
// for the service, or for the host ports of a pod.
func deriveService(v *view, id string, index func(string) uint16) (d derived) {
	if pod, ok := strings.CutPrefix(id, podMark); ok {
		return derivePod(v, pod, index)
	}
	services := v.tables.ServicesOf(v.txn, id)
	d.slicesRead = v.tables.SlicesOf(v.txn, id)
	d.from = d.slices(v, d.slicesRead, services)
	own := ownOf(v, services)
	if own == nil {
		return d
	}
	d.own, d.client, d.fronts = own, v.client(), append(own.Fronts(), own.Outer(v.addresses)...)
	cluster, inside, outside := service.ClusterID(v.own.ID()), d.from, d.from
	if own.NodeLocal || own.ExternalLocal {
		d.partial = true
		if own.NodeLocal {
			inside = onNode(d.from, cluster, v.self)
		}
		if own.ExternalLocal {
			outside = onNode(d.from, cluster, v.self)
			d.here = outside[cluster]
		}
	}
	row := rowName{"services", own.Key()}
	if d.svc = v.resolved(own); own.ClusterWeights != nil {
		for _, name := range own.ClusterWeights.Names() {
			if v.member(name) == nil {
				d.doubts = append(d.doubts, doubt{row.table, row.row, fmt.Sprintf("its annotation %s names %s, which is not a cluster of the mesh: correct the name, or add the peer", service.AnnotationClusterWeights, name)})
			}
		}
	}
	d.read, d.outer = append(d.read, row), slices.Concat(own.External, own.Balanced)
	d.processes(v)
	d.add(v, row, service.Frontends(d.client, &d.svc, inside), index)
	if len(d.fronts) > len(own.Fronts()) {
		// What arrives at these addresses goes to pods: the answers of a node would leave as its own.
		all, process := v.pods(d.from)
		here, _ := v.pods(outside)
		if process.IsValid() {
			d.doubts = append(d.doubts, doubt{row.table, row.row, fmt.Sprintf("backend %v is the address of a node, which is reached at the service's cluster IP, and not at its node ports or external addresses: ask the node itself, or put a pod with a network of its own behind the service", process)})
		}
		d.addOuter(v, row, service.Outer(d.client, &d.svc, v.addresses, all, here), index)
	}
	return d
}

// addOuter adds frontends outside of the mesh, as far as this node can offer them.
func (d *derived) addOuter(v *view, row rowName, all []service.Frontend, index func(string) uint16) {
	fit := make([]service.Frontend, 0, len(all))
	for _, f := range all {
		why := v.unfit(f)
		if why == "" {
			fit = append(fit, f)
			continue
		}
		d.partial = true
		if refused := (doubt{row.table, row.row, why}); !slices.Contains(d.doubts, refused) {
			d.doubts = append(d.doubts, refused)
		}
	}
	d.add(v, row, fit, index)
}

// add adds frontends, each once.
func (d *derived) add(v *view, row rowName, all []service.Frontend, index func(string) uint16) {
	tell := func(format string, args ...any) {
		d.partial = true
		d.doubts = append(d.doubts, doubt{row.table, row.row, fmt.Sprintf(format, args...)})
	}
	for _, f := range all {
		if f.Flat {
			tell("its backends are in more than %d groups by cluster, zone and weight: which are near does not count", service.MaxGroups)
		}
		if len(f.Omitted) > 0 {
			tell("%d clusters offer it, at most %d can be used: clusters %v are left out", len(f.Groups)+len(f.Omitted), len(f.Groups), f.Omitted)
		}
		d.partial = d.partial || f.Merged
		w := v.rowsFor(f, index)
		if w.how = balancingOf(&d.svc); w.how.maglev {
			n := 0
			for _, backends := range w.slots {
				n += len(backends)
			}
			if !service.FitsTable(n, w.how.size) {
				tell("a Maglev table of %d slots does not fit its %d backends: they are chosen at random; raise annotation %s", cmp.Or(w.how.size, service.TableSizeFor(n)), n, service.AnnotationTableSize)
			}
		}
		if slices.ContainsFunc(d.frontends, func(other frontend) bool { return other.key == w.key }) {
			if d.partial = true; !f.Outside {
				tell("%s", taken(w.key, row.holder()))
			}
			continue
		}
		d.frontends = append(d.frontends, w)
	}
}

// resolved is a service of our own cluster with what follows from the numbers of clusters.
func (v *view) resolved(own *tables.Service) service.Service {
	svc := own.Service
	svc.Split = svc.ClusterWeights.Split(func(name string) service.ClusterID {
		if c := v.member(name); c != nil {
			return service.ClusterID(c.ID())
		}
		return 0
	})
	return svc
}

// client is where clients of services are: on this node.
func (v *view) client() service.Client {
	c := service.Client{Cluster: service.ClusterID(v.own.ID()), Node: v.self}
	if n := tables.Get(v.txn, v.tables.Nodes, v.selfKey()); n != nil {
		c.Zone = n.Registration.Zone()
	}
	return c
}

// onNode keeps the endpoints of our own cluster that are on one node.
func onNode(from map[service.ClusterID][]service.Slice, own service.ClusterID, node string) map[service.ClusterID][]service.Slice {
	var here []service.Slice
	for _, s := range from[own] {
		s.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e service.Endpoint) bool { return e.Node != node })
		here = append(here, s)
	}
	return map[service.ClusterID][]service.Slice{own: here}
}

func ownOf(v *view, services []*tables.Service) *tables.Service {
	for _, s := range services {
		if s.Cluster == v.own.Name {
			return s
		}
	}
	return nil
}

// taken says who has a frontend.
func taken(key bpf.ServiceKey, by string) string {
	return fmt.Sprintf("%v port %d already belongs to %s", key.Addr, key.Port.Number(), by)
}

// slices groups a service's slices by cluster, without endpoints that the author may
// not offer: a peer, or whoever may write slices in one namespace, could otherwise
// point clients anywhere. Backends that a peer's service carries itself count only if
// the peer has no slices for it.
func (d *derived) slices(v *view, slices []*tables.Slice, services []*tables.Service) map[service.ClusterID][]service.Slice {
	out := map[service.ClusterID][]service.Slice{}
	d.whole = map[string]*tables.Slice{}
	add := func(c *tables.Cluster, s service.Slice, at rowName, byHand bool) (whole bool) {
		kept := make([]service.Endpoint, 0, len(s.Endpoints))
		for _, e := range s.Endpoints {
			why := v.misplaced(c, e.Addr)
			if byHand {
				d.byHand = append(d.byHand, e.Addr)
				if why == "" {
					why = v.trespasses(s.Namespace, e.Addr)
				}
			}
			if why != "" {
				d.doubts = append(d.doubts, doubt{at.table, at.row, why})
				continue
			}
			kept = append(kept, e)
		}
		whole = len(kept) == len(s.Endpoints) && !byHand
		s.Endpoints = kept
		out[service.ClusterID(c.ID())] = append(out[service.ClusterID(c.ID())], s)
		d.read = append(d.read, at)
		return whole
	}
	for _, s := range slices {
		if c := v.member(s.Cluster); c != nil {
			d.whole[s.Key()] = nil
			if add(c, s.Slice, rowName{"slices", s.Key()}, c == v.own && !s.Derived) {
				d.whole[s.Key()] = s
			}
		}
	}
	for _, s := range services {
		c := v.member(s.Cluster)
		if c == nil || out[service.ClusterID(c.ID())] != nil {
			continue
		}
		for _, carried := range s.CarriedSlices() {
			add(c, carried, rowName{"services", s.Key()}, false)
		}
	}
	return out
}

func keyOf(addr netip.Addr, port uint16, protocol service.Protocol) bpf.ServiceKey {
	return bpf.ServiceKey{Addr: bpf.AddrOf(addr), Port: bpf.PortOf(port), Proto: protocol.Number()}
}

// rowsFor turns a frontend into rows.
func (v *view) rowsFor(f service.Frontend, index func(string) uint16) frontend {
	w := frontend{
		key: keyOf(f.Addr, f.Port, f.Protocol), timeout: bpf.SecondsOf(f.Session), ranges: map[bpf.RangeKey]bool{},
		slots: map[uint16][]bpf.Backend{}, members: map[bpf.MemberKey]bpf.Member{},
	}
	if f.Addr.IsLoopback() {
		w.key.Scope = bpf.ScopeProcess
	}
	if f.Outside {
		w.key.Scope = bpf.ScopeOutside
	}
	if f.Split {
		w.timeout = w.timeout.With(bpf.ServiceSplit)
	}
	if f.Ranged {
		w.timeout = w.timeout.With(bpf.ServiceRanged)
		v.admit(f, w.ranges)
	}
	node := func(a netip.Addr) uint16 {
		if f.Here {
			return 0
		}
		return v.nodeOf(a, index)
	}
	for _, g := range f.Groups {
		number := groupOf(g.Cluster, g.Near, g.Class)
		for _, b := range g.Backends {
			w.slots[number] = append(w.slots[number], slotOf(netip.AddrPortFrom(b.Addr, b.Port), node(b.Addr), b.Weight, g.Class))
			w.members[bpf.MemberKey{Addr: bpf.AddrOf(b.Addr), Port: bpf.PortOf(b.Port)}] = bpf.Member{}
		}
		for _, b := range g.Draining {
			w.members[bpf.MemberKey{Addr: bpf.AddrOf(b.Addr), Port: bpf.PortOf(b.Port)}] = bpf.Member{Terminating: 1}
		}
		w.groups = append(w.groups, bpf.Group{Count: uint32(len(g.Backends)), Cluster: number, Tier: g.Tier, Weight: v.weight(g.Cluster)})
	}
	return w
}

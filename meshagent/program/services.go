package program

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// services writes frontends to the kernel. A group's slots change with the fewest
// possible writes, each of which leaves a usable state.
type services struct {
	rows    *mirror[bpf.ServiceKey, bpf.Service]
	slots   *mirror[bpf.SlotKey, bpf.Backend]
	members *mirror[bpf.MemberKey, bpf.Member]
	lastID  uint32
}

func newServices(m *bpf.Maps) (*services, error) {
	s := &services{}
	var errs [3]error
	s.rows, errs[0] = newMirror(m.Services)
	s.slots, errs[1] = newMirror(m.Backends)
	s.members, errs[2] = newMirror(m.Members)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, row := range s.rows.have {
		s.lastID = max(s.lastID, row.ID)
	}
	for k := range s.slots.have {
		s.lastID = max(s.lastID, k.Service)
	}
	return s, nil
}

// filled returns a group's usable slots in order, so that an interrupted write is
// completed.
func (s *services) filled(row bpf.Service, cluster uint16) []bpf.Backend {
	var out []bpf.Backend
	seen := map[bpf.Backend]bool{}
	for i := range uint32(countIn(row, cluster)) {
		b, ok := s.slots.have[bpf.SlotKey{Service: row.ID, Slot: i, Cluster: cluster}]
		if !ok || seen[b] {
			break
		}
		seen[b] = true
		out = append(out, b)
	}
	return out
}

func countIn(row bpf.Service, cluster uint16) int {
	for _, g := range row.Group[:row.Groups] {
		if g.Cluster == cluster {
			return int(g.Count)
		}
	}
	return 0
}

// wantedService is a frontend as kernel rows.
type wantedService struct {
	key     bpf.ServiceKey
	from    string // row in table services
	groups  []bpf.Group
	slots   map[uint16][]bpf.Backend
	members map[bpf.MemberKey]bpf.Member // without the service number
}

// deriveServices says which backends each of our own cluster's frontends has.
func deriveServices(v *view, index func(string) uint16) (wanted []wantedService, problems []doubt) {
	slices := v.slices(&problems)
	for row := range v.tables.Services.All(v.txn) {
		if row.Object == nil || row.Cluster != v.own.Name {
			continue
		}
		svc, err := service.FromKubernetes(row.Object)
		if err != nil {
			problems = append(problems, doubt{"services", row.Key(), err.Error()})
			continue
		}
		from := slices[row.Namespace+"/"+row.Name]
		for _, f := range service.Frontends(service.ClusterID(v.own.ID()), &svc, from) {
			if len(f.Omitted) > 0 {
				problems = append(problems, doubt{"services", row.Key(), fmt.Sprintf("%d clusters offer it, at most %d can be used: clusters %v are left out", len(f.Groups)+len(f.Omitted), len(f.Groups), f.Omitted)})
			}
			wanted = append(wanted, v.rowsFor(f, row.Key(), index))
		}
	}
	// A frontend declared twice belongs to the first service by name.
	sort.SliceStable(wanted, func(i, j int) bool { return wanted[i].from < wanted[j].from })
	taken := map[bpf.ServiceKey]string{}
	kept := wanted[:0]
	for _, w := range wanted {
		if other, ok := taken[w.key]; ok {
			problems = append(problems, doubt{"services", w.from, fmt.Sprintf("%v port %d already belongs to service %s", w.key.Addr, w.key.Port.Number(), other)})
			continue
		}
		taken[w.key] = w.from
		kept = append(kept, w)
	}
	return kept, problems
}

// slices groups slices by service and cluster, without endpoints that the author may
// not offer: a peer, or whoever may write slices in one namespace, could otherwise
// point clients anywhere.
func (v *view) slices(problems *[]doubt) map[string]map[service.ClusterID][]service.Slice {
	out := map[string]map[service.ClusterID][]service.Slice{}
	inSlices := map[string]bool{} // cluster/namespace/service, in the newer format
	add := func(c *tables.Cluster, s service.Slice, row string, derived bool) {
		kept := s.Endpoints[:0]
		for _, e := range s.Endpoints {
			why := v.misplaced(c, e.Addr)
			if why == "" && c == v.own && !derived {
				why = v.trespasses(s.Namespace, e.Addr)
			}
			if why != "" {
				*problems = append(*problems, doubt{"slices", row, why})
				continue
			}
			kept = append(kept, e)
		}
		s.Endpoints = kept
		name := s.Namespace + "/" + s.Service
		if out[name] == nil {
			out[name] = map[service.ClusterID][]service.Slice{}
		}
		id := service.ClusterID(c.ID())
		out[name][id] = append(out[name][id], s)
	}
	for row := range v.tables.Slices.All(v.txn) {
		c := v.members[row.Cluster]
		switch {
		case c == nil:
		case row.Object != nil && c == v.own:
			add(c, service.SliceFromKubernetes(row.Object), row.Key(), row.Object.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy)
		case row.Remote != nil && c != v.own:
			s := row.Remote.Slice()
			inSlices[row.Cluster+"/"+s.Namespace+"/"+s.Service] = true
			add(c, s, row.Key(), false)
		}
	}
	for row := range v.tables.Services.All(v.txn) {
		c := v.members[row.Cluster]
		if c == nil || row.Remote == nil || c == v.own || inSlices[row.Key()] || !row.Remote.Shared {
			continue
		}
		for _, s := range row.Remote.Slices() {
			add(c, s, row.Key(), false)
		}
	}
	return out
}

// rowsFor turns a frontend into rows.
func (v *view) rowsFor(f service.Frontend, from string, index func(string) uint16) wantedService {
	w := wantedService{
		key:   bpf.ServiceKey{Addr: bpf.AddrOf(f.Addr), Port: bpf.PortOf(f.Port), Proto: f.Protocol.Number()},
		from:  from,
		slots: map[uint16][]bpf.Backend{}, members: map[bpf.MemberKey]bpf.Member{},
	}
	for _, g := range f.Groups {
		cluster := uint16(g.Cluster)
		for _, b := range g.Backends {
			w.slots[cluster] = append(w.slots[cluster], bpf.Backend{Addr: bpf.AddrOf(b.Addr), Port: bpf.PortOf(b.Port), Node: v.nodeOf(b.Addr, index)})
			w.members[bpf.MemberKey{Addr: bpf.AddrOf(b.Addr), Port: bpf.PortOf(b.Port)}] = bpf.Member{}
		}
		for _, b := range g.Draining {
			w.members[bpf.MemberKey{Addr: bpf.AddrOf(b.Addr), Port: bpf.PortOf(b.Port)}] = bpf.Member{Terminating: 1}
		}
		weight := g.Weight
		if id := identity.ClusterID(cluster); id != v.own.ID() && v.answered != nil && !v.answered(id) {
			weight = 0 // prepared, but not used yet
		}
		w.groups = append(w.groups, bpf.Group{Count: uint32(len(g.Backends)), Cluster: cluster, Tier: g.Tier, Weight: weight})
	}
	return w
}

// nodeOf returns the index of the node whose pod CIDR contains addr; 0 for this node
// and for addresses outside the mesh.
func (v *view) nodeOf(addr netip.Addr, index func(string) uint16) uint16 {
	if v.cidrs == nil {
		v.cidrs = map[netip.Prefix]string{}
		for key, n := range v.nodes {
			for _, cidr := range n.PodCIDRs() {
				v.cidrs[cidr.Masked()] = key
				v.lengths[cidr.Bits()] = true
			}
		}
	}
	for bits := range v.lengths {
		if !v.lengths[bits] || bits > addr.BitLen() {
			continue
		}
		p, err := addr.Prefix(bits)
		if err != nil {
			continue
		}
		if key, ok := v.cidrs[p]; ok {
			return index(key)
		}
	}
	return 0
}

// set writes frontends to the kernel. Order: members, new slots, the row itself with
// its counts; then, for all services, removal of what no row leads to any longer.
// failed is called for each row that was not written.
func (s *services) set(wanted []wantedService, prune bool, failed func(row string, err error)) (changed int) {
	keep := map[bpf.ServiceKey]bpf.Service{}
	members := map[bpf.MemberKey]bpf.Member{}
	slots := map[bpf.SlotKey]bpf.Backend{}
	// Nothing is removed from a service whose row is not as wanted: the row may still
	// lead there.
	behind := map[uint32]bool{}
	for i := range wanted {
		w := &wanted[i]
		s.rows.mine[w.key] = true
		row, known := s.rows.have[w.key]
		if !known {
			s.lastID++
			row.ID = s.lastID
		}
		n, err := s.one(w, row)
		changed += n
		keep[w.key] = s.rows.have[w.key]
		if err != nil {
			behind[row.ID] = true
			failed(w.from, err)
			continue
		}
		for k, m := range w.members {
			k.Service = row.ID
			members[k] = m
		}
		for cluster := range w.slots {
			for slot := range uint32(countIn(keep[w.key], cluster)) {
				slots[bpf.SlotKey{Service: row.ID, Slot: slot, Cluster: cluster}] = bpf.Backend{}
			}
		}
	}
	changed += s.rows.remove(keep, prune, func(k bpf.ServiceKey, err error) {
		behind[s.rows.have[k].ID] = true
		failed(fmt.Sprintf("%v:%d", k.Addr, k.Port.Number()), err)
	})
	// Rows of an earlier agent that may not be pruned yet lead somewhere too.
	for k, row := range s.rows.have {
		if _, ok := keep[k]; !ok {
			behind[row.ID] = true
		}
	}
	changed += s.slots.removeBut(slots, true, func(k bpf.SlotKey) bool { return behind[k.Service] }, func(k bpf.SlotKey, err error) {
		failed(fmt.Sprintf("slot %d of service %d", k.Slot, k.Service), err)
	})
	changed += s.members.removeBut(members, true, func(k bpf.MemberKey) bool { return behind[k.Service] }, func(k bpf.MemberKey, err error) {
		failed(fmt.Sprintf("member %v of service %d", k.Addr, k.Service), err)
	})
	return changed
}

// one writes one frontend and removes nothing.
func (s *services) one(w *wantedService, row bpf.Service) (changed int, err error) {
	for k, m := range w.members {
		k.Service = row.ID
		if old, ok := s.members.have[k]; ok && old == m {
			continue
		}
		if err := s.members.put(k, m); err != nil {
			return changed, err
		}
		changed++
	}
	next := bpf.Service{ID: row.ID, Groups: uint8(len(w.groups))}
	var errs []error
	for i, g := range w.groups {
		count, n, err := s.fill(row, g.Cluster, w.slots[g.Cluster])
		changed += n
		if err != nil {
			errs = append(errs, err) // use what fits
		}
		g.Count = count
		next.Group[i] = g
	}
	if have, ok := s.rows.have[w.key]; !ok || have != next {
		if err := s.rows.put(w.key, next); err != nil {
			return changed, errors.Join(append(errs, err)...)
		}
		changed++
	}
	return changed, errors.Join(errs...)
}

// fill writes one group's slots and returns how many are usable from now on, also
// after an error.
func (s *services) fill(row bpf.Service, cluster uint16, want []bpf.Backend) (count uint32, changed int, err error) {
	have := s.filled(row, cluster)
	ops, slots := service.Slots(have, want)
	now := uint32(len(have))
	for _, op := range ops {
		if op.Kind != service.Put {
			continue // the row sets the count; clearing comes after it
		}
		key := bpf.SlotKey{Service: row.ID, Slot: op.Slot, Cluster: cluster}
		if err := s.slots.put(key, op.Backend); err != nil {
			return now, changed, err
		}
		changed++
		now = max(now, op.Slot+1)
	}
	return uint32(len(slots)), changed, nil
}

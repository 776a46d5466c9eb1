package program

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// services carries frontends into the kernel. The slots of a group change by
// the least number of writes, each of which leaves a usable state.
type services struct {
	table   bpf.Table[bpf.ServiceKey, bpf.Service]
	slots   bpf.Table[bpf.SlotKey, bpf.Backend]
	members *mirror[bpf.MemberKey, bpf.Member]

	have map[bpf.ServiceKey]bpf.Service
	mine map[bpf.ServiceKey]bool
	// filled are the slots in the kernel, in order.
	filled map[groupKey][]bpf.Backend
	lastID uint32
}

type groupKey struct {
	service uint32
	cluster uint16
}

func newServices(m *bpf.Maps) (*services, error) {
	s := &services{
		table: m.Services, slots: m.Backends,
		have: map[bpf.ServiceKey]bpf.Service{}, mine: map[bpf.ServiceKey]bool{}, filled: map[groupKey][]bpf.Backend{},
	}
	var err error
	if s.members, err = newMirror(m.Members); err != nil {
		return nil, err
	}
	all, failed := m.Services.All()
	for k, v := range all {
		s.have[k] = v
		s.lastID = max(s.lastID, v.ID)
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map services: %w", err)
	}
	bySlot := map[groupKey]map[uint32]bpf.Backend{}
	slots, failed := m.Backends.All()
	for k, b := range slots {
		g := groupKey{k.Service, k.Cluster}
		if bySlot[g] == nil {
			bySlot[g] = map[uint32]bpf.Backend{}
		}
		bySlot[g][k.Slot] = b
		s.lastID = max(s.lastID, k.Service)
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map backends: %w", err)
	}
	for g, slots := range bySlot {
		s.filled[g] = inOrder(slots)
	}
	return s, nil
}

// inOrder lists slots 0, 1, … up to the first one missing or standing twice:
// what a write that was cut short left is written again.
func inOrder(slots map[uint32]bpf.Backend) []bpf.Backend {
	var out []bpf.Backend
	seen := map[bpf.Backend]bool{}
	for i := uint32(0); ; i++ {
		b, ok := slots[i]
		if !ok || seen[b] {
			return out
		}
		seen[b] = true
		out = append(out, b)
	}
}

// wantedService is a frontend as rows.
type wantedService struct {
	key     bpf.ServiceKey
	from    string // row of table services
	groups  []bpf.Group
	slots   map[uint16][]bpf.Backend
	members map[bpf.MemberKey]bpf.Member // without service number
}

// deriveServices says what stands behind each frontend of the own cluster.
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
				problems = append(problems, doubt{"services", row.Key(), fmt.Sprintf("%d clusters offer it, %d fit: %v are left out", len(f.Groups)+len(f.Omitted), len(f.Groups), f.Omitted)})
			}
			wanted = append(wanted, v.rowsFor(f, row.Key(), index))
		}
	}
	// The same frontend declared twice: the first by name has it.
	sort.SliceStable(wanted, func(i, j int) bool { return wanted[i].from < wanted[j].from })
	taken := map[bpf.ServiceKey]string{}
	kept := wanted[:0]
	for _, w := range wanted {
		if other, ok := taken[w.key]; ok {
			problems = append(problems, doubt{"services", w.from, fmt.Sprintf("%v port %d is the address of %s", w.key.Addr, w.key.Port.Number(), other)})
			continue
		}
		taken[w.key] = w.from
		kept = append(kept, w)
	}
	return kept, problems
}

// slices collects slices by service and cluster. Endpoints outside of their
// cluster's CIDRs are not believed: a peer could point our clients anywhere.
func (v *view) slices(problems *[]doubt) map[string]map[service.ClusterID][]service.Slice {
	out := map[string]map[service.ClusterID][]service.Slice{}
	inSlices := map[string]bool{} // cluster/namespace/service, in the newer form
	add := func(c *tables.Cluster, s service.Slice, row string, foreign bool) {
		if foreign {
			kept := s.Endpoints[:0]
			for _, e := range s.Endpoints {
				if c.Owns(whole(e.Addr)) {
					kept = append(kept, e)
				} else {
					*problems = append(*problems, doubt{"slices", row, fmt.Sprintf("backend %v is not cluster %s's", e.Addr, c.Name)})
				}
			}
			s.Endpoints = kept
		}
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
			add(c, service.SliceFromKubernetes(row.Object), row.Key(), false)
		case row.Remote != nil && c != v.own:
			s := fromSlice(row.Remote)
			inSlices[row.Cluster+"/"+s.Namespace+"/"+s.Service] = true
			add(c, s, row.Key(), true)
		}
	}
	for row := range v.tables.Services.All(v.txn) {
		c := v.members[row.Cluster]
		if c == nil || row.Remote == nil || c == v.own || inSlices[row.Key()] || !row.Remote.Shared {
			continue
		}
		for _, s := range fromService(row.Remote) {
			add(c, s, row.Key(), true)
		}
	}
	return out
}

// fromSlice reads the newer form of a peer's backends.
func fromSlice(in *wire.ClusterEndpointSlice) service.Slice {
	s := service.Slice{Namespace: in.Namespace, Name: in.Name, Service: in.Service()}
	for _, p := range in.Ports {
		protocol := service.Protocol(p.Protocol)
		if protocol == "" {
			protocol = service.TCP
		}
		if p.Port > 0 && p.Port < 1<<16 {
			s.Ports = append(s.Ports, service.SlicePort{Name: p.Name, Protocol: protocol, Port: uint16(p.Port)})
		}
	}
	for _, e := range in.Endpoints {
		for _, text := range e.Addresses {
			a, err := wire.ParseAddr(text)
			if err != nil {
				continue
			}
			end := service.Endpoint{Addr: a, Node: e.NodeName, Zone: e.Zone}
			end.Ready, end.Serving, end.Terminating = service.Conditions(e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating)
			s.Endpoints = append(s.Endpoints, end)
		}
	}
	return s
}

// fromService reads the older form, which has ready backends only, each with
// ports of its own.
func fromService(in *wire.ClusterService) []service.Slice {
	var out []service.Slice
	for addr, ports := range in.Backends {
		s := service.Slice{Namespace: in.Namespace, Name: in.Name + "-" + addr.String(), Service: in.Name}
		s.Endpoints = []service.Endpoint{{Addr: addr, Ready: true, Serving: true}}
		for name, p := range ports {
			s.Ports = append(s.Ports, service.SlicePort{Name: name, Protocol: service.Protocol(p.Protocol), Port: p.Port})
		}
		out = append(out, s)
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
		w.groups = append(w.groups, bpf.Group{Count: uint32(len(g.Backends)), Cluster: cluster, Tier: g.Tier, Weight: g.Weight})
	}
	return w
}

// nodeOf is the index of the node whose pod CIDR holds addr; 0 for our own and
// for addresses outside of the mesh.
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

// set carries frontends into the kernel. Order within one frontend: members,
// new slots, the row itself with its counts, then what is left over. failed is
// told of rows that did not make it.
func (s *services) set(wanted []wantedService, prune bool, failed func(row string, err error)) (changed int) {
	keep := map[bpf.ServiceKey]bool{}
	members := map[bpf.MemberKey]bpf.Member{}
	var after []func() error
	for i := range wanted {
		w := &wanted[i]
		keep[w.key] = true
		s.mine[w.key] = true
		row, known := s.have[w.key]
		if !known {
			s.lastID++
			row = bpf.Service{ID: s.lastID}
		}
		n, later, err := s.one(w, row, known, members)
		changed += n
		if err != nil {
			failed(w.from, err)
		}
		after = append(after, later...)
	}
	// A slot that is cleared and a member that is struck no longer appear in any
	// row above.
	for _, f := range after {
		if err := f(); err != nil {
			failed("", err)
		}
		changed++
	}
	for key, row := range s.have {
		if keep[key] || !prune && !s.mine[key] {
			continue
		}
		if err := s.removeOne(key, row); err != nil {
			failed(fmt.Sprintf("%v:%d", key.Addr, key.Port.Number()), err)
			continue
		}
		changed++
	}
	changed += s.members.remove(members, prune, func(k bpf.MemberKey, err error) { failed(k.Addr.String(), err) })
	return changed
}

// one writes one frontend and returns what is to be cleared afterwards.
func (s *services) one(w *wantedService, row bpf.Service, known bool, members map[bpf.MemberKey]bpf.Member) (changed int, after []func() error, err error) {
	for k, m := range w.members {
		k.Service = row.ID
		members[k] = m
	}
	// Until the row below counts anew, the old members stay in use.
	for k, m := range w.members {
		k.Service = row.ID
		if old, ok := s.members.have[k]; ok && old == m {
			continue
		}
		if err := s.members.put(k, m); err != nil {
			return changed, nil, err
		}
		changed++
	}
	next := bpf.Service{ID: row.ID, Groups: uint8(len(w.groups))}
	type result struct {
		key   groupKey
		slots []bpf.Backend
		clear []uint32
	}
	var results []result
	var errs []error
	for i, g := range w.groups {
		key := groupKey{row.ID, g.Cluster}
		r, n, err := s.fill(key, w.slots[g.Cluster], countIn(row, g.Cluster))
		changed += n
		if err != nil {
			// What fits is used; the row says what is missing.
			errs = append(errs, err)
		}
		g.Count = uint32(len(r.slots))
		next.Group[i] = g
		results = append(results, result{key, r.slots, r.clear})
	}
	if !known || next != row {
		if err := s.table.Update(w.key, next); err != nil {
			return changed, nil, errors.Join(append(errs, err)...)
		}
		s.have[w.key] = next
		changed++
	}
	inUse := map[uint16]bool{}
	for _, r := range results {
		s.filled[r.key] = r.slots
		inUse[r.key.cluster] = true
		if len(r.clear) > 0 {
			after = append(after, s.clear(r.key, r.clear))
		}
	}
	for _, g := range row.Group[:row.Groups] {
		key := groupKey{row.ID, g.Cluster}
		if inUse[g.Cluster] || len(s.filled[key]) == 0 {
			continue
		}
		gone := make([]uint32, len(s.filled[key]))
		for i := range gone {
			gone[i] = uint32(i)
		}
		delete(s.filled, key)
		after = append(after, s.clear(key, gone))
	}
	return changed, after, errors.Join(errs...)
}

func countIn(row bpf.Service, cluster uint16) int {
	for _, g := range row.Group[:row.Groups] {
		if g.Cluster == cluster {
			return int(g.Count)
		}
	}
	return 0
}

type filling struct {
	slots []bpf.Backend
	clear []uint32
}

// fill writes the slots of one group. On an error it returns the slots that are
// usable all the same.
func (s *services) fill(key groupKey, want []bpf.Backend, count int) (filling, int, error) {
	have := s.filled[key]
	if count < len(have) {
		have = have[:count] // what is beyond the count was never cleared
	}
	ops, slots := service.Slots(have, want)
	out := filling{slots: slots}
	now := append([]bpf.Backend(nil), have...)
	changed := 0
	for _, op := range ops {
		switch op.Kind {
		case service.Put:
			if err := s.slots.Update(bpf.SlotKey{Service: key.service, Slot: op.Slot, Cluster: key.cluster}, op.Backend); err != nil {
				return filling{slots: now}, changed, err
			}
			changed++
			if int(op.Slot) == len(now) {
				now = append(now, op.Backend)
			} else {
				now[op.Slot] = op.Backend
			}
		case service.Clear:
			out.clear = append(out.clear, op.Slot)
		}
	}
	return out, changed, nil
}

func (s *services) clear(key groupKey, slots []uint32) func() error {
	return func() error {
		keys := make([]bpf.SlotKey, 0, len(slots))
		for _, slot := range slots {
			keys = append(keys, bpf.SlotKey{Service: key.service, Slot: slot, Cluster: key.cluster})
		}
		return s.slots.DeleteBatch(keys)
	}
}

// removeOne takes a frontend away: the row first, so that nothing leads to what
// goes after it.
func (s *services) removeOne(key bpf.ServiceKey, row bpf.Service) error {
	if err := s.table.Delete(key); err != nil {
		return err
	}
	delete(s.have, key)
	delete(s.mine, key)
	for group, slots := range s.filled {
		if group.service != row.ID {
			continue
		}
		gone := make([]uint32, len(slots))
		for i := range gone {
			gone[i] = uint32(i)
		}
		if err := s.clear(group, gone)(); err != nil {
			return err
		}
		delete(s.filled, group)
	}
	return nil
}

package program

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/service"
)

// balancing is how the backends of a frontend share its connections. The zero value is evenly
// and at random.
type balancing struct {
	split  *service.Split
	maglev bool
	size   uint32 // of the Maglev table; 0: by the number of backends
}

// balancingOf is how a service wants it.
func balancingOf(s *service.Service) balancing {
	return balancing{split: s.Split, maglev: s.Algorithm == service.Maglev, size: s.TableSize}
}

// shares is what the kernel holds for a service number beyond its slots: a row of balancing,
// and the pieces and backends of its Maglev tables.
//
//	slot of a table ──► number ──► row of backends, in the group with cluster 0
//
// A backend keeps its number as long as any slot may have it, so a slot is valid whichever of
// the writes before and after it have been made.
type shares struct {
	row    bpf.Balancing
	there  bool // whether the row is
	pieces map[bpf.MaglevKey]uint64
	number map[netip.AddrPort]uint16
	listed map[uint16]bpf.Backend
	next   uint16 // where free numbers are looked for first
}

// tableGroup is the group whose slots have the backends of Maglev tables.
const tableGroup = 0

// sharing are the shares of a service number. Most have none.
func (h *behind) sharing() *shares {
	if h.shares == nil {
		h.shares = &shares{pieces: map[bpf.MaglevKey]uint64{}, number: map[netip.AddrPort]uint16{}, listed: map[uint16]bpf.Backend{}}
	}
	return h.shares
}

// hashOf is FNV-1a: of each piece the hash is kept instead of its content.
func hashOf(slots *bpf.MaglevSlots) uint64 {
	h := uint64(14695981039346656037)
	for _, n := range slots.Backend {
		h = (h ^ uint64(n)) * 1099511628211
	}
	return h
}

func spotOf(b bpf.Backend) netip.AddrPort { return netip.AddrPortFrom(b.Addr.Netip(), b.Port.Number()) }

// adoptShares takes over what an earlier agent left.
func (b *balancer) adoptShares(m *bpf.Maps, found map[bpf.SlotKey]bpf.Backend) error {
	rows, failed := m.Balancing.All()
	for id, row := range rows {
		s := b.of(id).sharing()
		s.row, s.there = row, true
	}
	if err := failed(); err != nil {
		return fmt.Errorf("read map balancing: %w", err)
	}
	pieces, failed := m.Maglev.All()
	for k, slots := range pieces {
		b.of(k.Service).sharing().pieces[k] = hashOf(&slots)
	}
	if err := failed(); err != nil {
		return fmt.Errorf("read map maglev: %w", err)
	}
	for k, backend := range found {
		if k.Cluster != tableGroup || k.Slot == 0 || k.Slot > math.MaxUint16 {
			continue
		}
		own, who := b.of(k.Service), spotOf(backend)
		if s := own.sharing(); s.number[who] == 0 {
			s.number[who], s.listed[uint16(k.Slot)] = uint16(k.Slot), backend
			delete(own.stray, k)
		}
	}
	return nil
}

// share writes how the backends in a row's groups share connections, before the row itself,
// and says so in the row. unlisted says why a table could not be written: backends are chosen at
// random then, because the one from before may name none that is left.
func (b *balancer) share(own *behind, next *bpf.Service, how balancing) (changed int, unlisted, err error) {
	var row bpf.Balancing
	groups := next.Group[:next.Groups]
	weighted := own.weigh(groups, how.split, &row.Weights)
	if how.maglev {
		row.Slots = tableSize(groups, how.size)
	}
	next.Timeout = next.Timeout.Without(bpf.ServiceBalanced)
	if !weighted && row.Slots == 0 {
		return 0, nil, nil
	}
	s := own.sharing()
	row.Generation = s.row.Generation
	if row.Slots > 0 {
		if s.row.Slots != row.Slots {
			row.Generation++ // readers of the table from before still use that
		}
		if changed, unlisted = b.list(own, next.ID, groups, how.split, row); unlisted != nil {
			if row.Slots = 0; !weighted {
				return changed, unlisted, nil
			}
		}
	}
	if !s.there || s.row != row {
		if err := b.balancing.Update(next.ID, row); err != nil {
			if s.there {
				next.Timeout = next.Timeout.With(bpf.ServiceBalanced)
			}
			return changed, unlisted, err
		}
		s.row, s.there = row, true
		changed++
	}
	next.Timeout = next.Timeout.With(bpf.ServiceBalanced)
	return changed, unlisted, nil
}

// weigh says how many tickets the backends of each group hold; false if all hold one.
func (h *behind) weigh(groups []bpf.Group, split *service.Split, to *[bpf.MaxGroups]uint32) bool {
	all := make([]service.Portion, 0, len(groups))
	for _, g := range groups {
		p := service.Portion{Tier: g.Tier}
		if p.Class = classOf(g.Cluster); g.Weight > 0 {
			p.Count = int(g.Count)
		}
		number, _ := bpf.ClusterOf(g.Cluster)
		p.Cluster = service.ClusterID(number)
		if p.Class != 0 && split != nil {
			for _, backend := range h.slots(g.Cluster) {
				p.Rejected += uint64(backend.Reject)
			}
		}
		all = append(all, p)
	}
	tickets := service.Tickets(all, split)
	if copy(to[:], tickets) > 0 {
		return true
	}
	for i := range groups {
		to[i] = 1
	}
	return false
}

// tableSize is the size of a Maglev table for the backends in some groups; 0 if they do not fit.
func tableSize(groups []bpf.Group, size uint32) uint32 {
	n := 0
	for _, g := range groups {
		n += int(g.Count)
	}
	if !service.FitsTable(n, size) {
		return 0
	}
	if size == 0 {
		size = service.TableSizeFor(n)
	}
	return size
}

// list writes the Maglev tables of all tiers, as far as they have changed: the backends first.
func (b *balancer) list(own *behind, id uint32, groups []bpf.Group, split *service.Split, row bpf.Balancing) (changed int, err error) {
	tiers := map[uint8][]bpf.Group{}
	for _, g := range groups {
		if g.Count > 0 && g.Weight > 0 {
			tiers[g.Tier] = append(tiers[g.Tier], g)
		}
	}
	for tier, groups := range tiers {
		var backends []bpf.Backend
		var clusters []service.ClusterID
		for _, g := range groups {
			number, _ := bpf.ClusterOf(g.Cluster)
			for _, backend := range own.slots(g.Cluster) {
				backends, clusters = append(backends, backend), append(clusters, service.ClusterID(number))
			}
		}
		numbers := make([]uint16, len(backends))
		for i, backend := range backends {
			n, err := b.number(own, id, backend)
			if changed += n; err != nil {
				return changed, err
			}
			numbers[i] = own.sharing().number[spotOf(backend)]
		}
		table := service.LookupTable(row.Slots, split.Lists(len(backends), func(i int) (service.ClusterID, netip.AddrPort, uint16) {
			return clusters[i], spotOf(backends[i]), weightOf(backends[i])
		}))
		n, err := b.write(own, bpf.MaglevKey{Service: id, Tier: tier, Generation: row.Generation}, table, numbers)
		if changed += n; err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// number writes the row of a backend in tables. It keeps its number.
func (b *balancer) number(own *behind, id uint32, backend bpf.Backend) (changed int, err error) {
	who, s := spotOf(backend), own.sharing()
	backend.Reject = 0
	n, ok := s.number[who]
	if ok && s.listed[n] == backend {
		return 0, nil
	}
	if !ok {
		// Those that are gone leave their numbers later, so there may be more than fit a table.
		for n = s.next; n == 0 || s.listed[n] != (bpf.Backend{}); n++ {
			if len(s.listed) >= math.MaxUint16 {
				return 0, fmt.Errorf("more than %d backends", math.MaxUint16)
			}
		}
	}
	if err := b.slots.Update(bpf.SlotKey{Service: id, Slot: uint32(n), Cluster: tableGroup}, backend); err != nil {
		return 0, err
	}
	s.number[who], s.listed[n], s.next = n, backend, n+1
	return 1, nil
}

// write writes the pieces of a table that have changed.
func (b *balancer) write(own *behind, key bpf.MaglevKey, table []uint16, numbers []uint16) (changed int, err error) {
	pieces := own.sharing().pieces
	rows, hashes := map[bpf.MaglevKey]bpf.MaglevSlots{}, map[bpf.MaglevKey]uint64{}
	for part := range slices.Chunk(table, bpf.Piece) {
		var slots bpf.MaglevSlots
		for i, backend := range part {
			slots.Backend[i] = numbers[backend]
		}
		hash := hashOf(&slots)
		if have, ok := pieces[key]; !ok || have != hash {
			rows[key], hashes[key] = slots, hash
		}
		key.Piece++
	}
	if err := b.tables.UpdateBatch(rows); err != nil {
		for k := range rows { // some may be written
			pieces[k] = 0
		}
		return 0, err
	}
	maps.Copy(pieces, hashes)
	return len(rows), nil
}

// unshare removes what a row no longer leads to.
func (b *balancer) unshare(own *behind, id uint32, now bpf.Service) (changed int, err error) {
	s := own.shares
	if s == nil {
		return 0, nil
	}
	balanced := now.Timeout.Flags()&bpf.ServiceBalanced != 0
	tiers, keep := map[uint8]bool{}, map[netip.AddrPort]bool{}
	if balanced && s.row.Slots > 0 {
		for _, g := range now.Group[:now.Groups] {
			if g.Count > 0 && g.Weight > 0 {
				tiers[g.Tier] = true
				for _, backend := range own.slots(g.Cluster) {
					keep[spotOf(backend)] = true
				}
			}
		}
	}
	var first error
	if !balanced && s.there {
		if first = b.balancing.Delete(id); first == nil {
			s.there, s.row = false, bpf.Balancing{}
			changed++
		}
	}
	var pieces []bpf.MaglevKey
	for k := range s.pieces {
		if !tiers[k.Tier] || k.Generation != s.row.Generation || uint32(k.Piece)*bpf.Piece >= s.row.Slots {
			pieces = append(pieces, k)
		}
	}
	n, err := removeAll(b.tables, pieces, func(k bpf.MaglevKey) { delete(s.pieces, k) })
	if changed, first = changed+n, errors.Join(first, err); first != nil {
		return changed, first // slots may still have the backends
	}
	var gone []bpf.SlotKey
	for n, backend := range s.listed {
		if !keep[spotOf(backend)] {
			gone = append(gone, bpf.SlotKey{Service: id, Slot: uint32(n), Cluster: tableGroup})
		}
	}
	n, err = removeAll(b.slots, gone, func(k bpf.SlotKey) {
		n := uint16(k.Slot)
		delete(s.number, spotOf(s.listed[n]))
		delete(s.listed, n)
	})
	if !s.there && len(s.pieces)+len(s.listed) == 0 {
		own.shares = nil
	}
	return changed + n, err
}

// The parts of a cluster's backends are numbered by how near they are, in the lower bits, and
// by class.
const nearBits = 2

func groupOf(cluster service.ClusterID, near service.Near, class service.Class) uint16 {
	return bpf.PartOf(uint16(cluster), uint8(near)|uint8(class)<<nearBits)
}

func classOf(group uint16) service.Class {
	_, part := bpf.ClusterOf(group)
	return service.Class(part >> nearBits)
}

// slotOf is the slot of a backend in a group of some class.
func slotOf(at netip.AddrPort, node, weight uint16, class service.Class) bpf.Backend {
	row := bpf.Backend{Addr: bpf.AddrOf(at.Addr()), Port: bpf.PortOf(at.Port()), Node: node}
	if class != 0 {
		row.Weight, row.Reject = weight, class.Reject(weight)
	}
	return row
}

// weightOf is the weight of a backend in a slot.
func weightOf(b bpf.Backend) uint16 {
	if b.Weight == 0 {
		return service.DefaultWeight
	}
	return b.Weight
}

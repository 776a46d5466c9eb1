package program

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/service"
)

// balancer writes frontends to the maps services, balancing, maglev, backends, members and
// sources. A group's slots
// change with the fewest possible writes, each of which leaves a usable state.
type balancer struct {
	rows    *reconcile.Reconciler[bpf.ServiceKey, bpf.Service]
	slots   bpf.Table[bpf.SlotKey, bpf.Backend]
	members bpf.Table[bpf.MemberKey, bpf.Member]
	ranges  bpf.Table[bpf.RangeKey, uint32]

	balancing bpf.Table[uint32, bpf.Balancing]
	tables    bpf.Table[bpf.MaglevKey, bpf.MaglevSlots]
	// behind is what the kernel holds for each service number.
	behind map[uint32]*behind
	// begun are the numbers of frontends without a row, for which the other maps may
	// hold something: the row was not written yet, or only the row was removed.
	begun  map[bpf.ServiceKey]uint32
	lastID uint32
	// waits is set until everything is known: what an earlier agent left may be a backend of a
	// peer whose services have not been read again, and open connections rest on it.
	waits bool
	// left is called after an address has ceased to be a backend of a service.
	left func(bpf.Addr)
}

func newBalancer(m *bpf.Maps, left func(bpf.Addr)) (*balancer, error) {
	b := &balancer{left: left, slots: m.Backends, members: m.Members, ranges: m.Sources, balancing: m.Balancing, tables: m.Maglev, behind: map[uint32]*behind{}, begun: map[bpf.ServiceKey]uint32{}}
	var err error
	if b.rows, err = reconcile.New(m.Services, batchFrom, nil); err != nil {
		return nil, err
	}
	slots, failed := m.Backends.All()
	found := map[bpf.SlotKey]bpf.Backend{}
	for k, backend := range slots {
		found[k] = backend
		enter(&b.of(k.Service).stray, k, true)
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map backends: %w", err)
	}
	members, failed := m.Members.All()
	for k, member := range members {
		own := b.of(k.Service)
		enter(&own.members, k, member)
		enter(&own.found, k, true)
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map members: %w", err)
	}
	ranges, failed := m.Sources.All()
	for k := range ranges {
		enter(&b.of(k.Service).ranges, k, true)
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map sources: %w", err)
	}
	for _, row := range b.rows.Rows() {
		b.adopt(row, found)
	}
	if err := b.adoptShares(m, found); err != nil {
		return nil, err
	}
	for id := range b.behind {
		b.lastID = max(b.lastID, id)
	}
	return b, nil
}

// adopt takes over a row's usable slots, so that an interrupted write is completed.
func (b *balancer) adopt(row bpf.Service, found map[bpf.SlotKey]bpf.Backend) {
	own := b.of(row.ID)
	for _, g := range row.Group[:row.Groups] {
		var slots []bpf.Backend
		for i := range g.Count {
			backend, ok := found[bpf.SlotKey{Service: row.ID, Slot: i, Cluster: g.Cluster}]
			if !ok {
				break
			}
			slots = append(slots, backend)
		}
		own.use(row.ID, g.Cluster, slots)
	}
}

// of returns what the kernel holds for a service number.
func (b *balancer) of(id uint32) *behind {
	if b.behind[id] == nil {
		b.behind[id] = &behind{}
	}
	return b.behind[id]
}

// put writes one frontend. Order: members, clients that may use it, new slots, how they share
// connections, the row itself with its counts; then, if all of that succeeded, removal of what the row no longer leads to.
// A client that finds no room is kept out: the row says that there are some.
func (b *balancer) put(f *frontend) (changed int, err error) {
	row, known := b.rows.Row(f.key)
	if !known {
		row.ID = b.begin(f.key)
	}
	own := b.of(row.ID)
	if changed, err = b.join(own, row.ID, f.members); err != nil {
		return changed, err
	}
	next := bpf.Service{ID: row.ID, Groups: uint8(len(f.groups)), Timeout: f.timeout}
	var errs []error
	n, full := b.admit(own, row.ID, f.ranges)
	changed += n
	for i, g := range f.groups {
		n, err := b.fill(own, row.ID, g.Cluster, f.slots[g.Cluster])
		changed += n
		if err != nil {
			errs = append(errs, err) // use what fits
		}
		g.Count = uint32(len(own.slots(g.Cluster)))
		next.Group[i] = g
	}
	n, unlisted, err := b.share(own, &next, f.how)
	if changed += n; err != nil {
		errs = append(errs, err)
	}
	if have, ok := b.rows.Row(f.key); !ok || have != next {
		if err := b.rows.Put(f.key, next); err != nil {
			return changed, errors.Join(append(errs, full, unlisted, err)...)
		}
		delete(b.begun, f.key)
		changed++
	}
	// Whatever else failed, nobody stays who may no longer use it.
	n, err = b.refuse(own, f.ranges)
	changed += n
	if full != nil && n > 0 { // there is room now
		n, full = b.admit(own, row.ID, f.ranges)
		changed += n
	}
	if err = errors.Join(full, err); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return changed, errors.Join(append(errs, unlisted)...)
	}
	own.groups = slices.DeleteFunc(own.groups, func(g group) bool {
		_, wanted := f.slots[g.cluster]
		if !wanted {
			own.strayFrom(row.ID, g.cluster, 0, len(g.slots))
			delete(own.at, g.cluster)
		}
		return !wanted
	})
	n, err = b.unshare(own, row.ID, next)
	if changed += n; err != nil {
		return changed, errors.Join(unlisted, err)
	}
	n, err = b.tidy(own, f.members)
	return changed + n, errors.Join(unlisted, err)
}

// admit writes the clients that may use a frontend, those that are new.
func (b *balancer) admit(own *behind, id uint32, ranges map[bpf.RangeKey]bool) (changed int, err error) {
	for k := range ranges {
		k.Service = id
		if own.ranges[k] {
			continue
		}
		if err := b.ranges.Update(k, 1); err != nil {
			return changed, err
		}
		enter(&own.ranges, k, true)
		changed++
	}
	return changed, nil
}

// refuse removes the clients that may no longer use a frontend, whatever else fails.
func (b *balancer) refuse(own *behind, ranges map[bpf.RangeKey]bool) (changed int, err error) {
	var out []bpf.RangeKey
	for k := range own.ranges {
		bare := k
		bare.Service = 0
		if !ranges[bare] {
			out = append(out, k)
		}
	}
	return removeAll(b.ranges, out, func(k bpf.RangeKey) { delete(own.ranges, k) })
}

// begin returns the number for a new row.
func (b *balancer) begin(key bpf.ServiceKey) uint32 {
	if b.begun[key] == 0 {
		b.lastID++
		b.begun[key] = b.lastID
	}
	return b.begun[key]
}

// fill writes one group's slots. The kernel reads as many as before until the row is
// written.
func (b *balancer) fill(own *behind, id uint32, cluster uint16, want []bpf.Backend) (changed int, err error) {
	have := own.slots(cluster)
	ops, slots := service.Slots(have, want)
	if len(ops) == 0 {
		return 0, nil
	}
	now := slices.Clone(have)
	if rows := freshSlots(id, cluster, have, ops); rows != nil {
		if err := b.slots.UpdateBatch(rows); err == nil {
			own.use(id, cluster, slots)
			return len(rows), nil
		}
		// The batch may have come to some, and the first ones have to find room.
		own.strayFrom(id, cluster, 0, len(rows))
		_ = b.slots.DeleteBatch(slices.Collect(maps.Keys(rows))) // else tidy does
	}
	for _, op := range ops {
		if op.Kind != service.Put {
			continue // the row sets the count; clearing comes after it
		}
		if err := b.slots.Update(bpf.SlotKey{Service: id, Slot: op.Slot, Cluster: cluster}, op.Backend); err != nil {
			own.use(id, cluster, now)
			return changed, err
		}
		changed++
		if int(op.Slot) == len(now) {
			now = append(now, op.Backend)
		} else {
			now[op.Slot] = op.Backend
		}
	}
	own.use(id, cluster, slots)
	return changed, nil
}

// freshSlots are the slots of a group that had none, if that is worth a batch.
func freshSlots(id uint32, cluster uint16, have []bpf.Backend, ops []service.SlotOp[bpf.Backend]) map[bpf.SlotKey]bpf.Backend {
	if len(have) > 0 || len(ops) < fewRows {
		return nil
	}
	rows := make(map[bpf.SlotKey]bpf.Backend, len(ops))
	for _, op := range ops {
		if op.Kind == service.Put {
			rows[bpf.SlotKey{Service: id, Slot: op.Slot, Cluster: cluster}] = op.Backend
		}
	}
	return rows
}

// tidy removes stray slots, and all members but those in keep and those that wait.
func (b *balancer) tidy(own *behind, keep map[bpf.MemberKey]bpf.Member) (changed int, err error) {
	changed, err = removeAll(b.slots, slices.Collect(maps.Keys(own.stray)), func(k bpf.SlotKey) { delete(own.stray, k) })
	var gone []bpf.MemberKey
	for k := range own.members {
		bare := k
		bare.Service = 0
		if _, ok := keep[bare]; !ok && !(b.waits && own.found[k]) {
			gone = append(gone, k)
		}
	}
	n, other := b.part(own, gone)
	return changed + n, errors.Join(err, other)
}

// release removes the members that waited for everything to be known, and that nobody wants.
func (b *balancer) release() (changed int, err error) {
	for _, own := range b.behind {
		n, failed := b.part(own, slices.Collect(maps.Keys(own.found)))
		changed, err = changed+n, errors.Join(err, failed)
	}
	return changed, err
}

// removeAll deletes rows and calls gone for each that is deleted. It goes on after an
// error and returns the first one.
func removeAll[K comparable, V any](table bpf.Table[K, V], keys []K, gone func(K)) (changed int, first error) {
	changed = reconcile.Delete(table, batchFrom, keys, gone, reconcile.First[K](&first))
	return changed, first
}

// errUnknown is the error of a change of what the kernel does not hold.
var errUnknown = errors.New("no such row")

// apply changes one cluster's groups of a frontend that put has written, in the order of put. After
// an error put has to be asked.
func (b *balancer) apply(d *delta) (changed int, err error) {
	row, known := b.rows.Row(d.key)
	if !known {
		return 0, errUnknown
	}
	own := b.of(row.ID)
	if changed, err = b.join(own, row.ID, d.members); err != nil {
		return changed, err
	}
	for group, x := range d.slots {
		n, err := b.swap(own, row.ID, group, x)
		if changed += n; err != nil {
			return changed, err
		}
	}
	next := bpf.Service{ID: row.ID, Groups: uint8(len(d.groups)), Timeout: row.Timeout}
	for i, g := range d.groups {
		g.Count = uint32(len(own.slots(g.Cluster)))
		next.Group[i] = g
	}
	n, unlisted, err := b.share(own, &next, d.how)
	if changed += n; unlisted != nil || err != nil {
		return changed, errors.Join(unlisted, err)
	}
	if row != next {
		if err := b.rows.Put(d.key, next); err != nil {
			return changed, err
		}
		changed++
	}
	if n, err = b.unshare(own, row.ID, next); err == nil {
		changed += n
		n, err = removeAll(b.slots, slices.Collect(maps.Keys(own.stray)), func(k bpf.SlotKey) { delete(own.stray, k) })
	}
	if changed += n; err != nil {
		return changed, err
	}
	for i := range d.left {
		d.left[i].Service = row.ID
	}
	n, err = b.part(own, d.left)
	return changed + n, err
}

// swap puts newcomers into the slots of those that leave, or behind the last one, and the
// last ones into slots that stay empty.
func (b *balancer) swap(own *behind, id uint32, group uint16, x *exchange) (changed int, err error) {
	slots := own.slots(group)
	at := own.at[group]
	if at == nil {
		at = make(map[bpf.Backend]uint32, len(slots))
		for i, backend := range slots {
			at[backend] = uint32(i)
		}
	}
	defer func() {
		own.hold(group, slots)
		if enter(&own.at, group, at); err != nil {
			own.use(id, group, slots)
		}
	}()
	write := func(i int, backend bpf.Backend) error {
		key := bpf.SlotKey{Service: id, Slot: uint32(i), Cluster: group}
		if err := b.slots.Update(key, backend); err != nil {
			return err
		}
		if i == len(slots) {
			slots = append(slots, backend)
		} else {
			slots[i] = backend
		}
		delete(own.stray, key)
		at[backend] = uint32(i)
		changed++
		return nil
	}
	var holes []int
	for _, backend := range x.gone {
		i, ok := at[backend]
		if !ok {
			return changed, errUnknown
		}
		holes = append(holes, int(i))
	}
	slices.Sort(holes)
	for _, backend := range x.add {
		if _, ok := at[backend]; ok {
			return changed, errUnknown
		}
		i := len(slots)
		if len(holes) > 0 {
			i, holes = holes[0], holes[1:]
		}
		if err := write(i, backend); err != nil {
			return changed, err
		}
	}
	end := len(slots)
	for len(holes) > 0 {
		end--
		if holes[len(holes)-1] == end {
			holes = holes[:len(holes)-1]
			continue
		}
		if err := write(holes[0], slots[end]); err != nil {
			return changed, err
		}
		holes = holes[1:]
	}
	own.strayFrom(id, group, end, len(slots))
	slots = slots[:end]
	for _, backend := range x.gone {
		delete(at, backend)
	}
	return changed, nil
}

// drop removes one frontend.
func (b *balancer) drop(key bpf.ServiceKey) (changed int, err error) {
	id := b.begun[key]
	if row, known := b.rows.Row(key); known {
		if err := b.rows.Drop(key); err != nil {
			return 0, err
		}
		id, changed = row.ID, 1
		if key.Scope == bpf.ScopeNode { // its connections end
			b.left(key.Addr)
		}
	}
	if id == 0 {
		return 0, nil
	}
	n, err := b.bury(id)
	if err != nil {
		b.begun[key] = id
	} else {
		delete(b.begun, key)
	}
	return changed + n, err
}

// bury removes what is left of a service number whose row is gone.
func (b *balancer) bury(id uint32) (changed int, err error) {
	own := b.of(id)
	for _, g := range own.groups {
		own.strayFrom(id, g.cluster, 0, len(g.slots))
	}
	own.groups, own.at, own.found = nil, nil, nil // nothing waits
	changed, err = b.unshare(own, id, bpf.Service{})
	if err != nil {
		return changed, err
	}
	n, err := b.tidy(own, nil)
	changed += n
	n, other := b.refuse(own, nil)
	if err = errors.Join(err, other); err == nil {
		delete(b.behind, id)
	}
	return changed + n, err
}

// prune removes frontends that are not wanted, those of an earlier agent only if all is
// set, and whatever belongs to no row at all.
func (b *balancer) prune(wanted func(bpf.ServiceKey) bool, all bool, failed func(key bpf.ServiceKey, err error)) (changed int) {
	ids := map[uint32]bool{}
	for key, id := range b.begun {
		if wanted(key) {
			ids[id] = true
		}
	}
	for key, row := range b.rows.Rows() {
		ids[row.ID] = true
		if wanted(key) || !all && b.rows.Found(key) {
			continue
		}
		n, err := b.drop(key)
		if changed += n; err != nil {
			failed(key, err)
		}
	}
	for id := range b.behind {
		if ids[id] {
			continue
		}
		n, err := b.bury(id)
		if changed += n; err != nil {
			failed(bpf.ServiceKey{}, fmt.Errorf("service %d: %w", id, err))
		}
	}
	maps.DeleteFunc(b.begun, func(key bpf.ServiceKey, id uint32) bool { return !wanted(key) && b.behind[id] == nil })
	return changed
}

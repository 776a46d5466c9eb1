package program

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// frontends writes services to the kernel. It looks only at services for which
// something changed: the service, one of its slices, or a pod that a slice names.
// Services are identified by "namespace/name".
type frontends struct {
	services feed[*tables.Service]
	slices   feed[*tables.Slice]
	pods     feed[*tables.Pod]
	balancer *balancer

	// all is set until everything has been derived once, pruned once what an earlier
	// agent left has been removed.
	all, pruned bool
	// addressed is set once the node's addresses are known; readdressed, if they are others
	// than before.
	addressed, readdressed bool
	// client is where clients are, as the services were derived.
	client service.Client
	// clusters are those whose services have to be derived again; renamed are ranges in
	// which backends may have become acceptable, or no longer are; moved are ranges whose
	// backends may be on another node.
	clusters       map[string]bool
	renamed, moved []netip.Prefix
	// reassigned are addresses of our own cluster that somebody else has than before.
	reassigned []netip.Addr
	// placed is the index of the node that has a pod CIDR, as the backends say now.
	placed ranges[uint16]

	known  map[string]known
	offers offers
	// claims lists the services that declare a frontend, sorted. The first has it.
	claims map[bpf.ServiceKey][]string
	// outer are the addresses outside of the mesh that a service has itself: whether it may
	// have them depends on where the mesh is.
	outer map[string][]netip.Addr
	// split are the services that give clusters weights: any cluster that joins may be one of them.
	split map[string]bool
	// byHand maps an address to the services with a hand-written slice that names it:
	// whether it may depends on which pod has the address.
	byHand map[netip.Addr]map[string]bool
	// health are the health checks of services, without whether their rows are written; checkable,
	// that they may differ from what was last told.
	health    map[string]Health
	checkable bool
	// again and gone are services and removed frontends that have not reached the kernel.
	again map[string]bool
	gone  map[bpf.ServiceKey]bool
}

// known is what is kept of a service's derived.
type known struct {
	keys   []bpf.ServiceKey
	read   []rowName
	doubts []doubt
	byHand []netip.Addr
	live   *live // nil: made when it is needed
}

// changes is what is new about a service.
type changes struct {
	// whole is set if something beyond slices has changed.
	whole  bool
	slices []statedb.Change[*tables.Slice]
	// moved are slices some of whose backends may be on another node.
	moved []string
}

func newFrontends(m *bpf.Maps, t *tables.Tables, left func(bpf.Addr)) (*frontends, error) {
	f := &frontends{}
	f.forget()
	var err error
	if f.balancer, err = newBalancer(m, left); err != nil {
		return nil, err
	}
	if f.services, err = follow(t.DB, t.Services); err != nil {
		return nil, err
	}
	if f.slices, err = follow(t.DB, t.Slices); err != nil {
		return nil, err
	}
	if f.pods, err = follow(t.DB, t.Pods); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *frontends) close() {
	f.services.close()
	f.slices.close()
	f.pods.close()
}

// forget makes the next pass derive everything from scratch.
func (f *frontends) forget() {
	f.all, f.pruned = true, false
	f.clusters, f.renamed, f.moved = map[string]bool{}, nil, nil
	f.placed, f.offers = ranges[uint16]{}, newOffers()
	f.known = map[string]known{}
	f.claims, f.byHand, f.outer = map[bpf.ServiceKey][]string{}, map[netip.Addr]map[string]bool{}, map[string][]netip.Addr{}
	f.health, f.split = map[string]Health{}, map[string]bool{}
	f.again, f.gone = map[string]bool{}, map[bpf.ServiceKey]bool{}
}

// write brings the kernel up to date with the snapshot.
func (f *frontends) write(v *view, index func(string) uint16, r *report) (changed int) {
	dirty := dirt{}
	for id := range f.again {
		dirty.whole(id)
	}
	f.again = map[string]bool{}
	if c := v.client(); c != f.client { // its node has another zone
		f.client, f.all = c, true
	}
	complete := v.complete() && f.addressed
	all, prune := f.all, complete && !f.pruned
	f.balancer.waits = !complete
	moved := f.moved
	if all {
		r.stage("services", "slices", hostPorts)
		f.skip(v, dirty, index)
	} else {
		f.take(v, r, dirty)
	}
	f.clusters, f.renamed, f.moved, f.readdressed = map[string]bool{}, nil, nil, false
	if len(dirty) == 0 && len(f.gone) == 0 && !all && !prune {
		f.place(v, moved, index)
		return 0
	}
	f.all = false

	touched := f.gone
	f.gone = map[bpf.ServiceKey]bool{}
	work := map[string]derived{}
	for id, c := range dirty {
		if n, ok := f.follow(v, id, c, index); ok {
			changed += n
			continue
		}
		d := deriveService(v, id, index)
		work[id] = d
		f.learn(id, d, touched, r)
		if !c.whole {
			f.keep(id, newLive(&d))
		}
	}
	f.place(v, moved, index)
	f.settle(v, index, work, touched, r)
	for id, d := range work {
		changed += f.carry(v, id, d, r)
	}
	f.checkable = true
	for key := range touched {
		if len(f.claims[key]) > 0 {
			continue
		}
		if key.Scope == bpf.ScopeOutside && f.unsettled(key) {
			f.gone[key] = true
			continue
		}
		r.row("services", frontendName(key))
		n, err := f.balancer.drop(key)
		if changed += n; err != nil {
			f.gone[key] = true
			r.fail("services", frontendName(key), err)
		}
	}
	if all || prune {
		f.pruned = complete
		changed += f.balancer.prune(f.wants, f.pruned, func(key bpf.ServiceKey, err error) {
			f.all, f.pruned = true, false
			r.fail("services", frontendName(key), err)
		})
	}
	if (all || prune) && f.pruned {
		n, err := 0, error(nil)
		if f.pruned = len(f.again) == 0; f.pruned { // else some may be wanted
			n, err = f.balancer.release()
		}
		if changed += n; err != nil {
			f.all, f.pruned = true, false
			r.fail("services", "", err)
		}
	}
	return changed
}

// dirt is what has changed, by service.
type dirt map[string]*changes

func (d dirt) of(id string) *changes {
	if d[id] == nil {
		d[id] = &changes{}
	}
	return d[id]
}

func (d dirt) whole(id string) { d.of(id).whole = true }

// follow writes what changed in a service of which only slices have changed, and returns
// how many rows that were; false if the service has to be derived as a whole.
func (f *frontends) follow(v *view, id string, c *changes, index func(string) uint16) (changed int, ok bool) {
	l := f.known[id].live
	if l == nil {
		return 0, false
	}
	f.keep(id, nil)
	if c.whole {
		return 0, false
	}
	deltas, ok := l.move(v, c.moved, f.nodeOf, func(a netip.Addr) uint16 { return v.nodeOf(a, index) })
	if !ok {
		return 0, false
	}
	if changed, ok = f.apply(id, deltas); !ok {
		return changed, false
	}
	for _, slice := range c.slices {
		deltas, ok := l.follow(v, slice, index)
		if !ok {
			return changed, false
		}
		n, ok := f.apply(id, deltas)
		if changed += n; !ok {
			return changed, false
		}
	}
	f.keep(id, l)
	return changed, true
}

// apply writes changes of a service's frontends, those that it has. It returns false if
// it cannot: what is missing shows when the service is written whole.
func (f *frontends) apply(id string, deltas []delta) (changed int, ok bool) {
	for i := range deltas {
		if f.claims[deltas[i].key][0] != id {
			continue
		}
		n, err := f.balancer.apply(&deltas[i])
		if changed += n; err != nil {
			return changed, false
		}
	}
	return changed, true
}

// keep remembers a service's live.
func (f *frontends) keep(id string, l *live) {
	if k, ok := f.known[id]; ok {
		k.live = l
		f.known[id] = k
	}
}

func (f *frontends) wants(key bpf.ServiceKey) bool { return len(f.claims[key]) > 0 }

func frontendName(key bpf.ServiceKey) string {
	return fmt.Sprintf("%v:%d", key.Addr, key.Port.Number())
}

// skip ignores single changes and marks every service dirty.
func (f *frontends) skip(v *view, dirty dirt, index func(string) uint16) {
	f.services.skip(v.txn)
	f.slices.skip(v.txn)
	f.reassigned = nil
	f.pods.skip(v.txn)
	for p := range v.tables.Pods.All(v.txn) {
		if len(v.hostPortsOf(p)) > 0 {
			dirty.whole(podID(p))
		}
	}
	f.offers, f.placed = newOffers(), ranges[uint16]{}
	for id := range f.known {
		dirty.whole(id)
	}
	ids := map[string]string{} // one copy of each is kept
	one := func(id string) string {
		if have, ok := ids[id]; ok {
			return have
		}
		ids[id] = id
		return id
	}
	for s := range v.tables.Services.All(v.txn) {
		id := one(s.ID())
		dirty.whole(id)
		f.offers.carry(id, s.Key(), inService(s))
	}
	for s := range v.tables.Slices.All(v.txn) {
		id := one(s.ServiceID())
		dirty.whole(id)
		f.offers.slice(id, s.Key(), inSlice(s))
	}
	for _, s := range v.nodes.known {
		if s.believed != nil {
			f.place(v, s.cidrs(), index)
		}
	}
}

// take marks the services dirty that changes since the last snapshot concern.
func (f *frontends) take(v *view, r *report, dirty dirt) {
	for _, prefix := range f.renamed {
		for o := range f.offers.within(prefix) {
			if slices.ContainsFunc(v.offered(o), prefix.Contains) {
				dirty.whole(o.service)
			}
		}
	}
	for _, prefix := range f.moved { // by what is offered so far
		for o := range f.offers.within(prefix) {
			if of := dirty.of(o.service); o.carried {
				of.whole = true
			} else {
				of.moved = append(of.moved, o.key)
			}
		}
	}
	if f.readdressed {
		for s := range tables.OfCluster(v.txn, v.tables.Services, v.own.Name) {
			if s.HasNodePorts() || s.HasOuter() {
				dirty.whole(s.ID())
			}
		}
	}
	for id, addrs := range f.outer {
		if len(f.renamed) > 0 && slices.ContainsFunc(f.renamed, func(p netip.Prefix) bool { return slices.ContainsFunc(addrs, p.Contains) }) {
			dirty.whole(id)
		}
	}
	f.takePods(v, r, dirty)
	if len(f.clusters) > 0 {
		for id := range f.split {
			dirty.whole(id)
		}
	}
	for name := range f.clusters {
		for s := range tables.OfCluster(v.txn, v.tables.Services, name) {
			dirty.whole(s.ID())
		}
		for s := range tables.OfCluster(v.txn, v.tables.Slices, name) {
			dirty.whole(s.ServiceID())
		}
	}
	for _, c := range f.services.take(v.txn) {
		id, key := c.Object.ID(), c.Object.Key()
		r.row("services", key)
		dirty.whole(id)
		if c.Deleted {
			f.offers.carry(id, key, nil)
		} else {
			f.offers.carry(id, key, inService(c.Object))
		}
	}
	for _, c := range f.slices.take(v.txn) {
		key := c.Object.Key()
		r.row("slices", key)
		id := c.Object.ServiceID()
		var before string
		if c.Deleted {
			before = f.offers.dropSlice(key)
		} else {
			before = f.offers.slice(id, key, inSlice(c.Object))
		}
		if before != "" && before != id {
			dirty.whole(before)
		}
		of := dirty.of(id)
		of.slices = append(of.slices, c)
	}
	for _, a := range f.reassigned {
		for id := range f.byHand[a] {
			dirty.whole(id)
		}
	}
	f.reassigned = nil
}

// place takes over which nodes have these pod CIDRs, once the backends say so.
func (f *frontends) place(v *view, cidrs []netip.Prefix, index func(string) uint16) {
	for _, cidr := range cidrs {
		if key, of := v.claimant(cidr); of == cidr && v.node(key) != nil && index(key) != 0 {
			f.placed.put(cidr, index(key))
		} else {
			f.placed.drop(cidr)
		}
	}
}

// nodeOf is the index that the backends with an address have.
func (f *frontends) nodeOf(a netip.Addr) (index uint16) {
	for _, i := range f.placed.around(whole(a)) {
		index = i
	}
	return index
}

// learn replaces what is known of a service, and adds the frontends that it declares
// or did declare to touched.
func (f *frontends) learn(id string, d derived, touched map[bpf.ServiceKey]bool, r *report) {
	before := f.known[id]
	for _, at := range before.read {
		r.row(at.table, at.row)
	}
	next := known{read: d.read, doubts: d.doubts, byHand: d.byHand}
	for _, w := range d.frontends {
		next.keys = append(next.keys, w.key)
	}
	for _, key := range before.keys {
		touched[key] = true
		if i, ok := slices.BinarySearch(f.claims[key], id); ok {
			f.claims[key] = slices.Delete(f.claims[key], i, i+1)
		}
		if len(f.claims[key]) == 0 {
			delete(f.claims, key)
		}
	}
	for _, key := range next.keys {
		touched[key] = true
		i, _ := slices.BinarySearch(f.claims[key], id)
		f.claims[key] = slices.Insert(f.claims[key], i, id)
	}
	for _, a := range before.byHand {
		delete(f.byHand[a], id)
		if len(f.byHand[a]) == 0 {
			delete(f.byHand, a)
		}
	}
	for _, a := range next.byHand {
		if f.byHand[a] == nil {
			f.byHand[a] = map[string]bool{}
		}
		f.byHand[a][id] = true
	}
	delete(f.health, id)
	if d.own != nil && d.own.HealthPort != 0 {
		h := Health{Namespace: d.own.Namespace, Name: d.own.Name, Port: d.own.HealthPort, Local: d.own.Local(d.here)}
		if d.svc.Split.Of(d.client.Cluster) == 0 { // they get no new connections
			h.Local = 0
		}
		f.health[id] = h
	}
	if delete(f.split, id); d.svc.Split != nil {
		f.split[id] = true
	}
	delete(f.outer, id)
	if len(d.outer) > 0 {
		f.outer[id] = d.outer
	}
	if len(next.keys)+len(next.read) == 0 {
		delete(f.known, id)
	} else {
		f.known[id] = next
	}
}

// settle adds to work the services that now have a touched frontend, and notes a doubt
// for each service that declares one and does not have it.
func (f *frontends) settle(v *view, index func(string) uint16, work map[string]derived, touched map[bpf.ServiceKey]bool, r *report) {
	concerned := map[string]bool{}
	for id := range work {
		concerned[id] = true
	}
	for key := range touched {
		for i, id := range f.claims[key] {
			concerned[id] = true
			if _, ok := work[id]; !ok && i == 0 {
				work[id] = deriveService(v, id, index)
			}
		}
	}
	for id := range concerned {
		k := f.known[id]
		for _, at := range k.read {
			r.row(at.table, at.row)
		}
		v.doubts = append(v.doubts, k.doubts...)
		for _, key := range k.keys {
			if by := f.claims[key][0]; by != id && key.Scope != bpf.ScopeOutside {
				row := v.rowOf(id)
				v.doubts = append(v.doubts, doubt{row.table, row.row, taken(key, v.rowOf(by).holder())})
			}
		}
	}
}

// outsideOf is the row for clients outside beside a frontend's.
func outsideOf(key bpf.ServiceKey) bpf.ServiceKey {
	key.Scope = bpf.ScopeOutside
	return key
}

// unsettled tells whether the frontend beside this row for clients outside may still send them
// here, because it could not be written.
func (f *frontends) unsettled(outside bpf.ServiceKey) bool {
	beside := outside
	beside.Scope = bpf.ScopeAny
	claims := f.claims[beside]
	return len(claims) > 0 && f.again[claims[0]]
}

// carry writes the frontends that a service has.
func (f *frontends) carry(v *view, id string, d derived, r *report) (changed int) {
	refused := map[bpf.ServiceKey]bool{}
	for i := range d.frontends {
		w := &d.frontends[i]
		if f.claims[w.key][0] != id {
			continue
		}
		// One that sends clients outside to a row of their own needs that row first.
		if w.timeout.Flags()&bpf.ServiceSplit != 0 && refused[outsideOf(w.key)] {
			continue
		}
		n, err := f.balancer.put(w)
		if changed += n; err != nil {
			f.again[id], refused[w.key] = true, true
			row := v.rowOf(id)
			r.fail(row.table, row.row, err)
		}
	}
	return changed
}

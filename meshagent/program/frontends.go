package program

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// frontends writes services to the kernel. It looks only at services for which
// something changed: the service, one of its slices, or a pod that a slice names.
// Services are identified by "namespace/name".
type frontends struct {
	services feed[*tables.Service]
	slices   feed[*tables.Slice]
	ips      feed[*tables.IP]
	balancer *balancer

	// ground is what every service depends on: clusters, nodes and their indexes. When
	// it changes, everything is derived from scratch.
	ground signature
	known  map[string]known
	// partOf maps a slice's key to its service.
	partOf map[string]string
	// claims lists the services that declare a frontend, sorted. The first has it.
	claims map[bpf.ServiceKey][]string
	// byHand maps an address to the services with a hand-written slice that names it:
	// whether it may depends on which pod has the address.
	byHand map[netip.Addr]map[string]bool
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
}

func newFrontends(m *bpf.Maps, t *tables.Tables) (*frontends, error) {
	f := &frontends{}
	f.forget()
	var err error
	if f.balancer, err = newBalancer(m); err != nil {
		return nil, err
	}
	if f.services, err = follow(t.DB, t.Services); err != nil {
		return nil, err
	}
	if f.slices, err = follow(t.DB, t.Slices); err != nil {
		return nil, err
	}
	if f.ips, err = follow(t.DB, t.IPs); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *frontends) close() {
	f.services.close()
	f.slices.close()
	f.ips.close()
}

// forget makes the next pass derive everything from scratch.
func (f *frontends) forget() {
	f.ground = signature{}
	f.known, f.partOf = map[string]known{}, map[string]string{}
	f.claims, f.byHand = map[bpf.ServiceKey][]string{}, map[netip.Addr]map[string]bool{}
	f.again, f.gone = map[string]bool{}, map[bpf.ServiceKey]bool{}
}

// write brings the kernel up to date with the snapshot.
func (f *frontends) write(v *view, ground signature, index func(string) uint16, r *report) (changed int) {
	dirty := f.again
	f.again = map[string]bool{}
	all := ground != f.ground
	if all {
		r.stage("services", "slices")
		f.skip(v, dirty)
	} else {
		f.take(v, r, dirty)
	}
	if len(dirty) == 0 && len(f.gone) == 0 && !all {
		return 0
	}
	f.ground = ground

	touched := f.gone
	f.gone = map[bpf.ServiceKey]bool{}
	work := map[string]derived{}
	for id := range dirty {
		work[id] = deriveService(v, id, index)
		f.learn(id, work[id], touched, r)
	}
	f.settle(v, index, work, touched, r)
	for id, d := range work {
		changed += f.carry(v, id, d, r)
	}
	for key := range touched {
		if len(f.claims[key]) > 0 {
			continue
		}
		r.row("services", frontendName(key))
		n, err := f.balancer.drop(key)
		if changed += n; err != nil {
			f.gone[key] = true
			r.fail("services", frontendName(key), err)
		}
	}
	if all {
		changed += f.balancer.prune(f.wants, ground.prune, func(key bpf.ServiceKey, err error) {
			f.ground = signature{}
			r.fail("services", frontendName(key), err)
		})
	}
	return changed
}

func (f *frontends) wants(key bpf.ServiceKey) bool { return len(f.claims[key]) > 0 }

func frontendName(key bpf.ServiceKey) string {
	return fmt.Sprintf("%v:%d", key.Addr, key.Port.Number())
}

// skip ignores single changes and marks every service dirty.
func (f *frontends) skip(v *view, dirty map[string]bool) {
	f.services.skip(v.txn)
	f.slices.skip(v.txn)
	f.ips.skip(v.txn)
	for id := range f.known {
		dirty[id] = true
	}
	for s := range v.tables.Services.All(v.txn) {
		dirty[s.ID()] = true
	}
	clear(f.partOf)
	for s := range v.tables.Slices.All(v.txn) {
		dirty[s.ServiceID()] = true
		f.partOf[s.Key()] = s.ServiceID()
	}
}

// take marks the services dirty that changes since the last snapshot concern.
func (f *frontends) take(v *view, r *report, dirty map[string]bool) {
	for _, c := range f.services.take(v.txn) {
		r.row("services", c.Object.Key())
		dirty[c.Object.ID()] = true
	}
	for _, c := range f.slices.take(v.txn) {
		key := c.Object.Key()
		r.row("slices", key)
		if before, ok := f.partOf[key]; ok {
			dirty[before] = true
		}
		dirty[c.Object.ServiceID()] = true
		if c.Deleted {
			delete(f.partOf, key)
		} else {
			f.partOf[key] = c.Object.ServiceID()
		}
	}
	for _, c := range f.ips.take(v.txn) {
		if c.Object.Cluster == v.own.Name && c.Object.Prefix.IsSingleIP() {
			maps.Copy(dirty, f.byHand[c.Object.Prefix.Addr()])
		}
	}
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
			if by := f.claims[key][0]; by != id {
				v.doubts = append(v.doubts, doubt{"services", v.own.Name + "/" + id, taken(key, v.own.Name+"/"+by)})
			}
		}
	}
}

// carry writes the frontends that a service has.
func (f *frontends) carry(v *view, id string, d derived, r *report) (changed int) {
	for i := range d.frontends {
		w := &d.frontends[i]
		if f.claims[w.key][0] != id {
			continue
		}
		n, err := f.balancer.put(w)
		if changed += n; err != nil {
			f.again[id] = true
			r.fail("services", v.own.Name+"/"+id, err)
		}
	}
	return changed
}

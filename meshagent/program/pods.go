package program

import (
	"fmt"
	"iter"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/reconcile"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// subject is an address of a pod on this node, as policies judge it.
type subject struct {
	addr     bpf.Addr
	identity identity.Number
	labels   identity.Labels
	ports    []wire.NamedPort
	set      uint32 // kernel number
	placed   bool   // set belongs to the current generation
}

// at is the pod as its peers see it.
func (s subject) at() endpointAt { return endpointAt{whole(s.addr.Netip()), s.identity, s.ports} }

// judgedAs returns the labels by which policies judge a pod, including its ports that
// policies refer to by name.
func (p *Program) judgedAs(s subject) identity.Labels {
	return identity.NewLabels(append(slices.Clone(s.labels), p.variants.portLabels(s.ports)...)...)
}

// subjectsOf yields the addresses of a pod on this node, and the names of their subjects:
// that of the first is the pod's.
func subjectsOf(e *tables.Endpoint) iter.Seq2[string, bpf.Addr] {
	return func(yield func(string, bpf.Addr) bool) {
		if e.IP.IsValid() && !yield(e.Key(), bpf.AddrOf(e.IP)) {
			return
		}
		if e.Second.IsValid() {
			yield(e.Key()+" "+e.Second.String(), bpf.AddrOf(e.Second))
		}
	}
}

// learnSubjects works out the identity of each pod on this node. A pod keeps its last
// known identity until there is a new one: a row missing upstream takes nothing away.
func (p *Program) learnSubjects(v *view) {
	seen := map[string]bool{}
	for e := range v.tables.Endpoints.All(v.txn) {
		for key, addr := range subjectsOf(e) {
			seen[key] = true
			n, labels := p.whois(v, e, addr)
			if labels == nil {
				continue
			}
			s, known := p.subjects[key]
			ports := s.ports
			if pod := tables.Get(v.txn, v.tables.Pods, e.Key()); pod != nil && pod.Endpoint != nil && pod.Endpoint.IP == e.IP {
				ports = pod.Endpoint.NamedPorts
			}
			if known && s.addr == addr && s.identity == n && s.labels.Equal(labels) && slices.Equal(s.ports, ports) {
				continue
			}
			p.subjects[key] = subject{addr: addr, identity: n, labels: labels, ports: ports}
		}
	}
	for key := range p.subjects {
		if !seen[key] {
			delete(p.subjects, key)
		}
	}
}

// whois returns the identity the API server gave the pod, or else the one the kernel
// has from before.
func (p *Program) whois(v *view, e *tables.Endpoint, addr bpf.Addr) (identity.Number, identity.Labels) {
	pod := tables.Get(v.txn, v.tables.Pods, e.Key())
	if pod != nil && pod.Endpoint != nil {
		ep := pod.Endpoint
		if ep.IP == e.IP && ep.Identity != identity.Unknown && (ep.UID == e.UID || ep.UID == "" || e.UID == "") {
			if len(ep.Labels) > 0 {
				return ep.Identity, ep.Labels
			}
			if row := tables.Get(v.txn, v.tables.Identities, (&tables.Identity{Cluster: v.own.Name, Number: ep.Identity}).Key()); row != nil {
				return row.Number, row.Labels
			}
		}
	}
	if row, ok := p.endpoints.Row(addr); ok && row.Held == 0 && row.Ifindex == uint32(e.Ifindex) {
		if known := tables.Get(v.txn, v.tables.Identities, (&tables.Identity{Cluster: v.own.Name, Number: identity.Number(row.Identity)}).Key()); known != nil {
			return known.Number, known.Labels
		}
	}
	return 0, nil
}

// unplaced places the subjects whose set is known, and says whether any needs a
// compilation to know its set.
func (p *Program) unplaced(v *view) bool {
	p.enlist()
	if _, ok := p.renumber(v); !ok {
		return true
	}
	for key, s := range p.subjects {
		if s.placed {
			continue
		}
		set, ok, err := p.policies.setFor(p.judgedAs(s))
		if !ok || err != nil {
			return true
		}
		s.set, s.placed = set, true
		p.subjects[key] = s
		p.epoch++ // its row follows
	}
	return false
}

// enlist has rules made for the named ports of this node's pods.
func (p *Program) enlist() {
	for key, s := range p.subjects {
		ports, before := p.variants.portLabels(s.ports), p.enlisted[key]
		if p.enlisted[key] = ports; !ports.Equal(before) {
			p.policies.current.Enlist(ports, 1)
			p.policies.current.Enlist(before, -1)
		}
	}
	for key, ports := range p.enlisted {
		if _, ok := p.subjects[key]; !ok {
			p.policies.current.Enlist(ports, -1)
			delete(p.enlisted, key)
		}
	}
}

// pods writes the rows of this node's pods. A pod whose identity or policy is not
// known yet is held.
func (p *Program) pods(v *view, r *report) (changed int) {
	r.stage("endpoints")
	if p.policies.current != nil {
		for _, s := range p.subjects {
			p.variants.of(s.at())
		}
		if err := p.acquaint(); err != nil {
			r.fail("endpoints", "", err)
			return 0
		}
	}
	want := map[bpf.Addr]bpf.Endpoint{}
	from := map[bpf.Addr]string{}
	var live []*tables.Endpoint
	placed := true
	for e := range v.tables.Endpoints.All(v.txn) {
		if e.Ifindex == 0 || e.Phase == tables.Removing {
			continue
		}
		all := true
		for key, addr := range subjectsOf(e) {
			from[addr] = e.Key()
			row := bpf.Endpoint{Ifindex: uint32(e.Ifindex), ID: e.ID, MAC: e.MAC, HostMAC: e.HostMAC, Held: 1}
			if have, ok := p.endpoints.Row(addr); ok && have.Ifindex == row.Ifindex {
				row.Identity, row.Set, row.Held = have.Identity, have.Set, have.Held
			}
			if s, ok := p.subjects[key]; ok && s.placed && s.addr == addr {
				row.Identity, row.Set, row.Held = uint32(p.variants.of(s.at())), s.set, 0
			} else {
				all, placed = false, placed && row.Held != 0
			}
			want[addr] = row
		}
		if all {
			live = append(live, e)
		}
	}
	// Pruning is always safe: all pods on the node have been adopted. One that comes or
	// goes meanwhile changes the table, and the next pass puts its row right.
	failed := func(k bpf.Addr, err error) { r.fail("endpoints", orText(from[k], k.String()), err) }
	changed = p.endpoints.Update(want, failed) + p.endpoints.Prune(reconcile.In(want), failed)
	if changed > 0 {
		p.policies.tire() // a set may have lost its last endpoint
	}
	p.renumbered = p.renumbered && !(placed && r.clean("endpoints"))
	p.publish(v, live)
	return changed
}

// publish records in table endpoints that pods have gone live.
func (p *Program) publish(v *view, live []*tables.Endpoint) {
	var changed []*tables.Endpoint
	for _, e := range live {
		s := p.subjects[e.Key()]
		if !p.letsThrough(e) {
			continue
		}
		if e.Phase == tables.Held || e.Phase == tables.Live && (e.Identity != s.identity || e.Set != s.set) {
			changed = append(changed, e)
		}
	}
	if len(changed) == 0 {
		return
	}
	t := v.tables
	txn := t.DB.WriteTxn(t.Endpoints)
	for _, e := range changed {
		s := p.subjects[e.Key()]
		// The row may have changed since the snapshot, or be gone; the next pass handles it.
		tables.Edit(txn, t.Endpoints, e.Key(), func(row *tables.Endpoint) {
			if row.Ifindex == e.Ifindex && row.Phase != tables.Removing {
				row.Phase, row.Identity, row.Labels, row.Set = tables.Live, s.identity, s.labels, s.set
			}
		})
	}
	txn.Commit()
}

// letsThrough reports whether the kernel lets packets of all of a pod's addresses through.
func (p *Program) letsThrough(e *tables.Endpoint) bool {
	for _, addr := range subjectsOf(e) {
		if have, ok := p.endpoints.Row(addr); !ok || have.Held != 0 {
			return false
		}
	}
	return true
}

// String describes a subject for logs.
func (s subject) String() string { return fmt.Sprintf("%v (%v)", s.addr, s.identity) }

package program

import (
	"fmt"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/policy"
)

// judge brings policies and identities up to date from scratch: in the current
// generation if possible, otherwise with a new one.
func (p *Program) judge(v *view, r *report) (changed int) {
	r.stage("policies", "identities")
	p.identities.skip(v.txn)
	p.changed.skip(v.txn)
	p.force.load(v)
	all, groups := p.force.all(), p.force.groups()
	named := policy.CIDRIdentities(all, groups, v.apiServers)
	for prefix := range p.force.prefixes.leaving {
		if _, ok := named[prefix]; !ok {
			named[prefix] = policy.CIDRLabels(prefix)
		}
	}
	cidrs, labels := p.numbers.number(named, p.carries)
	if v.isAPIServer(v.node(v.selfKey())) {
		labels[identity.Host] = policy.WithAPIServer(identity.ReservedLabels(identity.Host))
	}
	for row := range v.tables.Identities.All(v.txn) {
		if v.vouchedFor(row) {
			labels[row.Number] = row.Labels
		}
	}
	p.learnSubjects(v)
	p.learnCIDRs(cidrs)
	p.learnApart()
	p.numberAll(v, labels)

	// By the rules in force first, whether or not the next ones fit.
	if p.policies.current != nil {
		n, err := p.policies.identities(labels)
		if changed += n; err != nil {
			r.fail("identities", "", err)
			return changed
		}
	}
	rev := v.tables.Policies.Revision(v.txn)
	if p.policies.current != nil && p.policies.revision == rev && !p.unplaced(v) {
		clear(p.variants.news)
		return changed
	}
	if err := p.compile(v, all, groups, labels); err != nil {
		r.fail("policies", "", err)
		return changed
	}
	p.policies.revision = rev
	p.epoch++
	p.renumbered = false
	clear(p.variants.news)
	return changed + 1
}

// learnApart takes over what policies distinguish.
func (p *Program) learnApart() {
	x := p.variants
	blocks, ports := ranges[struct{}]{}, map[string]bool{}
	same := true
	for block := range p.force.blocks.all() {
		_, known := x.blocks.get(block)
		same = same && known
		blocks.put(block, struct{}{})
	}
	for port := range p.force.ports.all() {
		same = same && x.ports[port]
		ports[port] = true
	}
	x.blocks, x.ports = blocks, ports
	if !same {
		p.owners.all = true
		p.epoch++
	}
}

// compile makes a generation and switches to it.
func (p *Program) compile(v *view, all []*policy.Policy, groups []*policy.CIDRGroup, labels map[identity.Number]identity.Labels) error {
	if err := p.introduceVariants(v); err != nil {
		return err
	}
	if err := p.introduce(v); err != nil {
		return err
	}
	subjects, present := map[string]identity.Labels{}, map[string]uint32{}
	for key, s := range p.subjects {
		subjects[key] = p.judgedAs(s)
		row, _ := p.endpoints.Row(s.addr)
		present[key] = row.Set
	}
	w := policy.World{Cluster: v.own.Name, Policies: all, Groups: groups, Identities: labels}
	next, err := p.policies.compile(w, subjects, present, func(ep string, set uint32) error {
		addr := p.subjects[ep].addr
		row, ok := p.endpoints.Row(addr)
		if !ok {
			return nil
		}
		row.Set = set
		if err := p.endpoints.Put(addr, row); err != nil {
			return err
		}
		if s := p.subjects[ep]; s.placed {
			s.set = set
			p.subjects[ep] = s
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.policies.announce(next)
	want := p.settings
	want.PolicyGen, want.Cluster = next.gen, uint16(v.own.ID())
	if err := p.cfg.Maps.Settings.Update(0, want); err != nil {
		return fmt.Errorf("switch to policy generation %d: %w", next.gen, err)
	}
	p.settings, p.revisions.all = want, true
	p.policies.switched(next, time.Now())
	p.enlisted = map[string]identity.Labels{}
	for key, s := range p.subjects {
		p.enlisted[key] = p.variants.portLabels(s.ports)
	}
	for key, set := range next.assignment.final {
		s := p.subjects[key]
		s.set, s.placed = set, true
		p.subjects[key] = s
	}
	_ = p.raise() // for open connections too; writeSettings tries again after an error
	return nil
}

// expire removes what no program can be using any longer.
func (p *Program) expire(v *view, r *report) {
	if p.policies.stale.IsZero() || time.Since(p.policies.stale) < grace || p.policies.current == nil {
		return
	}
	r.stage("generations")
	again, err := p.tidy(v)
	switch {
	case err != nil:
		r.fail("generations", "", err)
	case again:
		p.policies.stale = time.Now()
	default:
		p.policies.stale = time.Time{}
	}
}

// tidy returns true if it is to be called again after a while.
func (p *Program) tidy(v *view) (again bool, err error) {
	if err := p.policies.catchUp(); err != nil {
		return true, err
	}
	// Numbers used only during a switch no longer have an endpoint.
	used, settled := map[uint32]bool{}, true
	for _, row := range p.endpoints.Rows() {
		used[row.Set] = true
	}
	for _, s := range p.subjects {
		used[s.set] = true
		row, there := p.endpoints.Row(s.addr)
		settled = settled && s.placed && (!there || row.Set == s.set)
	}
	if p.policies.littered {
		p.policies.forget(used)
		if err := p.policies.clean(); err != nil {
			return true, err
		}
		p.policies.littered = false
	}
	again, err = p.policies.sweep(used)
	if err != nil {
		return true, err
	}
	if settled {
		p.unname(v)
	}
	if err := p.retireNumbers(); err != nil {
		return true, err
	}
	idle, err := p.retireVariants()
	if err != nil {
		return true, err
	}
	if revised, ok := p.renumber(v); !ok || revised && p.unplaced(v) {
		p.did.policy = stage{}
	}
	return again || idle || p.policies.current.Litter() || len(p.retiring) > 0, nil
}

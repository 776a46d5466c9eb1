package program

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// balance says where the service maps differ from what a walk over all tables, without
// any index, gives; "" if they do not.
func (b *bench) balance(got everything) string {
	v := newView(b.tab, b.p.cfg.Self)
	v.answered, v.servers, v.former.kernel, v.fixed = b.p.cfg.Rows.HasAnswered, b.p.cfg.APIServers, &b.p.members, b.p.cfg.Ports
	v.addresses, v.internal = b.p.exposed, b.p.internal[0]
	v.load(b.tab.DB.ReadTxn())
	wanted := map[bpf.ServiceKey]frontend{}
	for _, row := range tables.All(v.txn, v.tables.Services) { // in order of name: the first has a frontend
		if row.Cluster != v.own.Name {
			continue
		}
		svc := v.resolved(row)
		fronts := service.Frontends(v.client(), &svc, b.offered(v, row, row.NodeLocal))
		pods := map[bool]map[service.ClusterID][]service.Slice{}
		for _, local := range []bool{false, row.ExternalLocal} { // nobody outside reaches processes of nodes
			pods[local] = b.offered(v, row, local)
			for _, s := range pods[local][service.ClusterID(v.own.ID())] {
				for _, e := range s.Endpoints {
					for _, p := range s.Ports {
						if key := keyOf(e.Addr, p.Port, p.Protocol); !local && v.process(e.Addr) {
							key.Scope = bpf.ScopeNode
							wanted[key] = frontend{key: key}
						}
					}
				}
			}
			for i := range pods[local][service.ClusterID(v.own.ID())] {
				s := &pods[local][service.ClusterID(v.own.ID())][i]
				s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e service.Endpoint) bool { return v.process(e.Addr) })
			}
		}
		for _, f := range service.Outer(v.client(), &svc, b.p.exposed, pods[false], pods[row.ExternalLocal]) {
			if v.unfit(f) == "" {
				fronts = append(fronts, f)
			}
		}
		for _, f := range fronts {
			w := v.rowsFor(f, b.p.cfg.Rows.Index)
			w.how = balancingOf(&svc)
			if _, ok := wanted[w.key]; !ok {
				wanted[w.key] = w
			}
		}
	}
	for _, pod := range tables.All(v.txn, v.tables.Pods) { // after services
		for _, f := range v.hostFrontends(pod) {
			w := v.rowsFor(f, b.p.cfg.Rows.Index)
			if _, ok := wanted[w.key]; !ok && v.unfit(f) == "" {
				wanted[w.key] = w
			}
		}
	}
	for _, row := range tables.All(v.txn, v.tables.Services) {
		want, local := Health{row.Namespace, row.Name, row.HealthPort, 0, false}, map[netip.Addr]bool{}
		for _, s := range b.offered(v, row, true)[1] {
			for _, e := range s.Endpoints {
				if e.Ready {
					local[e.Addr] = true
				}
			}
		}
		if svc := v.resolved(row); svc.Split.Of(1) > 0 {
			want.Local = len(local)
		}
		if got, ok := b.p.frontends.health[row.ID()]; row.Cluster == v.own.Name && row.HealthPort != 0 != ok || ok && row.Cluster == v.own.Name && got != want {
			return fmt.Sprintf("load balancers are told %+v (%v), want %+v", got, ok, want)
		}
	}
	slots, members, ranges := 0, 0, 0
	for key, w := range wanted {
		row, ok := got.services[key]
		if !ok || !slices.Equal(row.Group[:row.Groups], w.groups) {
			return fmt.Sprintf("service %v has groups %v (%v), want %v", key, row.Group[:row.Groups], ok, w.groups)
		}
		n, where := balances(got, row, w)
		if slots += n; where != "" {
			return fmt.Sprintf("service %v: %s", key, where)
		}
		if row.Timeout.Without(bpf.ServiceBalanced) != w.timeout {
			return fmt.Sprintf("clients of service %v stay for %v, want %v", key, row.Timeout, w.timeout)
		}
		for cluster, backends := range w.slots {
			found := map[bpf.Backend]bool{}
			for i := range backends {
				found[got.slots[bpf.SlotKey{Service: row.ID, Slot: uint32(i), Cluster: cluster}]] = true
			}
			for _, backend := range backends {
				if !found[backend] {
					return fmt.Sprintf("service %v lacks backend %v of cluster %d", key, backend, cluster)
				}
			}
			slots += len(backends)
		}
		for k, m := range w.members {
			k.Service = row.ID
			if have, ok := got.members[k]; !ok || have != m {
				return fmt.Sprintf("service %v has member %v %v (%v), want %v", key, k, have, ok, m)
			}
		}
		members += len(w.members)
		for k := range w.ranges {
			if k.Service = row.ID; got.ranges[k] == 0 {
				return fmt.Sprintf("service %v is not for %v", key, k.Netip())
			}
		}
		ranges += len(w.ranges)
	}
	// Rows of an earlier agent stay until everything was read in full.
	if !v.complete() {
		return ""
	}
	if where := strayShares(got); where != "" {
		return where
	}
	if len(got.services) != len(wanted) || len(got.slots) != slots || len(got.members) != members || len(got.ranges) != ranges {
		return fmt.Sprintf("%d services, %d slots, %d members and %d ranges, want %d, %d, %d and %d", len(got.services), len(got.slots), len(got.members), len(got.ranges), len(wanted), slots, members, ranges)
	}
	return ""
}

// offered returns a service's endpoints that their clusters may offer, or of them those on
// this node alone.
func (b *bench) offered(v *view, row *tables.Service, local bool) map[service.ClusterID][]service.Slice {
	out := map[service.ClusterID][]service.Slice{}
	add := func(c *tables.Cluster, s service.Slice, byHand bool) {
		if local && c != v.own {
			return
		}
		s.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e service.Endpoint) bool {
			return local && e.Node != v.self || v.misplaced(c, e.Addr) != "" || byHand && v.trespasses(s.Namespace, e.Addr) != ""
		})
		out[service.ClusterID(c.ID())] = append(out[service.ClusterID(c.ID())], s)
	}
	for _, s := range tables.All(v.txn, v.tables.Slices) {
		if c := v.member(s.Cluster); c != nil && s.Namespace == row.Namespace && s.Service == row.Name {
			add(c, s.Slice, c == v.own && !s.Derived)
		}
	}
	newer := maps.Clone(out)
	for _, s := range tables.All(v.txn, v.tables.Services) {
		c := v.member(s.Cluster)
		if c == nil || s.Namespace != row.Namespace || s.Name != row.Name {
			continue
		}
		if _, ok := newer[service.ClusterID(c.ID())]; !ok {
			for _, carried := range s.CarriedSlices() {
				add(c, carried, false)
			}
		}
	}
	return out
}

func (c changer) zone() string { return []string{"a", "b"}[c.IntN(2)] }

// somewhere puts an endpoint on a node, most often in a zone, and gives some hints.
func (c changer) somewhere(e service.Endpoint) service.Endpoint {
	e.Node = fmt.Sprint("n", 1+c.IntN(2))
	if c.IntN(8) > 0 {
		e.Zone = c.zone()
	}
	if c.IntN(8) == 0 {
		e.Hints = &service.Hints{Zones: []string{c.zone()}}
	}
	return e
}

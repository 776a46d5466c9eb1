package meshagent

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/program"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
)

// observer turns the kernel's events into flows with the names of pods, clusters and
// policies, and keeps the latest.
type observer struct {
	node     node
	datapath Datapath
	tables   *tables.Tables
	explain  func() *program.Explanation
	identity func(identity.Number) identity.Number // behind a number of an event
	ring     *flow.Ring
	trouble  *trouble
}

// Run works until ctx ends.
func (o *observer) Run(ctx context.Context) error {
	resolver := o.resolver()
	lost, _ := o.datapath.Lost() // the kernel counts across restarts of the agent
	o.trouble.retry(ctx, func(ctx context.Context) error {
		return o.datapath.Events(ctx, func(e bpf.Event) {
			if now, err := o.datapath.Lost(); err == nil && now > lost {
				o.ring.Missed(now - lost)
				lost = now
			}
			f := resolver.Decode(&e)
			f.Hint = o.hint(&f, e.Proto)
			o.ring.Add(f)
		})
	})
	return nil
}

// resolver names what the kernel only has as numbers.
func (o *observer) resolver() flow.Resolver {
	return flow.Resolver{
		Node: o.node.key(), Time: sinceBoot,
		Endpoint: o.endpoint, Rule: o.rule, Selecting: o.selecting, Service: o.service,
	}
}

// sinceBoot converts a time of the kernel's boot clock.
func sinceBoot(ns uint64) time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil || ns == 0 {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(ts.Nano() - int64(ns)))
}

// endpoint names the owner of an address.
func (o *observer) endpoint(a netip.Addr, n identity.Number) flow.Endpoint {
	txn := o.tables.DB.ReadTxn()
	n = o.identity(n)
	e := flow.Endpoint{Identity: n}
	for c := range o.tables.Clusters.All(txn) {
		if !a.IsValid() || !c.Member() || !c.Owns(netip.PrefixFrom(a, a.BitLen())) {
			continue
		}
		e.Cluster = c.Name
		if row := o.tables.IPAt(txn, c.Name, netip.PrefixFrom(a, a.BitLen())); row != nil {
			e.Namespace, e.Pod = row.Namespace, row.Pod
			if n == identity.Unknown {
				n = row.Identity
			}
		}
		if row := tables.Get(txn, o.tables.Identities, (&tables.Identity{Cluster: c.Name, Number: n}).Key()); row != nil {
			e.Labels = texts(row.Labels)
		}
		break
	}
	if e.Labels == nil {
		e.Labels = texts(identity.ReservedLabels(n))
	}
	return e
}

func texts(labels identity.Labels) []string {
	var out []string
	for _, l := range labels {
		out = append(out, l.String())
	}
	return out
}

func (o *observer) rule(gen, cookie uint32) (flow.Policy, bool) {
	r, ok := o.ruleInfo(gen, cookie)
	return flow.Policy{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}, ok
}

func (o *observer) ruleInfo(gen, cookie uint32) (policy.RuleInfo, bool) {
	x := o.explain().Of(gen)
	if x == nil || int(cookie) >= len(x.Rules) {
		return policy.RuleInfo{}, false
	}
	return x.Rules[cookie], true
}

func (o *observer) selecting(gen, set uint32, dir flow.Direction) []flow.Policy {
	x := o.explain().Of(gen)
	if x == nil {
		return nil
	}
	d := 0
	if dir == flow.Ingress {
		d = 1
	}
	var out []flow.Policy
	for _, p := range x.Sets[set].Policies[d] {
		out = append(out, flow.Policy(p))
	}
	return out
}

// hint suggests what is missing in the policies that denied a flow by default; "" if
// there is no suggestion.
func (o *observer) hint(f *flow.Flow, proto uint8) string {
	if !f.DefaultDeny {
		return ""
	}
	txn := o.tables.DB.ReadTxn()
	labels := func(p flow.Endpoint) identity.Labels {
		if row := tables.Get(txn, o.tables.Identities, (&tables.Identity{Cluster: p.Cluster, Number: p.Identity}).Key()); row != nil {
			return row.Labels
		}
		return nil
	}
	dir, subject, peer := policy.Egress, f.Source, f.Destination
	if f.Direction == flow.Ingress {
		dir, subject, peer = policy.Ingress, f.Destination, f.Source
	}
	port := f.Destination.Port
	if f.ICMP != nil {
		port = uint16(f.ICMP.Type)
	}
	w := policy.World{Cluster: o.node.cluster, Identities: map[identity.Number]identity.Labels{peer.Identity: labels(peer)}}
	for _, p := range f.Policies {
		if row := tables.Get(txn, o.tables.Policies, (&tables.Policy{Kind: plural(p.Kind), Namespace: p.Namespace, Name: p.Name}).Key()); row != nil {
			w.Policies = append(w.Policies, row.Policies...)
		}
	}
	if policy.OwnClusterOnly(w, policy.Flow{Subject: labels(subject), Direction: dir, Peer: peer.Identity, Proto: proto, Port: port}) {
		return policy.ScopeHint
	}
	return ""
}

// plural is how the store spells a kind of policy.
func plural(kind string) string { return strings.ToLower(strings.TrimSuffix(kind, "y")) + "ies" }

// service names a frontend of the own cluster.
func (o *observer) service(addr netip.AddrPort, _ uint8) (namespace, name string) {
	if s := o.tables.ServiceAt(o.tables.DB.ReadTxn(), o.node.cluster, addr); s != nil {
		return s.Namespace, s.Name
	}
	return "", ""
}

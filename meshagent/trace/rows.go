package trace

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	services "github.com/weft-mesh/weft/service"
)

// What the programs look up, in the same order: lib/place.h, lib/policy.h and lib/service.h
// of package bpf say why.

// rows reads the maps. The first error stays, and everything after it is absent.
type rows struct {
	ctx      context.Context
	maps     *bpf.Maps
	settings bpf.Settings
	err      error
}

// look finds what a packet would.
func look[K, V comparable](r *rows, t bpf.Table[K, V], k K) (row V, ok bool) {
	if r.err = cmp.Or(r.err, r.ctx.Err()); r.err != nil {
		return row, false
	}
	row, ok, err := t.Match(k)
	if err != nil {
		r.err = fmt.Errorf("read map %s: %w", t.Name(), err)
	}
	return row, ok && err == nil
}

// longest finds the longest prefix with an address.
func longest[V comparable](r *rows, t bpf.Table[bpf.PrefixKey, V], a bpf.Addr) (row V, ok bool) {
	return look(r, t, bpf.PrefixKey{Bits: 128, Addr: a})
}

// masked clears all but the first bits.
func masked(a bpf.Addr, bits int) bpf.Addr {
	for i := range a {
		switch free := 8*(i+1) - bits; {
		case free >= 8:
			a[i] = 0
		case free > 0:
			a[i] &^= 1<<free - 1
		}
	}
	return a
}

// place is where an address is.
type place struct {
	identity uint32
	node     uint16
	cluster  uint16
	via      bpf.Via
	member   bool
	flags    bpf.IPFlags
}

// resolve is who has an address that is not a pod's of this node.
func (r *rows) resolve(a bpf.Addr) place {
	p := place{identity: uint32(identity.World), via: bpf.ViaStack}
	if a != (bpf.Addr{}) && slices.Contains(r.settings.Internal[:], a) {
		p.identity = uint32(identity.Host)
		return p
	}
	info, ok := look(r, r.maps.IPs, a)
	if !ok {
		if info, ok = longest(r, r.maps.Prefixes, a); !ok {
			return p
		}
	}
	p.identity, p.node, p.cluster, p.flags = info.Identity, info.Node, info.Cluster, info.Flags
	p.member = info.Cluster != 0 || info.Flags&bpf.IPMember != 0
	if p.node != 0 || p.member {
		p.via = bpf.ViaTunnel
	}
	if p.member && p.identity == 0 {
		p.identity = uint32(identity.UnknownMember)
		if info.Bits != 0 && masked(a, int(info.Bits)) == a { // a node's ingress address
			p.identity = r.restOfWorld(a)
		}
	}
	return p
}

// serviceAt is the service at an address and port. Node ports of the cluster's other nodes lead
// where this node's do.
func (r *rows) serviceAt(a bpf.Addr, port bpf.Port, proto uint8) (bpf.Service, bool) {
	svc, ok := look(r, r.maps.Services, bpf.ServiceKey{Addr: a, Port: port, Proto: proto})
	if n := port.Number(); ok || n < services.FirstNodePort || n > services.LastNodePort {
		return svc, ok
	}
	if info, known := look(r, r.maps.IPs, a); !known || info.Flags&bpf.IPNode == 0 || info.Node == 0 {
		return svc, false
	}
	ours := r.settings.Exposed[1]
	if a.Netip().Is4() {
		ours = r.settings.Exposed[0]
	}
	return look(r, r.maps.Services, bpf.ServiceKey{Addr: ours, Port: port, Proto: proto})
}

// restOfWorld is the identity of addresses of a's family that no policy names.
func (r *rows) restOfWorld(a bpf.Addr) uint32 {
	all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if a.Netip().Is4() {
		all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	if info, ok := look(r, r.maps.Prefixes, bpf.PrefixOf(all)); ok && info.Identity != 0 {
		return info.Identity
	}
	return uint32(identity.World)
}

// locate is where packets to an address go, or why they go nowhere.
func (r *rows) locate(a bpf.Addr) (place, bpf.Reason) {
	if ep, ok := look(r, r.maps.Endpoints, a); ok {
		return place{identity: ep.Identity, via: bpf.ViaPod}, 0
	}
	p := r.resolve(a)
	switch {
	case p.flags&bpf.IPService != 0:
		return p, bpf.ReasonNoBackend
	case p.flags&bpf.IPNode != 0:
		return p, bpf.ReasonNodeAddress
	case p.via != bpf.ViaTunnel:
		return p, 0
	case p.flags&bpf.IPFormer != 0:
		return p, bpf.ReasonFormerMember
	case p.flags&bpf.IPLocal != 0:
		return p, bpf.ReasonNoEndpoint
	case p.node == 0:
		return p, bpf.ReasonNoTunnel
	}
	return p, 0
}

// locateBackend is locate for a backend, which may be a process of another node.
func (r *rows) locateBackend(a bpf.Addr) (place, bpf.Reason) {
	p, why := r.locate(a)
	if why == bpf.ReasonNodeAddress && p.node != 0 {
		why = 0
	}
	return p, why
}

// locateOffered is locate for where a connection goes, which may be a process of another node that
// is behind a service.
func (r *rows) locateOffered(a bpf.Addr, port bpf.Port, proto uint8) (place, bpf.Reason) {
	p, why := r.locate(a)
	if why == bpf.ReasonNodeAddress && p.node != 0 {
		if _, ok := look(r, r.maps.Services, bpf.ServiceKey{Addr: a, Port: port, Proto: proto, Scope: bpf.ScopeNode}); ok {
			why = 0
		}
	}
	return p, why
}

// path is the state of the path to a node, and whether that is its cluster's rather than its own.
func (r *rows) path(node, cluster uint16) (state bpf.Path, ofCluster bool) {
	n, ok := look(r, r.maps.Nodes, uint32(node))
	if !ok || n.Path == bpf.PathDead {
		return bpf.PathDead, false
	}
	if cluster != 0 && cluster != r.settings.Cluster {
		c, ok := look(r, r.maps.Clusters, uint32(cluster))
		if !ok {
			return bpf.PathDead, true
		}
		if c.Path != bpf.PathAlive {
			return c.Path, true
		}
	}
	return n.Path, false
}

// tunnel is the tunnel to a node; false if there is none.
func (r *rows) tunnel(node uint16) (lane int, ok bool) {
	n, ok := look(r, r.maps.Nodes, uint32(node))
	if !ok || n.Keyed == 0 {
		return 0, false
	}
	if n.Lane != 0 {
		lane = 1
	}
	return lane, r.settings.TunnelIfindex[lane] != 0
}

// verdict is what policy says.
type verdict struct {
	reason bpf.Reason // 0: allowed
	set    uint32     // 0: no policy selects the pod
	rule   uint32     // that decided; 0: none, so the default
}

// judge is what a pod's policy set says of a new connection with an identity.
func (r *rows) judge(set, peer uint32, dir bpf.Direction, proto uint8, port uint16) verdict {
	v := verdict{set: set}
	if set == 0 {
		return v
	}
	gen := r.settings.PolicyGen
	info, ok := look(r, r.maps.Sets, bpf.SetKey{Gen: gen, Set: set})
	if !ok {
		v.reason = bpf.ReasonNoPolicy
		return v
	}
	var portClass uint16
	if i, ok := bpf.PortIndex(gen, proto, port); ok {
		portClass, _ = look(r, r.maps.Ports, i)
	}
	own, _ := look(r, r.maps.Classes, bpf.ClassKey{Gen: gen, Identity: peer})
	for _, class := range []uint32{own, bpf.AnyClass} {
		for _, k := range []bpf.PolicyKey{{Port: portClass, Proto: proto}, {Proto: proto}, {}} {
			k.Gen, k.Set, k.Class, k.Dir = gen, set, class, dir
			if !info.Shapes[dir].Have(k) {
				continue
			}
			if e, ok := look(r, r.maps.Policy, k); ok {
				if v.rule = e.Rule; e.Deny != 0 {
					v.reason = bpf.ReasonPolicyDenied
				}
				return v
			}
		}
	}
	switch {
	case info.Enforced[dir] == 0:
	case peer == uint32(identity.UnknownMember):
		v.reason = bpf.ReasonUnknownMember
	default:
		v.reason = bpf.ReasonPolicyDenied
	}
	return v
}

// backend is a slot of a service, and whether a new connection may get it.
type backend struct {
	bpf.Backend
	group  bpf.Group
	path   bpf.Path
	tunnel bool       // to its node, if it is behind one
	remote bool       // behind a tunnel
	node   uint16     // that it is behind
	why    bpf.Reason // it cannot be located
	chosen bool       // a new connection may get it
}

func (b *backend) cluster() uint16 { n, _ := bpf.ClusterOf(b.group.Cluster); return n }

// usable says whether the path to it will do; doubtful admits silent ones.
func (b *backend) usable(doubtful bool) bool {
	switch {
	case b.why != 0, b.group.Weight == 0:
		return false
	case !b.remote:
		return true
	}
	return b.tunnel && (b.path == bpf.PathAlive || doubtful && b.path == bpf.PathSilent)
}

// backends are those of a service, with those marked that a new connection may get: of the
// lowest tier that has one whose path is alive or, if there is none, silent.
func (r *rows) backends(svc bpf.Service) (all []backend) {
	for _, g := range svc.Group[:min(int(svc.Groups), bpf.MaxGroups)] {
		for i := range g.Count {
			row, ok := look(r, r.maps.Backends, bpf.SlotKey{Service: svc.ID, Slot: i, Cluster: g.Cluster})
			if !ok {
				continue
			}
			b := backend{Backend: row, group: g, node: row.Node, path: bpf.PathAlive}
			if b.node == 0 {
				var at place
				at, b.why = r.locateBackend(row.Addr)
				b.node = at.node
			}
			if b.remote = b.node != 0; b.remote {
				b.path, _ = r.path(b.node, b.cluster())
				_, b.tunnel = r.tunnel(b.node)
			}
			// The cluster's own row counts even before any of its nodes does.
			if c := b.cluster(); c != r.settings.Cluster {
				if row, ok := look(r, r.maps.Clusters, uint32(c)); !ok || row.Path == bpf.PathDead {
					b.path, b.remote = bpf.PathDead, true
				}
			}
			all = append(all, b)
		}
	}
	for _, doubtful := range []bool{false, true} {
		best := -1
		for i := range all {
			if tier := int(all[i].group.Tier); all[i].usable(doubtful) && (best < 0 || tier < best) {
				best = tier
			}
		}
		if best < 0 {
			continue
		}
		for i := range all {
			all[i].chosen = int(all[i].group.Tier) == best && all[i].usable(doubtful)
		}
		break
	}
	return all
}

// admits says whether a client is in the source ranges of a service.
func (r *rows) admits(svc bpf.Service, client bpf.Addr) bool {
	_, ok := look(r, r.maps.Sources, bpf.RangeKey{Bits: 32 + 128, Service: svc.ID, Addr: client})
	return ok
}

// session is the backend that the client was last given, if it gets it again: find_session. Unlike
// a chosen one it may be of any tier, but its path has to be alive.
func (r *rows) session(svc bpf.Service, client bpf.Addr, now uint64) (backend bpf.Affinity, ok bool) {
	stay := svc.Timeout.Duration()
	last, ok := look(r, r.maps.Affinities, bpf.AffinityKey{Client: client, Service: svc.ID})
	if !ok || stay == 0 || now > last.Seen && now-last.Seen > uint64(stay) {
		return last, false
	}
	member, ok := look(r, r.maps.Members, bpf.MemberKey{Addr: last.Backend, Service: svc.ID, Port: last.Port})
	if !ok || member.Terminating != 0 {
		return last, false
	}
	at, why := r.locateBackend(last.Backend)
	if why != 0 || at.node == 0 {
		return last, why == 0
	}
	path, _ := r.path(at.node, at.cluster)
	_, tunnel := r.tunnel(at.node)
	return last, tunnel && path == bpf.PathAlive
}

// keeps says whether a flow keeps its backend. A pod that reaches itself always keeps itself.
func (r *rows) keeps(f *known) bool {
	return f.Flags&bpf.FlowLoop != 0 || r.fate(memberOf(f.key, f.Flow), f.key.Proto).keeps(f.key, f.Flow)
}

// holds says whether a flow's verdict still rests on what is in the maps: if not, its next
// packet is judged again.
func (r *rows) holds(k bpf.FlowKey, f bpf.Flow) bool {
	other := k.Remote
	if f.Flags&bpf.FlowService != 0 {
		other = f.Backend
	}
	sum := r.settings.Revision
	for _, row := range []uint32{bpf.RevisionOf(k.Local), bpf.RevisionOf(other), bpf.RevisionOfIdentity(f.Identity)} {
		n, _ := look(r, r.maps.Revisions, row)
		sum += n
	}
	return sum == f.Revision
}

// givesBackends says whether sockets of the pod with this address are given the backends of
// services.
func (r *rows) givesBackends(pod bpf.Addr) bool {
	all, failed := r.maps.Namespaces.All()
	given := false
	for _, n := range all {
		given = given || slices.Contains(n.Addr[:], pod)
	}
	r.err = cmp.Or(r.err, failed())
	return given
}

// masqueraded is the address that the world sees instead of a pod's; false: the pod's own.
func (r *rows) masqueraded(to bpf.Addr) (netip.Addr, bool) {
	m, ok := look(r, r.maps.Masquerading, 0)
	family := 1
	if to.Netip().Is4() {
		family = 0
	}
	if !ok || m.Addr[family] == (bpf.Addr{}) {
		return netip.Addr{}, false
	}
	_, native := longest(r, r.maps.Native, to)
	return m.Addr[family].Netip(), !native
}

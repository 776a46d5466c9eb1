package bpf_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/model"
)

// world is a small mesh that is drawn from a seed, as the model knows it. What changes in it is
// written to the model and to the maps at once.
type world struct {
	*rig
	n         *model.Node
	services  []*drawn
	revision  uint32
	about     theme
	calm      bool // nothing is forbidden or broken, at first: connections go on for longer
	datagrams uint32
}

// theme is what most connections of a seed are about.
type theme int

const (
	anything theme = iota
	nodePorts
	masquerading
	sharing  // one source port, many services with few backends
	clinging // clients stay with backends that come and go
	themes
)

// drawn is a service with its rows.
type drawn struct {
	*model.Service
	fronts []model.Front
	parts  []uint16 // of groups: bpf.PartOf
}

var families = []int{0, 1}

// at is an address for each family: of a pod of a node, by cluster, or of the rest.
func podAt(family int, cluster, node, pod byte) netip.Addr {
	if family == 0 {
		return netip.AddrFrom4([4]byte{10, cluster, node, pod})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 2: cluster, 4: node, 15: pod})
}

func podCIDR(family int, cluster, node byte) netip.Prefix {
	bits := 24
	if family == 1 {
		bits = 64
	}
	p, _ := podAt(family, cluster, node, 0).Prefix(bits)
	return p
}

func serviceAt(family int, i byte) netip.Addr { return podAt(family, 101, 0, i) }

// elsewhere is an address outside of the mesh; net 1 has an identity of its own.
func elsewhere(family int, network, last byte) netip.Addr {
	if family == 0 {
		return netip.AddrFrom4([4]byte{192, 0, network, last})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: network, 15: last})
}

// Numbers of what is in every world.
const (
	own, peer, former = 1, 2, 3
	here              = 1 // this node; 2 is another of its cluster, 3 and 4 are the peer's
	worldCIDR         = 16777217
)

var nodeOf = map[uint16]byte{2: own, 3: peer, 4: peer}

// exposed are the node ports and external addresses of the service that has some.
func exposed(family int) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(elsewhere(family, 2, 1), 30080), netip.AddrPortFrom(elsewhere(family, 2, 1), 30081), netip.AddrPortFrom(elsewhere(family, 2, 9), 80)}
}

// processes are where processes of nodes may be behind services.
func processes(family int) (all []netip.AddrPort) {
	for _, node := range []byte{1, 2, 3} {
		all = append(all, netip.AddrPortFrom(elsewhere(family, 2, node), 80), netip.AddrPortFrom(elsewhere(family, 2, node), 8080))
	}
	return all
}

func draw[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// portClasses are the ports that policies name, by protocol.
var portClasses = map[uint8][][]uint16{
	6: {{80, 22}, {8080}}, 17: {{80, 53}, {8080}}, 132: {{80}, {8080}}, 1: {{8}, {13}}, 58: {{128}, {129}},
}

// draw makes a world.
func (r *rig) draw(rng *rand.Rand) *world {
	w := &world{rig: r, n: model.New(), revision: 1, about: theme(rng.IntN(int(themes))), calm: rng.IntN(3) > 0}
	r.clear()
	n := w.n
	n.Cluster, n.Lanes, n.Ready = own, r.lanes, true
	for _, f := range families {
		n.Internal[f], n.Exposed[f] = podAt(f, own, here, 1), elsewhere(f, 2, 1)
	}
	pathOf := func() bpf.Path {
		return draw(rng, bpf.PathAlive, bpf.PathAlive, bpf.PathAlive, bpf.PathSilent, bpf.PathDead)
	}
	for _, cluster := range []uint16{own, peer} {
		w.cluster(cluster, draw(rng, bpf.PathAlive, pathOf()))
	}
	for node := range nodeOf {
		w.peer(node, model.Peer{Path: pathOf(), Lane: rng.IntN(2), Keyed: w.calm || rng.IntN(12) > 0})
	}
	for _, f := range families {
		if rng.IntN(2) == 0 {
			w.prefix(netip.PrefixFrom(netip.AddrFrom16([16]byte{}), 0), model.Owner{Identity: 9})
			w.prefix(netip.PrefixFrom(netip.IPv4Unspecified(), 0), model.Owner{Identity: 8})
		}
		for _, c := range []byte{own, peer, former} {
			flags := bpf.IPMember
			if c == former {
				flags |= bpf.IPFormer
			}
			p, _ := podAt(f, c, 0, 0).Prefix(map[int]int{0: 16, 1: 24}[f])
			w.prefix(p, model.Owner{Cluster: uint16(c), Flags: flags})
		}
		w.prefix(podCIDR(f, own, here), model.Owner{Cluster: own, Flags: bpf.IPMember | bpf.IPLocal})
		for node, c := range nodeOf {
			w.prefix(podCIDR(f, c, byte(node)), model.Owner{Cluster: uint16(c), Node: node, Flags: bpf.IPMember, Bits: podCIDR(f, c, byte(node)).Bits() + 96*(1-f)})
			for pod := byte(10); pod < 13; pod++ {
				if rng.IntN(5) > 0 {
					w.host(podAt(f, c, byte(node), pod), model.Owner{Cluster: uint16(c), Node: node, Flags: bpf.IPMember, Identity: uint32(c)<<16 + uint32(pod) + 50*uint32(rng.IntN(2))})
				}
			}
		}
		services, _ := serviceAt(f, 0).Prefix(map[int]int{0: 16, 1: 24}[f])
		w.prefix(services, model.Owner{Flags: bpf.IPService})
		named, _ := elsewhere(f, 1, 0).Prefix(map[int]int{0: 24, 1: 48}[f])
		w.prefix(named, model.Owner{Identity: worldCIDR})
		w.host(elsewhere(f, 2, 1), model.Owner{Identity: 1})                             // this node's own
		w.host(elsewhere(f, 2, 2), model.Owner{Identity: 6, Flags: bpf.IPNode, Node: 2}) // another one's
		w.host(elsewhere(f, 2, 3), model.Owner{Identity: 6, Flags: bpf.IPNode})          // a peer's node's
		for _, at := range processes(f) {
			for _, proto := range []uint8{6, 17, 132} {
				w.offer(model.Front{At: at, Proto: proto}, rng.IntN(4) > 0)
			}
		}
	}
	w.policies(rng)
	sets := 4
	if w.calm {
		sets = 1
	}
	for i, device := range r.pods {
		for _, f := range families {
			w.pod(podAt(f, own, here, byte(10+i)), &model.Pod{
				Device: device, Identity: own<<16 + uint32(10+i), Set: uint32(rng.IntN(sets)), ID: uint16(i + 1), Held: !w.calm && rng.IntN(20) == 0,
				MAC: [6]byte{0xaa, 5: byte(10 + i)}, Host: [6]byte{0xaa, 5: 0xf},
			})
		}
	}
	for i := range 4 {
		w.service(rng, i)
	}
	w.outside(rng)
	w.settings()
	return w
}

// outside lets pods leave as the node, mostly: with few ports, or with many.
func (w *world) outside(rng *rand.Rand) {
	row := bpf.Masquerading{First: 5000, Last: uint16(draw(rng, 5000, 5002, 30000))}
	w.n.First, w.n.Last = row.First, row.Last
	for _, f := range families {
		if rng.IntN(4) > 0 {
			w.n.Outside[f] = elsewhere(f, 2, 1)
			row.Addr[f] = bpf.AddrOf(w.n.Outside[f])
		}
		if p, _ := elsewhere(f, 1, 0).Prefix(map[int]int{0: 24, 1: 48}[f]); rng.IntN(3) == 0 {
			w.n.Native = append(w.n.Native, p)
			w.must(w.m.Native.Update(bpf.PrefixOf(p), 1))
		}
	}
	w.must(w.m.Masquerading.Update(0, row))
}

// policies draws sets 1 to 3; pods with set 0 have none, and set 3 may be missing.
func (w *world) policies(rng *rand.Rand) {
	for _, id := range []uint32{8, 9, 2, 127, 6, worldCIDR} {
		w.class(id, uint32(rng.IntN(4)))
	}
	for _, c := range []uint32{own, peer} {
		for pod := uint32(10); pod < 13; pod++ {
			w.class(c<<16+pod, uint32(rng.IntN(4)))
			w.class(c<<16+pod+50, uint32(rng.IntN(4)))
		}
	}
	for id := uint32(1); id <= 3; id++ {
		if id < 3 || rng.IntN(4) > 0 {
			w.set(id, w.drawSet(rng, id))
		}
	}
}

func (w *world) drawSet(rng *rand.Rand, id uint32) *model.Set {
	s := &model.Set{Enforced: [2]bool{rng.IntN(2) == 0, rng.IntN(2) == 0}}
	type shape struct {
		dir   bpf.Direction
		class uint32
		proto uint8
		ports int
	}
	taken := map[shape]bool{}
	for i := range rng.IntN(9) {
		at := shape{dir: draw(rng, bpf.Egress, bpf.Ingress), class: draw(rng, uint32(bpf.AnyClass), 1, 2, 3), proto: draw(rng, uint8(0), 6, 6, 17, 132, 1, 58), ports: -1}
		r := model.Rule{Dir: at.dir, Class: at.class, Proto: at.proto, Deny: rng.IntN(3) == 0, ID: id*100 + uint32(i) + 1}
		if at.proto != 0 && rng.IntN(2) == 0 {
			at.ports = rng.IntN(2)
			r.Ports = portClasses[at.proto][at.ports]
		}
		if !taken[at] {
			taken[at] = true
			s.Rules = append(s.Rules, r)
		}
	}
	return s
}

// backendAt are the places where backends may be.
func (w *world) drawBackend(rng *rand.Rand, family int, cluster uint16, port uint16) model.Backend {
	pod := byte(10 + rng.IntN(3))
	if w.about == sharing {
		pod = 10
	}
	if cluster == own && rng.IntN(6) == 0 {
		return model.Backend{At: netip.AddrPortFrom(elsewhere(family, 2, byte(1+rng.IntN(2))), port)}
	}
	if cluster == own && rng.IntN(3) > 0 {
		return model.Backend{At: netip.AddrPortFrom(podAt(family, own, here, pod), port)}
	}
	if rng.IntN(10) == 0 {
		return model.Backend{At: netip.AddrPortFrom(elsewhere(family, 0, 7), port)}
	}
	node := draw(rng, uint16(3), 4)
	if cluster == own {
		node = 2
	}
	b := model.Backend{At: netip.AddrPortFrom(podAt(family, nodeOf[node], byte(node), pod), port), Node: node}
	if rng.IntN(8) == 0 {
		b.Node = 0 // not known when it was written
	}
	return b
}

// service draws the i-th service, with rows of its own for each family.
func (w *world) service(rng *rand.Rand, i int) {
	for _, f := range families {
		d := &drawn{Service: &model.Service{ID: uint32(10*(i+1) + f)}}
		if i == 1 || rng.IntN(4) == 0 {
			d.Timeout = draw(rng, 20*time.Second, 100*time.Second)
		}
		if d.Ranged = rng.IntN(8) == 0; d.Ranged {
			w.source(d.ID, draw(rng, podCIDR(f, own, here), netip.PrefixFrom(podAt(f, own, here, 10), podAt(f, 0, 0, 0).BitLen()), netip.PrefixFrom(elsewhere(f, 0, 7), podAt(f, 0, 0, 0).BitLen())))
		}
		port := uint16(8080)
		if i == 2 {
			port = 80 // as its own, so that SCTP works
		}
		parts := []uint16{own, peer, bpf.PartOf(peer, 1), bpf.PartOf(own, 1)}
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		for _, part := range parts[:min(rng.IntN(6), 4)] {
			cluster, _ := bpf.ClusterOf(part)
			g := model.Group{Cluster: cluster, Tier: uint8(rng.IntN(3)), Weight: 1}
			for range rng.IntN(4) {
				g.Backends = append(g.Backends, w.drawBackend(rng, f, cluster, port))
			}
			if d.Timeout == 0 && rng.IntN(10) == 0 {
				g.Weight = 0
			}
			d.Groups, d.parts = append(d.Groups, g), append(d.parts, part)
		}
		for _, proto := range []uint8{6, 17, 132} {
			d.fronts = append(d.fronts, model.Front{At: netip.AddrPortFrom(serviceAt(f, byte(i+1)), 80), Proto: proto})
			if i == 0 { // a second port, from which a port is shared
				d.fronts = append(d.fronts, model.Front{At: netip.AddrPortFrom(serviceAt(f, byte(i+1)), 8080), Proto: proto})
			}
			if i == 3 && proto != 132 {
				for _, at := range exposed(f) {
					d.fronts = append(d.fronts, model.Front{At: at, Proto: proto})
				}
			}
		}
		if i == 3 && rng.IntN(3) == 0 { // clients outside get backends of this cluster alone
			d.Split = true
			outer := &drawn{Service: &model.Service{ID: d.ID + 100, Timeout: d.Timeout}, parts: []uint16{own}}
			outer.Groups = []model.Group{{Cluster: own, Weight: 1, Backends: []model.Backend{w.drawBackend(rng, f, own, port)}}}
			for _, front := range d.fronts {
				front.Outside = true
				outer.fronts = append(outer.fronts, front)
			}
			w.services = append(w.services, outer)
			w.writeService(outer)
			w.member(model.Member{Service: outer.ID, At: outer.Groups[0].Backends[0].At}, false)
		}
		w.services = append(w.services, d)
		w.writeService(d)
		for _, g := range d.Groups {
			for _, b := range g.Backends {
				if rng.IntN(15) > 0 {
					w.member(model.Member{Service: d.ID, At: b.At}, rng.IntN(10) == 0)
				}
			}
		}
	}
}

// ---- Rows: each is written to the model and to the map ----

func (w *world) must(errs ...error) {
	w.Helper()
	if err := errors.Join(errs...); err != nil {
		w.Fatal(err)
	}
}

// changed tells that what is known of something has changed, as the agent does after the row.
func (w *world) changed(what any) {
	w.n.Changed(what)
	row := uint32(0)
	switch what := what.(type) {
	case netip.Addr:
		row = bpf.RevisionOf(bpf.AddrOf(what))
	case uint32:
		row = bpf.RevisionOfIdentity(what)
	default:
		w.revision++
		w.settings()
		return
	}
	was, _, err := w.m.Revisions.Lookup(row)
	w.must(err, w.m.Revisions.Update(row, was+1))
}

func (w *world) settings() {
	s := bpf.Settings{Revision: w.revision, PolicyGen: 1, Cluster: w.n.Cluster}
	for i := range 2 {
		s.TunnelIfindex[i], s.Internal[i], s.Exposed[i] = uint32(w.n.Lanes[i]), bpf.AddrOf(w.n.Internal[i]), bpf.AddrOf(w.n.Exposed[i])
	}
	w.must(w.m.Settings.Update(0, s))
}

func (w *world) cluster(id uint16, p bpf.Path) {
	w.n.Clusters[id] = p
	w.must(w.m.Clusters.Update(uint32(id), bpf.Cluster{Path: p, Member: 1}))
}

func (w *world) peer(id uint16, p model.Peer) {
	w.n.Peers[id] = p
	row := bpf.Node{Path: p.Path, Lane: uint8(p.Lane), Cluster: uint16(nodeOf[id])}
	if p.Keyed {
		row.Keyed = 1
	}
	w.must(w.m.Nodes.Update(uint32(id), row))
}

func infoOf(o model.Owner) bpf.IPInfo {
	return bpf.IPInfo{Identity: o.Identity, Node: o.Node, Cluster: o.Cluster, Flags: o.Flags, Bits: uint8(o.Bits)}
}

func (w *world) prefix(p netip.Prefix, o model.Owner) {
	w.n.Prefixes[p] = o
	w.must(w.m.Prefixes.Update(bpf.PrefixOf(p), infoOf(o)))
}

func (w *world) host(a netip.Addr, o model.Owner) {
	w.n.Hosts[a] = o
	w.must(w.m.IPs.Update(bpf.AddrOf(a), infoOf(o)))
}

func (w *world) unhost(a netip.Addr) {
	delete(w.n.Hosts, a)
	w.must(w.m.IPs.Delete(bpf.AddrOf(a)))
}

func (w *world) pod(a netip.Addr, p *model.Pod) {
	w.n.Pods[a] = p
	ep := bpf.Endpoint{Ifindex: uint32(p.Device), Identity: p.Identity, Set: p.Set, ID: p.ID, MAC: p.MAC, HostMAC: p.Host}
	if p.Held {
		ep.Held = 1
	}
	w.must(w.m.Endpoints.Update(bpf.AddrOf(a), ep))
}

func (w *world) unpod(a netip.Addr) {
	delete(w.n.Pods, a)
	w.must(w.m.Endpoints.Delete(bpf.AddrOf(a)))
}

func (w *world) class(identity, class uint32) {
	w.n.Class[identity] = class
	w.must(w.m.Classes.Update(bpf.ClassKey{Gen: 1, Identity: identity}, class))
}

func (w *world) member(m model.Member, going bool) {
	w.n.Members[m] = going
	row := bpf.Member{}
	if going {
		row.Terminating = 1
	}
	w.must(w.m.Members.Update(memberKey(m), row))
}

func memberKey(m model.Member) bpf.MemberKey {
	return bpf.MemberKey{Addr: bpf.AddrOf(m.At.Addr()), Service: m.Service, Port: bpf.PortOf(m.At.Port())}
}

func (w *world) unmember(m model.Member) {
	delete(w.n.Members, m)
	w.must(w.m.Members.Delete(memberKey(m)))
}

func (w *world) source(service uint32, p netip.Prefix) {
	w.n.Sources[service] = append(w.n.Sources[service], p)
	k := bpf.RangeOf(p)
	k.Service = service
	w.must(w.m.Sources.Update(k, 1))
}

// offer says whether a process of a node is behind a service.
func (w *world) offer(f model.Front, on bool) {
	w.n.Offered[f] = on
	k := bpf.ServiceKey{Addr: bpf.AddrOf(f.At.Addr()), Port: bpf.PortOf(f.At.Port()), Proto: f.Proto, Scope: bpf.ScopeNode}
	if on {
		w.must(w.m.Services.Update(k, bpf.Service{ID: 1000}))
	} else {
		w.must(w.m.Services.Delete(k))
	}
}

// set writes a policy set in place of another one with its number.
func (w *world) set(id uint32, s *model.Set) {
	w.must(w.m.Sets.Delete(bpf.SetKey{Gen: 1, Set: id}))
	var old []bpf.PolicyKey
	rows, failed := w.m.Policy.All()
	for k := range rows {
		if k.Set == id {
			old = append(old, k)
		}
	}
	w.must(failed(), w.m.Policy.DeleteBatch(old))
	w.n.Sets[id] = s
	info := bpf.SetInfo{Shapes: [2]bpf.Shapes{bpf.NoShapes, bpf.NoShapes}}
	for dir, on := range s.Enforced {
		if on {
			info.Enforced[dir] = 1
		}
	}
	for _, r := range s.Rules {
		k := bpf.PolicyKey{Gen: 1, Set: id, Class: r.Class, Proto: r.Proto, Dir: r.Dir}
		for i, ports := range portClasses[r.Proto] {
			if len(r.Ports) > 0 && r.Ports[0] == ports[0] {
				k.Port = uint16(i + 1)
			}
		}
		e := bpf.PolicyEntry{Rule: r.ID}
		if r.Deny {
			e.Deny = 1
		}
		info.Shapes[r.Dir] |= k.Shape()
		w.must(w.m.Policy.Update(k, e))
	}
	w.must(w.m.Sets.Update(bpf.SetKey{Gen: 1, Set: id}, info))
}

// writeService writes a service's backends and then its frontends.
func (w *world) writeService(d *drawn) {
	row := bpf.Service{ID: d.ID, Groups: uint8(len(d.Groups)), Timeout: bpf.SecondsOf(d.Timeout)}
	if d.Ranged {
		row.Timeout = row.Timeout.With(bpf.ServiceRanged)
	}
	if d.Split {
		row.Timeout = row.Timeout.With(bpf.ServiceSplit)
	}
	for i, g := range d.Groups {
		row.Group[i] = bpf.Group{Count: uint32(len(g.Backends)), Cluster: d.parts[i], Tier: g.Tier, Weight: g.Weight}
		for slot, b := range g.Backends {
			w.must(w.m.Backends.Update(bpf.SlotKey{Service: d.ID, Slot: uint32(slot), Cluster: d.parts[i]},
				bpf.Backend{Addr: bpf.AddrOf(b.At.Addr()), Port: bpf.PortOf(b.At.Port()), Node: b.Node}))
		}
	}
	for _, f := range d.fronts {
		w.n.Services[f] = d.Service
		k := bpf.ServiceKey{Addr: bpf.AddrOf(f.At.Addr()), Port: bpf.PortOf(f.At.Port()), Proto: f.Proto}
		if f.Outside {
			k.Scope = bpf.ScopeOutside
		}
		w.must(w.m.Services.Update(k, row))
	}
}

// clear empties all maps but ports, whose classes are the same in every world.
func (r *rig) clear() {
	r.Helper()
	wipe(r, r.m.Revisions)
	wipe(r, r.m.Flows)
	wipe(r, r.m.Shares)
	wipe(r, r.m.Masquerades)
	wipe(r, r.m.Masquerading)
	wipe(r, r.m.Native)
	wipe(r, r.m.Affinities)
	wipe(r, r.m.Visitors)
	wipe(r, r.m.Sources)
	wipe(r, r.m.Endpoints)
	wipe(r, r.m.IPs)
	wipe(r, r.m.Prefixes)
	wipe(r, r.m.Nodes)
	wipe(r, r.m.Clusters)
	wipe(r, r.m.Services)
	wipe(r, r.m.Backends)
	wipe(r, r.m.Members)
	wipe(r, r.m.Classes)
	wipe(r, r.m.Policy)
	wipe(r, r.m.Sets)
	for _, name := range []string{"fragments", "errors_sent"} {
		m := r.d.Map(name)
		for key := make([]byte, m.KeySize()); m.NextKey(nil, &key) == nil; {
			if err := m.Delete(key); err != nil {
				r.Fatal(err)
			}
		}
	}
}

func wipe[K comparable, V any](r *rig, t bpf.Table[K, V]) {
	r.Helper()
	var keys []K
	rows, failed := t.All()
	for k := range rows {
		keys = append(keys, k)
	}
	if err := errors.Join(failed(), t.DeleteBatch(keys)); err != nil {
		r.Fatal(err)
	}
}
